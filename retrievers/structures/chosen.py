"""Rows that somebody chose: their scores by the codes of the index, wherever the rows lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.refine import Refined
from ragq.compressors.scorers import DenseScorer
from ragq.layouts import BLOCK_ROWS, Block
from ragq.retrievers import kernels
from ragq.retrievers.kernels import cpu
from ragq.retrievers.structures.base import Found, Prepared
from ragq.select import topk
from ragq.shards import Shard

__all__ = ["Ranker", "codes_at"]

Bytes = NDArray[np.uint8]


class Ranker:
    """Scores chosen rows of a snapshot; of a refined codec by the fine codes.

    Parameters
    ----------
    shards : sequence of Shard
        Of one layout; rows can be ranked only when there is one.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.starts = np.concatenate([[0], np.cumsum([shard.rows for shard in shards])]).astype(np.int64)

    @cached_property
    def blocks(self) -> list[Block]:
        """The codes of the shards."""
        return [shard.block for shard in self.shards]

    @cached_property
    def columns(self) -> list[Bytes]:
        """The columns whose rows are row codes as they are, one a shard; empty for layouts without."""
        layout = self.blocks[0].layout
        name = "fine" if layout.fine else "codes" if layout.kind == "rows" and not layout.factors else ""
        return [np.ascontiguousarray(block.columns[name]) for block in self.blocks] if name else []

    def topk(self, prepared: Prepared, chosen: NDArray[np.int64], k: int, threads: int) -> Found:
        """Score rows that were chosen for each query and return the best.

        Parameters
        ----------
        prepared : Prepared
        chosen : ndarray of int64, shape (n_queries, n)
            Rows of the snapshot; -1 where there is none.
        k : int
        threads : int

        Returns
        -------
        scores, rows : ndarray, shape (n_queries, k)
            As `Structure.search` gives them.
        """
        if isinstance(prepared.compressor, Refined):
            prepared = Prepared(prepared.compressor.fine, prepared.queries, prepared.metric)
        scorer = prepared.all
        if not (self.columns and isinstance(scorer, DenseScorer) and kernels.implementation() in kernels.SETS):
            return self.one_by_one(prepared, chosen, k)
        return cpu.dense_rows(
            kernels.implementation(),
            self.columns,
            self.starts,
            chosen,
            scorer.queries,
            dtype=scorer.dtype,
            factors=scorer.factors,
            levels=scorer.levels,
            k=k,
            bias=scorer.bias,
            shift_weight=scorer.shift_weight,
            threads=threads,
        )

    def one_by_one(self, prepared: Prepared, chosen: NDArray[np.int64], k: int) -> Found:
        """Do `topk` by the scorer's own formula: for any compressor, and the reference."""
        scores, rows = np.full((len(chosen), k), -np.inf, np.float32), np.full((len(chosen), k), -1, np.int64)
        for i, candidates in enumerate(chosen):
            candidates = np.sort(candidates[candidates >= 0])  # in row order, which settles ties
            best = topk(prepared.one(i).score(self.codes(candidates)), k)
            scores[i], rows[i] = best[0][0], np.where(best[1][0] >= 0, np.append(candidates, -1)[best[1][0]], -1)
        return scores, rows

    def codes(self, rows: NDArray[np.int64]) -> Bytes:
        """Return the row codes of ascending rows, the fine ones where there are two."""
        ends = np.searchsorted(rows, self.starts)
        parts = []
        for s, block in enumerate(self.blocks):
            own = rows[ends[s] : ends[s + 1]] - self.starts[s]
            parts.append(self.columns[s][own] if self.columns else codes_at(block, own))
        return np.concatenate(parts)


def codes_at(block: Block, rows: NDArray[np.int64]) -> Bytes:
    """Return the row codes of some rows of a block, ``(len(rows), code_size)``; see `Block.codes` for ranges."""
    layout = block.layout
    groups, places = np.divmod(rows, BLOCK_ROWS)

    def column(name: str) -> Bytes:
        stored = block.columns[name]
        blocked = name in ("high", "low", "plane0") or (layout.kind == "blocks" and name == "codes")
        return stored.reshape(-1, stored.shape[1], BLOCK_ROWS)[groups, :, places] if blocked else stored[rows]

    parts = {name: column(name) for name in layout.columns}
    if layout.kind == "nibbles":
        high, low = (nibbles(parts.pop(name), layout.width) for name in ("high", "low"))
        parts = {"codes": high << np.uint8(4) | low} | parts
    return np.concatenate(list(parts.values()), axis=1)


def nibbles(pairs: Bytes, m: int) -> Bytes:
    """Return the `m` 4-bit codes of rows of bytes that hold two each, the first in the low half."""
    return np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(pairs), 2 * pairs.shape[1])[:, :m]
