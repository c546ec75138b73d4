"""Exact float32 search: the reference of every comparison, and the judge where nothing is judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_metric, normalized
from ragq.eval.metrics import overlap, rank_biased_overlap
from ragq.select import merge_topk, topk

__all__ = ["Exact"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Exact:
    """Exact answers to the queries of a data set.

    Attributes
    ----------
    documents : ndarray of float32, shape (n, dim)
    queries : ndarray of float32, shape (q, dim)
    metric : str
        ``ip``, ``cosine`` or ``l2``.
    scores, rows : ndarray, shape (q, depth)
        The exact top `depth`.
    """

    documents: Floats
    queries: Floats
    metric: str
    scores: Floats
    rows: Rows

    @classmethod
    def search(cls, documents: Floats, queries: Floats, depth: int, metric: str = "cosine") -> Exact:
        """Find the exact top `depth` rows of every query, at most all rows."""
        check_metric(metric)
        depth = min(depth, len(documents))
        parts = []
        for start in range(0, len(documents), CHUNK_ROWS):
            block = np.asarray(documents[start : start + CHUNK_ROWS], np.float32)
            scores, rows = topk(_scores(queries, block, metric), min(depth, len(block)))
            parts.append((scores, np.where(rows >= 0, rows + start, -1)))
        return cls(documents, queries, metric, *merge_topk(parts, depth))

    def agreement(self, rows: Rows, k: int) -> NDArray[np.float64]:
        """Return the tie-aware Recall@k of `rows`, shape (q, at least k), against the exact top `k`, by query."""
        k = min(k, self.rows.shape[1])
        kept = rows[:, :k]
        exact = np.empty(kept.shape, np.float32)
        for i, found in enumerate(kept):
            documents = np.asarray(self.documents[np.maximum(found, 0)])
            exact[i] = _scores(self.queries[i : i + 1], documents, self.metric)[0]
        return overlap(exact, kept, self.scores[:, k - 1], k)

    def rank_biased_overlap(self, rows: Rows, p: float = 0.9) -> NDArray[np.float64]:
        """Return the rank-biased overlap of `rows` with the exact ranking, by query."""
        depth = min(rows.shape[1], self.rows.shape[1])
        lists = [[int(r) for r in found[:depth] if r >= 0] for found in rows]
        pairs = zip(lists, self.rows[:, :depth].tolist(), strict=True)
        return np.array([rank_biased_overlap(found, best, p) for found, best in pairs])


def _scores(queries: Floats, documents: Floats, metric: str) -> Floats:
    if metric == "cosine":
        return normalized(queries) @ normalized(documents).T
    scores = queries @ documents.T
    if metric == "l2":
        scores = 2 * scores - (queries**2).sum(1)[:, None] - (documents**2).sum(1)[None, :]
    return scores
