"""The training loop: steps, epochs, checkpoints, early stop. It never touches a file but its own checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ragq.compressors import Compressor, from_spec
from ragq.compressors.usage import codebook_use
from ragq.errors import InvalidArgumentError
from ragq.pipelines.training import losses
from ragq.pipelines.training.data import Pools, TrainingQueries
from ragq.pipelines.training.settings import Settings
from ragq.pipelines.training.students import make_student
from ragq.pipelines.training.validation import Encoded, Measured, Validation
from ragq.pipelines.training.vectors import Vectors
from ragq.storage import write_bytes

__all__ = ["CHECKPOINT", "Trainer"]

CHECKPOINT = "checkpoint.safetensors"
WARM_UP = 50  # steps
CLIP = 1.0  # of the gradient's length
SAMPLE = 4096  # documents that dead codewords move to
SAMPLED = 0.2  # of the rates of a method for whole corpora, where a step sees few of the documents of each codeword
Log = Callable[[dict[str, Any]], None]


@dataclass
class Best:
    """The best epoch so far.

    Attributes
    ----------
    epoch : int
        0 is the start.
    value : float
    state : dict of str to ndarray
        The codec's.
    """

    epoch: int
    value: float
    state: dict[str, NDArray[Any]]


class Trainer:
    """One run.

    Parameters
    ----------
    codec : Compressor
        The start, fitted; it is not written to.
    vectors : Vectors
    data : TrainingQueries
    validation : Validation
    settings : Settings
    folder : Path, optional
        Where the checkpoint goes; none is written without it.
    log : callable
        Given a JSON object an epoch.
    """

    def __init__(
        self,
        codec: Compressor,
        vectors: Vectors,
        data: TrainingQueries,
        validation: Validation,
        settings: Settings,
        folder: Path | None = None,
        log: Log = lambda line: None,
    ) -> None:
        self.codec = deepcopy(codec)
        self.vectors, self.data, self.validation, self.settings = vectors, data, validation, settings
        self.folder, self.log = folder, log
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student = make_student(codec, settings).to(self.device)
        self.optimizer = torch.optim.Adam(self.student.groups(settings))
        self.pools = Pools(vectors, data, settings)
        share = SAMPLED if settings.whole and not self.pools.whole else 1.0
        self.rates = [share * group["lr"] for group in self.optimizer.param_groups]
        self.documents = self._tensor(vectors.take(np.arange(len(vectors)))) if self.pools.whole else None
        self.steps = settings.epochs * len(self.pools.batches(0))
        self.epoch = self.stale = 0
        self.best: Best | None = None

    def run(self, start: Measured, resume: bool = False) -> Best:
        """Train from the start, or from the checkpoint, and return the best epoch.

        Parameters
        ----------
        start : Measured
            What the untrained codec reaches.
        resume : bool
            Go on from the checkpoint, when there is one of the same run.
        """
        self.best = Best(0, start.mean, dict(self.codec.state))
        if resume:
            self._load()
        encoded = Encoded.of(self.codec, self.vectors)
        while self.epoch < self.settings.epochs and self.stale < self.settings.patience:
            began = time.perf_counter()
            loss = self._epoch(encoded)
            reseeded = self._care(encoded)
            self.student.write(self.codec)
            if self.student.moves_documents:
                encoded = Encoded.of(self.codec, self.vectors)
            measured = self.validation.measure(self.codec, encoded)
            self.epoch += 1
            improved = measured.mean > self.best.value
            self.stale = 0 if improved else self.stale + 1
            if improved:
                self.best = Best(self.epoch, measured.mean, dict(self.codec.state))
            line = {"epoch": self.epoch, "loss": round(loss, 6)} | measured.line | {"best": improved}
            line |= (codebook_use(encoded.block) or {}) | {"reseeded": reseeded}
            self.log(line | {"seconds": round(time.perf_counter() - began, 2)})
            self._save()
        return self.best

    def _epoch(self, encoded: Encoded) -> float:
        """Run the steps of an epoch against the index as it is at its beginning; return the mean loss."""
        batches = self.pools.batches(self.epoch)
        asked = np.sort(np.concatenate(batches))
        hard = np.full((len(self.data.queries), min(self.settings.depth, len(self.vectors))), -1, np.int64)
        if self.settings.hard and not self.pools.whole:
            hard[asked] = encoded.search(self.codec, self.data.queries[asked], self.settings.depth)
        total = 0.0
        for step, queries in enumerate(batches):
            done = self.epoch * len(batches) + step
            share = min(1.0, (done + 1) / WARM_UP) * (1 - done / self.steps)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * share
            loss = self._loss(queries, self.pools.pool(queries, hard, self.epoch, step), encoded)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), CLIP)
            self.optimizer.step()
            total += loss.item()
        return total / len(batches)

    def _loss(self, queries: NDArray[np.int64], rows: NDArray[np.int64], encoded: Encoded) -> Tensor:
        s = self.settings
        if self.documents is None:
            documents, codes = self._tensor(self.vectors.take(rows)), encoded.codes[rows]
        else:
            documents, codes = self.documents, encoded.codes
        asked = self._tensor(self.data.queries[queries])
        scores, reconstruction = self.student.score(asked, documents, codes)
        loss = self._ranking(scores, asked, documents, queries, rows)
        if self.data.margins is not None:
            places = np.searchsorted(rows, np.maximum(self.data.margins.rows[queries], 0))
            places = np.where(self.data.margins.rows[queries] >= 0, places, -1)
            wanted = self._tensor(self.data.margins.scores[queries])
            loss = loss + losses.margin_mse(scores, torch.from_numpy(places).to(self.device), wanted) / s.temperature**2
        return loss + s.reconstruction * reconstruction

    def _ranking(
        self, scores: Tensor, asked: Tensor, documents: Tensor, queries: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Tensor:
        s = self.settings
        if s.loss == "listwise":
            loss = losses.listwise(scores, asked @ documents.T, s.temperature)
            if self.data.labels and s.labels:
                relevant = torch.from_numpy(self.pools.labelled(queries, rows)).to(self.device)
                loss = loss + s.labels * losses.contrastive(scores, relevant, s.temperature)
            return loss
        relevant = torch.from_numpy(self.pools.positive(queries, rows)).to(self.device)
        if s.loss == "lambda":
            return losses.lambda_mrr(scores, relevant, s.temperature, s.cutoff)
        return losses.contrastive(scores, relevant, s.temperature, s.hardest or None)

    def _care(self, encoded: Encoded) -> int:
        """Re-seed dead codewords."""
        rng = np.random.default_rng([self.settings.seed, self.epoch, 3])
        return self.student.after_epoch(encoded.codes, self.vectors.sample(SAMPLE, rng), rng)

    def _tensor(self, x: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

    # checkpoints

    @property
    def _key(self) -> str:
        """What a checkpoint must have been made of for a run to go on from it."""
        shape = [len(self.vectors), self.vectors.dim, self.codec.spec, self.data.fingerprint]
        return json.dumps([asdict(self.settings), shape])

    def _save(self) -> None:
        if self.folder is None:
            return
        assert self.best is not None
        arrays = {f"student.{name}": t.cpu().numpy() for name, t in self.student.state_dict().items()}
        for i, parameter in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            state = self.optimizer.state[parameter]
            arrays |= {f"adam.{i}.{name}": np.atleast_1d(state[name].cpu().numpy()) for name in sorted(state)}
        arrays |= {f"codec.{name}": array for name, array in self.codec.state.items()}
        arrays |= {f"best.{name}": array for name, array in self.best.state.items()}
        arrays = {name: np.ascontiguousarray(np.atleast_1d(array)) for name, array in arrays.items()}
        where = {"epoch": self.epoch, "stale": self.stale, "best_epoch": self.best.epoch, "best": self.best.value}
        metadata = {"key": self._key, "where": json.dumps(where)}
        write_bytes(self.folder / CHECKPOINT, safetensors.numpy.save(arrays, metadata))

    def _load(self) -> None:
        """Take over a checkpoint; leave everything as it is when there is none.

        Raises
        ------
        InvalidArgumentError
            The checkpoint belongs to another run, or cannot be read.
        """
        if self.folder is None or not (path := self.folder / CHECKPOINT).is_file():
            return
        try:
            with safetensors.safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            where = json.loads(metadata["where"])
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            raise InvalidArgumentError(f"{path} cannot be read: {error}. Train again without --resume.") from None
        if metadata["key"] != self._key:
            raise InvalidArgumentError(
                f"{path} belongs to a run with other data or settings. Give the same ones, or train without --resume."
            )
        named = self.student.state_dict()
        learned = {name: torch.from_numpy(arrays[f"student.{name}"]).reshape(t.shape) for name, t in named.items()}
        self.student.load_state_dict(learned)
        for i, parameter in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            state = {k.split(".", 2)[2]: v for k, v in arrays.items() if k.startswith(f"adam.{i}.")}
            self.optimizer.state[parameter] = {
                name: torch.from_numpy(value)
                .reshape(() if name == "step" else parameter.shape)
                .to("cpu" if name == "step" else self.device)
                for name, value in state.items()
            }
        self.codec = from_spec(self.codec.spec).load_state(part(arrays, "codec"))
        self.epoch, self.stale = where["epoch"], where["stale"]
        self.best = Best(where["best_epoch"], where["best"], part(arrays, "best"))


def part(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Return the arrays whose names begin with a prefix, without it."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
