"""Fine codes: the second codes of a refined codec, read for the few rows that the first ones found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.scorers import DenseScorer
from ragq.retrievers import kernels
from ragq.retrievers.kernels import cpu
from ragq.retrievers.structures.base import Found, Prepared
from ragq.select import topk
from ragq.shards import Shard

__all__ = ["FineCodes"]


class FineCodes:
    """The fine codes of all rows of a snapshot, memory-mapped.

    Parameters
    ----------
    shards : sequence of Shard
        Of a refined codec; at least one.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.columns = [np.ascontiguousarray(shard.block.columns["fine"]) for shard in shards]
        self.starts = np.concatenate([[0], np.cumsum([shard.rows for shard in shards])]).astype(np.int64)

    def topk(self, prepared: Prepared, chosen: NDArray[np.int64], k: int, threads: int) -> Found:
        """Score rows that were chosen for each query and return the best.

        Parameters
        ----------
        prepared : Prepared
            For the fine compressor.
        chosen : ndarray of int64, shape (n_queries, n)
            Rows of the snapshot; -1 where there is none.
        k : int
        threads : int

        Returns
        -------
        scores, rows : ndarray, shape (n_queries, k)
            As `Structure.search` gives them.
        """
        scorer = prepared.all
        if not isinstance(scorer, DenseScorer) or kernels.implementation() not in kernels.SETS:
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
        """Do `topk` by the scorer's own formula: for any fine compressor, and the reference."""
        scores, rows = np.full((len(chosen), k), -np.inf, np.float32), np.full((len(chosen), k), -1, np.int64)
        for i, candidates in enumerate(chosen):
            candidates = np.sort(candidates[candidates >= 0])  # in row order, which settles ties
            best = topk(prepared.one(i).score(self._codes(candidates)), k)
            scores[i], rows[i] = best[0][0], np.where(best[1][0] >= 0, np.append(candidates, -1)[best[1][0]], -1)
        return scores, rows

    def _codes(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the fine codes of ascending rows."""
        ends = np.searchsorted(rows, self.starts)
        return np.concatenate(
            [column[rows[ends[s] : ends[s + 1]] - self.starts[s]] for s, column in enumerate(self.columns)]
        )
