"""Embeddings by row: what training reads of the documents, without holding them in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_embeddings, normalized
from ragq.pipelines.readers import open_embeddings
from ragq.select import merge_topk, topk

__all__ = ["Vectors"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
BLOCK_ROWS = 16_384
QUERY_ROWS = 1024  # whose scores of a block are in memory at once


class Vectors:
    """Document embeddings, read row by row.

    Parameters
    ----------
    x : ndarray of float, shape (n, dim)
        In memory or memory-mapped; float16, float32 or float64.
    normalize : bool
        Scale rows to unit length as they are read.
    """

    def __init__(self, x: NDArray[Any], normalize: bool = True) -> None:
        self._x, self.normalize = x, normalize

    @classmethod
    def open(cls, spec: Any, normalize: bool, scratch: Path) -> Vectors:
        """Open ready embeddings (see `ragq.pipelines.readers.open_embeddings`).

        An array or a ``.npy`` file is read in place. A column of a table, which has no quick way to a row, is copied
        to `scratch` first.
        """
        opened = open_embeddings(spec)
        if isinstance(spec, np.ndarray):
            return cls(spec, normalize)
        if isinstance(spec, (str, Path)) and str(spec).endswith(".npy"):
            return cls(np.load(spec, mmap_mode="r", allow_pickle=False), normalize)
        return cls.spool(opened.batches(), opened.shape, normalize, scratch)

    @classmethod
    def spool(cls, blocks: Iterator[Floats], shape: tuple[int, int], normalize: bool, scratch: Path) -> Vectors:
        """Write blocks of rows to a file and read them from there."""
        scratch.parent.mkdir(parents=True, exist_ok=True)
        copy = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for block in blocks:
            copy[start : start + len(block)] = block
            start += len(block)
        copy.flush()
        return cls(np.load(scratch, mmap_mode="r", allow_pickle=False), normalize)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._x)

    @property
    def dim(self) -> int:
        """Dimensions of a row."""
        return int(self._x.shape[1])

    def take(self, rows: Rows) -> Floats:
        """Return rows as checked float32, `(len(rows), dim)`."""
        x = check_embeddings(self._x[rows], name="embeddings")
        return normalized(x) if self.normalize else x

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[int, Floats]]:
        """Yield the number of the first row of each block with the block."""
        for start in range(0, len(self), size):
            yield start, self.take(np.arange(start, min(start + size, len(self))))

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        """Return `n` random rows in their order, or all when there are no more."""
        rows = np.arange(len(self)) if n >= len(self) else np.sort(rng.choice(len(self), n, replace=False))
        return self.take(rows)

    def search(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Return the exact best `k` rows of each query by inner product: scores and rows, (n_queries, k)."""
        k = min(k, len(self))
        found = [[topk(np.empty((len(queries), 0), np.float32), k)]]
        for start, block in self.blocks():
            parts = [topk(queries[a : a + QUERY_ROWS] @ block.T, k) for a in range(0, len(queries), QUERY_ROWS)]
            scores = np.concatenate([s for s, _ in parts])
            rows = np.concatenate([r for _, r in parts])
            found = [[merge_topk([*found[0], (scores, np.where(rows >= 0, rows + start, -1))], k)]]
        return found[0][0]
