"""Words beside vectors: BM25 over the passages of a snapshot, and the fusion of two rankings.

One vector cannot hold every fact of a passage (Weller et al. 2025, "On the theoretical limitations of embedding-based
retrieval", LIMIT); the words can. bm25s holds the term matrix, in memory, for one snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.errors import InvalidArgumentError, missing_extra
from ragq.snapshot import Snapshot
from ragq.types import passage_text

__all__ = ["FUSIONS", "Lexical", "distribution_fusion", "fuse", "reciprocal_rank_fusion"]

Floats = NDArray[np.float32]
Ranking = tuple[NDArray[np.int64], Floats]  # rows and their scores, best first
RANK_CONSTANT = 60


class Lexical:
    """BM25 over the titles and texts of every passage of a snapshot.

    Memory grows with the text; build one a snapshot and keep it.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        try:
            import bm25s
        except ImportError:
            raise missing_extra("bm25s", "hybrid") from None
        self._tokenize: Callable[..., Any] = bm25s.tokenize
        texts = [
            passage_text(title, text)
            for shard in snapshot.shards
            for batch in shard.docs_batches(["title", "text"])
            for title, text in zip(batch.column("title").to_pylist(), batch.column("text").to_pylist(), strict=True)
        ]
        self._rows = len(texts)
        tokens = bm25s.tokenize(texts, stopwords="en", show_progress=False)
        self._model = bm25s.BM25() if tokens.vocab else None
        if self._model is not None:
            self._model.index(tokens, show_progress=False)

    def scores(self, query: str) -> Floats:
        """Return the BM25 score of every row, float32 of shape (rows,); 0 where no word is shared."""
        words = self._tokenize(query, stopwords="en", show_progress=False, return_ids=False)[0]
        if self._model is None or not words:
            return np.zeros(self._rows, np.float32)
        return np.asarray(self._model.get_scores(words), np.float32)

    def search(self, query: str, k: int, also: NDArray[np.int64], allowed: NDArray[np.bool_] | None = None) -> Ranking:
        """Rank the best `k` rows that share a word with the query and may be returned, and the rows `also`.

        The rows that another ranking found come with their true scores, 0 where no word is shared: the distance to them
        tells how much a match is worth.
        """
        scores = self.scores(query)
        matches = np.flatnonzero(scores > 0 if allowed is None else (scores > 0) & allowed)
        best = matches[np.argsort(-scores[matches], kind="stable")[:k]]
        rows = np.union1d(best, also)
        order = np.argsort(-scores[rows], kind="stable")
        return rows[order].astype(np.int64), scores[rows[order]]


def reciprocal_rank_fusion(rankings: list[Ranking]) -> Ranking:
    """Sum ``1 / (60 + rank)`` over rankings (Cormack et al. 2009); needs no scores that compare."""
    ranks = [(rows, RANK_CONSTANT + 1 + np.arange(len(rows), dtype=np.float32)) for rows, _ in rankings]
    reciprocal = [(rows, np.reciprocal(rank)) for rows, rank in ranks]
    return fuse(reciprocal, lowest=[0.0] * len(rankings))


def distribution_fusion(rankings: list[Ranking]) -> Ranking:
    """Sum standard scores: how many standard deviations a row stands above its ranking's mean.

    A ranking that tells two passages from all others counts for more than one that tells none apart. A row that a
    ranking lacks gets its lowest score.
    """
    standard = []
    for rows, scores in rankings:
        spread = float(scores.std()) if len(scores) else 0.0
        values = (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)
        standard.append((rows, values.astype(np.float32)))
    return fuse(standard, lowest=[float(values.min()) if len(values) else 0.0 for _, values in standard])


def fuse(rankings: list[Ranking], lowest: list[float]) -> Ranking:
    """Sum the scores of rankings, a row that one lacks at its `lowest`; equal sums in row order."""
    rows = np.unique(np.concatenate([found for found, _ in rankings]))
    total = np.zeros(len(rows), np.float32)
    for (found, scores), floor in zip(rankings, lowest, strict=True):
        values = np.full(len(rows), floor, np.float32)
        values[np.searchsorted(rows, found)] = scores
        total += values
    order = np.argsort(-total, kind="stable")
    return rows[order], total[order]


FUSIONS: dict[str, Callable[[list[Ranking]], Ranking]] = {
    "score": distribution_fusion,
    "rrf": reciprocal_rank_fusion,
}


def fusion(name: str | bool) -> Callable[[list[Ranking]], Ranking]:
    """Return a fusion by name; True is the default."""
    key = "score" if name is True else name
    if key not in FUSIONS:
        raise InvalidArgumentError(f"'hybrid' must be true or one of {', '.join(FUSIONS)}. Got {name!r}.")
    return FUSIONS[str(key)]
