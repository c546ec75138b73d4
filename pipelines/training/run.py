"""`train`: from embeddings and queries to a codec that is at least as good as its start, in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import Compressor, from_spec
from ragq.errors import InvalidArgumentError
from ragq.pipelines.codecs import save_codec
from ragq.pipelines.training.data import TrainingQueries
from ragq.pipelines.training.settings import METHODS, Settings
from ragq.pipelines.training.validation import Encoded, Measured, Validation
from ragq.pipelines.training.vectors import Vectors
from ragq.storage import storage_errors, write_bytes

__all__ = ["Trained", "train_codec"]

LOG, REPORT, PLOT = "log.jsonl", "report.json", "training.png"
UNLABELLED = "unlabelled"  # folder of the part of a labelled run that knows no labels
FIT_ROWS = 32_768


@dataclass(frozen=True)
class Trained:
    """What a run found.

    Attributes
    ----------
    codec : Compressor
        The best codec on the validation queries: trained, or the start.
    measure : str
        What decided: ``mixed-ndcg@10``, or ``dense-ndcg@10`` without labels; see `Validation`.
    start, value : float
        What the start and `codec` reach.
    epoch : int
        The epoch of `codec`; 0 when training did not help.
    low, high : float
        95 % interval of the difference over the validation queries.
    queries, validation : int
        How many trained and validated.
    verdict : str
        All this as a sentence.
    """

    codec: Compressor
    measure: str
    start: float
    value: float
    epoch: int
    low: float
    high: float
    queries: int
    validation: int
    verdict: str

    @property
    def helped(self) -> bool:
        """Whether the codec is a trained one."""
        return self.epoch > 0


def train_codec(
    vectors: Vectors,
    data: TrainingQueries,
    settings: Settings,
    spec: str,
    *,
    out: Path | None = None,
    resume: bool = False,
    log: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Trained:
    """Train a codec.

    Two starts are fitted: one on the documents alone, and one that knows the training queries as well (`LearnedPQ`).
    The better one on the validation queries is trained, and whatever comes of it is returned only when it is better
    still.

    With labels the run has two parts: the same without them, in the folder ``unlabelled`` of `out`, and from its codec
    on with them. Labels are few, and what they teach is often the chance of these few: what comes of the second part is
    returned only when it is better outside the 95 % interval.

    Parameters
    ----------
    vectors : Vectors
        Document embeddings.
    data : TrainingQueries
    settings : Settings
    spec : str
        Of the method's codec, such as ``DistillVQ48``.
    out : Path, optional
        Folder for the codec, the log, the plot, the report and the checkpoint.
    resume : bool
        Go on from the checkpoint in `out`; the result is that of a run without interruption.
    log : callable
        Given a JSON object an epoch.

    Raises
    ------
    InvalidArgumentError
        A codec of another method, embeddings and queries of different dimensions, or too few documents.
    """
    from ragq.pipelines.training.loop import Trainer

    check(vectors, data, settings, spec)
    if out is not None:
        with storage_errors(out, "create"):
            out.mkdir(parents=True, exist_ok=True)
    validation = Validation(vectors, data.validation, data.validation_labels)
    first = None
    if data.labels:
        part = None if out is None else out / UNLABELLED
        first = train_codec(vectors, data.unlabelled, settings, spec, out=part, resume=resume, log=log)
        codec, before = first.codec, validation.measure(first.codec, Encoded.of(first.codec, vectors))
    else:
        codec, before = best_start(vectors, data, settings, spec, validation)
    lines = Lines(None if out is None else out / LOG, resume, log)
    lines({"epoch": 0} | before.line)
    trainer = Trainer(codec, vectors, data, validation, settings, out, lines)
    best = trainer.run(before, resume)
    codec = from_spec(spec).load_state(best.state)
    after = validation.measure(codec, Encoded.of(codec, vectors)) if best.epoch else before
    trained = judge(codec, before, after, best.epoch, data)
    if first is not None and not trained.low > 0:
        trained = without_labels(first, trained)
    if out is not None:
        finish(out, trained, settings, lines.all)
    return trained


def check(vectors: Vectors, data: TrainingQueries, settings: Settings, spec: str) -> None:
    """Raise `InvalidArgumentError` when the parts do not fit together."""
    codec, name = from_spec(spec), METHODS[settings.method][0]
    if type(codec).__name__ != name:
        raise InvalidArgumentError(f"{settings.method} trains {name} codecs, such as {name}48. Got {spec!r}.")
    if getattr(codec, "tree", False) and settings.reassign:
        raise InvalidArgumentError(
            f"{spec} is too slow to encode for training that moves the codes. "
            f"Train {moving(codec)}, or leave out 'reassign'."
        )
    for queries in (data.queries, data.validation):
        if queries.shape[1] != vectors.dim:
            raise InvalidArgumentError(
                f"The documents have {vectors.dim} dimensions and the queries {queries.shape[1]}. "
                "Embed both by one model."
            )
    if not len(data.queries):
        raise InvalidArgumentError("There is no query to train with. Give --queries, or let --make make some.")


def moving(codec: Compressor) -> str:
    """Return the spec of a codec like this one whose codes can move."""
    return str(type(codec)(**{**codec.config, "tree": False}))


def best_start(
    vectors: Vectors, data: TrainingQueries, settings: Settings, spec: str, validation: Validation
) -> tuple[Compressor, Measured]:
    """Return the better of the codecs fitted without and with the training queries, and what it reaches."""
    sample = vectors.sample(FIT_ROWS, np.random.default_rng([settings.seed, 0x5A]))
    found = []
    for queries in (None, data.queries):
        codec = from_spec(spec).fit(sample, queries=queries, seed=settings.seed)
        found.append((codec, validation.measure(codec, Encoded.of(codec, vectors))))
    return max(found, key=lambda each: each[1].mean)


def judge(codec: Compressor, before: Measured, after: Measured, epoch: int, data: TrainingQueries) -> Trained:
    """Say what came of it."""
    differences: NDArray[np.float64] = after.by_query - before.by_query
    half = 1.96 * differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else np.inf
    low, high = float(differences.mean() - half), float(differences.mean() + half)
    counted = f"{len(before.by_query)} held-out queries"
    if epoch:
        verdict = (
            f"Training helped: {before.name} {before.mean:.4f} -> {after.mean:.4f} on {counted} "
            f"(difference {low:+.4f} to {high:+.4f}), best after epoch {epoch}."
        )
    else:
        verdict = (
            f"Training did not help on {counted}: no epoch is above {before.name} {before.mean:.4f}. "
            "The untrained quantizer is kept."
        )
    return Trained(
        codec, before.name, before.mean, after.mean, epoch, low, high, len(data.queries), len(data.validation), verdict
    )


def without_labels(first: Trained, then: Trained) -> Trained:
    """Return what was trained without labels in the place of what labels made of it, and say so."""
    verdict = (
        f"{first.verdict} Labels did not help: {then.measure} {then.start:.4f} -> {then.value:.4f} at best (difference "
        f"{then.low:+.4f} to {then.high:+.4f}). What was trained without them is kept."
    )
    return replace(first, verdict=verdict)


class Lines:
    """The log: JSON lines in memory and, with a path, in a file; a resumed run goes on with the lines it has."""

    def __init__(self, path: Path | None, resume: bool, tell: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.tell = path, tell
        kept = path.read_text(encoding="utf-8").splitlines() if resume and path is not None and path.is_file() else []
        self.all: list[dict[str, Any]] = [json.loads(line) for line in kept]

    def __call__(self, line: dict[str, Any]) -> None:
        """Add a line in place of those from its epoch on, which a resumed run does again; the start replaces itself."""
        epoch = line["epoch"]
        kept = [old for old in self.all if old["epoch"] < epoch or (epoch == 0 and old["epoch"] > 0)]
        self.all = sorted([*kept, line], key=lambda each: int(each["epoch"]))
        if self.path is not None:
            write_bytes(self.path, "".join(json.dumps(each) + "\n" for each in self.all).encode())
        self.tell(line)


def finish(out: Path, trained: Trained, settings: Settings, lines: list[dict[str, Any]]) -> None:
    """Write the codec, the report and the plot."""
    save_codec(out, trained.codec)
    body = {name: value for name, value in vars(trained).items() if name != "codec"}
    body = {"spec": trained.codec.spec, "code_bytes": trained.codec.code_size, **body, "settings": asdict(settings)}
    write_bytes(out / REPORT, (json.dumps(body, indent=2) + "\n").encode())
    plot(out / PLOT, lines, trained.measure)


def plot(path: Path, lines: list[dict[str, Any]], measure: str) -> bool:
    """Draw the loss and the validation by epoch; return False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6, 4), layout="constrained")
    left = figure.subplots()
    epochs = [line["epoch"] for line in lines]
    left.plot(epochs, [float(line[measure]) for line in lines], color="tab:blue", marker="o", label=measure)
    left.set_xlabel("epoch")
    left.set_ylabel(measure, color="tab:blue")
    right = left.twinx()
    right.plot(epochs[1:], [float(line["loss"]) for line in lines[1:]], color="tab:orange", label="loss")
    right.set_ylabel("loss", color="tab:orange")
    figure.savefig(path, dpi=120)
    return True
