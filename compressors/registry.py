"""The table of stages: adding a codec adds one line here."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from ragq.compressors.spec import form_shape
from ragq.errors import InvalidArgumentError

if TYPE_CHECKING:
    from ragq.compressors.base import Stage

__all__ = ["MODULES", "register", "stage_classes"]

# class -> module of ragq.compressors, in the order of `ragq codecs`
MODULES = {
    "F32": "floats",
    "F16": "floats",
    "BF16": "floats",
    "FP8": "minifloat",
    "FP8e5m2": "minifloat",
    "FP4": "fp4",
    "INT8": "affine",
    "INT4": "affine",
    "BIN": "binary",
    "PCA": "reduction",
    "RP": "reduction",
    "MRL": "reduction",
    "AE": "autoencoder",
    "RR": "rotation",
    "TQ": "turboquant",
    "TQprod": "turboquant",
    "QJL": "qjl",
    "RBQ": "rabitq",
    "SAQ": "saq",
    "LVQ": "lvq",
    "LeanVec": "leanvec",
    "SM2": "sm2",
    "E8": "lattice",
    "FP4A": "alphabet",
    "PQ": "pq",
    "OPQ": "opq",
    "RQ": "rq",
    "VPQ": "vpq",
    "VTQ": "vtq",
    "ITQ": "itq",
    "DistillVQ": "learned.distill_vq",
    "JPQ": "learned.jpq",
    "MoPQ": "learned.mopq",
    "RepCONC": "learned.repconc",
    "BPR": "learned.bpr",
}

_registered: list[type[Stage]] = []


def register(cls: type[Stage]) -> type[Stage]:
    """Add a stage class from outside ragq; usable as a decorator.

    Raises
    ------
    InvalidArgumentError
        Its class name or one of its forms is taken.
    """
    taken = {name for other in stage_classes() for name in (other.__name__.lower(), *map(form_shape, other.forms))}
    for name in (cls.__name__, *cls.forms):
        if form_shape(name) in taken:
            raise InvalidArgumentError(f"A codec named '{name}' is already registered.")
    _registered.append(cls)
    return cls


@cache
def _built_in() -> tuple[type[Stage], ...]:
    return tuple(getattr(import_module(f"ragq.compressors.{module}"), name) for name, module in MODULES.items())


def stage_classes() -> list[type[Stage]]:
    """Return every stage class, built in and registered."""
    return [*_built_in(), *_registered]
