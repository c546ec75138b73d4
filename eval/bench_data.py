"""Vectors for the benchmarks: `scale` of the shared data where it is found, else seeded ones, any number of rows.

Rows beyond those of the data are blends of two of its rows, ``x_i + x_j / 2`` normalised, made when they are asked for:
no copies, so that neither ties nor near-duplicates make a top-k easier than it is, and no memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import normalized

__all__ = ["Source", "Vectors", "load_source"]

Floats = NDArray[np.float32]
SCALE = Path("scale/minilm-101k.f16.npy")
SCALE_QUERIES = 1000
STRIDE = 7919  # a prime: blend r of row i takes row i + r * STRIDE as its second
CHUNK_ROWS = 65_536
TRAIN_ROWS = 20_000
MADE_ROWS = 100_000


@dataclass(frozen=True)
class Source:
    """Unit vectors to draw from.

    Attributes
    ----------
    name : str
    base : ndarray of float32, shape (n, dim)
    queries : ndarray of float32, shape (q, dim)
        Not among the rows.
    """

    name: str
    base: Floats
    queries: Floats


@dataclass(frozen=True)
class Vectors:
    """`rows` vectors of a source, as an array that is computed where it is read."""

    source: Source
    rows: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: slice | NDArray[np.integer[Any]]) -> Floats:
        numbers = np.arange(self.rows)[index] if isinstance(index, slice) else np.asarray(index)
        base = self.source.base
        turn, first = np.divmod(numbers, len(base))
        vectors = base[first]
        blended = turn > 0
        if blended.any():
            second = (first[blended] + turn[blended] * STRIDE) % len(base)
            vectors[blended] = normalized(vectors[blended] + base[second] / 2)
        return vectors

    @property
    def name(self) -> str:
        """What the rows are, for the report."""
        return self.source.name if self.rows <= len(self.source.base) else f"{self.source.name}, blended"

    @property
    def sample(self) -> Floats:
        """Rows to train on."""
        return self[: min(self.rows, TRAIN_ROWS)]

    def chunks(self) -> Iterator[Floats]:
        """Yield all rows, some at a time."""
        for start in range(0, self.rows, CHUNK_ROWS):
            yield self[start : start + CHUNK_ROWS]


def load_source(n_queries: int, seed: int = 0) -> Source:
    """Return `scale` of ``$RAGQ_SHARED/data`` or ``../shared/data`` where there is one, else made vectors.

    The made ones are clusters in 64 latent dimensions, turned at random into 384 and normalised, as embeddings are:
    the sign of every dimension says something.
    """
    root = os.environ.get("RAGQ_SHARED")
    file = (Path(root) if root else Path("../shared")) / "data" / SCALE
    if file.is_file():
        stored = np.load(file, mmap_mode="r")
        rows = normalized(np.asarray(stored, np.float32))
        return Source("scale", rows[:-SCALE_QUERIES], rows[-SCALE_QUERIES:][:n_queries])
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 2_000, MADE_ROWS + n_queries)
    latent = rng.standard_normal((2_000, 64), np.float32)[which]
    latent += 0.7 * rng.standard_normal((len(which), 64), np.float32)
    rows = normalized(latent @ rng.standard_normal((64, 384), np.float32))
    return Source("synthetic", rows[:MADE_ROWS], rows[MADE_ROWS:])
