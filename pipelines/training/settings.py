"""How each method trains: the numbers that its paper gives, brought to unit-length embeddings."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ragq.absent import require
from ragq.checks import check_int
from ragq.errors import InvalidArgumentError

__all__ = ["METHODS", "Settings", "settings_for", "trainer_options"]


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a training run; JSON values.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    loss : str
        ``listwise`` (Distill-VQ), ``lambda`` (JPQ) or ``contrastive`` (MoPQ, RepCONC).
    epochs, batch : int
        Passes over the queries, and queries of a step.
    queries_per_epoch : int
        Most queries of an epoch; which ones is drawn again each time, and the user's own are always among them.
    temperature : float
        Scores are divided by it before the softmax; .05 suits unit-length embeddings.
    codebook_rate, map_rate, document_rate : float
        Learning rates of Adam, relative to the mean size of what they move.
    depth : int
        How deep in the teacher's ranking, and in the current index's, candidates are drawn from.
    whole : int
        A corpus of at most so many documents is scored whole at every step, which leaves nothing to sample.
    top, hard, random : int
        Otherwise, candidates of a query from the teacher's ranking and from the current index's, and random ones of a
        batch.
    positives : int
        Without labels, so many of the teacher's first documents are taken to be relevant.
    labels : float
        Weight of the contrastive loss over labelled queries, beside the listwise one.
    cutoff : int
        Ranks beyond it weigh nothing in the lambda loss.
    hardest : int
        Negatives of the highest scores that the contrastive loss counts; 0 for all.
    reconstruction : float
        Weight of the codes' squared error.
    reassign : bool
        Train what makes the codes as well, and encode the documents again after every epoch.
    sinkhorn : int
        Iterations that make the assignment of a batch even; 0 assigns to the nearest codeword.
    epsilon : float
        Of the Sinkhorn iterations.
    simvq, rotation_trick : bool
        Train a matrix in front of a frozen codebook; rotate gradients through the quantizer.
    held_out : float
        Share of the queries that validate and never train.
    patience : int
        Epochs without a better validation after which training stops.
    seed : int
    """

    method: str = "distill-vq"
    loss: str = "listwise"
    epochs: int = 20
    batch: int = 64
    queries_per_epoch: int = 10_000
    temperature: float = 0.1
    codebook_rate: float = 0.02
    map_rate: float = 0.01
    document_rate: float = 0.01
    depth: int = 100
    whole: int = 0
    top: int = 12
    hard: int = 8
    random: int = 256
    positives: int = 1
    labels: float = 0.02  # the cross entropy is some ten times the divergence
    cutoff: int = 100
    hardest: int = 0
    reconstruction: float = 0.0
    reassign: bool = False
    sinkhorn: int = 0
    epsilon: float = 0.003
    simvq: bool = False
    rotation_trick: bool = False
    held_out: float = 0.2
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidArgumentError(f"'method' must be one of {', '.join(METHODS)}. Got {self.method!r}.")
        for name in ("epochs", "batch", "depth", "queries_per_epoch", "positives", "cutoff", "patience"):
            check_int(getattr(self, name), name, 1)
        for name in ("whole", "top", "hard", "random", "hardest", "sinkhorn", "seed"):
            check_int(getattr(self, name), name, 0)
        if not self.temperature > 0:
            raise InvalidArgumentError(f"'temperature' must be above 0. Got {self.temperature!r}.")
        if not 0 < self.held_out < 1:
            raise InvalidArgumentError(f"'held_out' must be between 0 and 1. Got {self.held_out!r}.")


# method -> (class of the codec, what differs from the defaults)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "distill-vq": (
        "DistillVQ",
        {
            "batch": 256,
            "queries_per_epoch": 6000,
            "temperature": 0.05,
            "whole": 8192,
            "random": 2048,
            "patience": 10,  # rates fall to the end, and the last epochs are the best ones
        },
    ),
    "jpq": ("JPQ", {"loss": "lambda", "positives": 3}),
    "mopq": (
        "MoPQ",
        {
            "loss": "contrastive",
            "batch": 512,
            "codebook_rate": 0.003,  # faster, the pseudo-labels of made queries are learned by heart
            "map_rate": 0.001,
            "document_rate": 0.001,
            "top": 1,
            "hard": 0,
            "reconstruction": 1e-8,
            "reassign": True,
        },
    ),
    "repconc": (
        "RepCONC",
        {
            "loss": "contrastive",
            "batch": 512,
            "top": 1,
            "hard": 2,
            "hardest": 12,
            "reconstruction": 1e-4,
            "reassign": True,
            "sinkhorn": 20,
        },
    ),
    "bpr": ("BPR", {"reassign": True}),
}


def settings_for(method: str, **changes: Any) -> Settings:
    """Return a method's own settings, with `changes`.

    Raises
    ------
    InvalidArgumentError
        An unknown method or setting, or a value out of range.
    """
    if method not in METHODS:
        raise InvalidArgumentError(f"'method' must be one of {', '.join(METHODS)}. Got {method!r}.")
    known = {field.name for field in fields(Settings)}
    if unknown := sorted(set(changes) - known):
        raise InvalidArgumentError(f"There is no setting '{unknown[0]}'. There are {', '.join(sorted(known))}.")
    return replace(Settings(method=method, **METHODS[method][1]), **changes)


def trainer_options(folder: Path, epochs: int, batch: int, rows: int, rate: float, seed: int) -> dict[str, Any]:
    """Return the arguments of sentence-transformers' trainer that do not depend on what is trained.

    Raises
    ------
    MissingExtraError
        What the trainer needs is not installed.
    """
    require("train", "accelerate", "datasets")
    import torch

    return {
        "output_dir": str(folder),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": min(batch, rows),
        "learning_rate": rate,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
