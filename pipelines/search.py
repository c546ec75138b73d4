"""A search beyond the scan: more candidates, then fusion with words, expansion, reranking and selection.

The stages run in this order, each on the candidates of the one before; a stage that is not asked for costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ragq.checks import check_int
from ragq.errors import InvalidArgumentError
from ragq.pipelines.documents import fetch
from ragq.pipelines.expansion import EXPANSIONS, expanded
from ragq.pipelines.view import Masks, View
from ragq.retrievers.lexical import Ranking, fusion
from ragq.retrievers.rerank import load_reranker
from ragq.retrievers.selection import SELECTIONS, select
from ragq.types import passage_text

__all__ = ["Stages", "read_stages"]

CANDIDATES = 50


@dataclass(frozen=True)
class Stages:
    """What a search does besides the scan.

    Attributes
    ----------
    hybrid : bool or {'score', 'rrf'}
        Fuse with BM25.
    expand : {'neighbours', 'pagerank'} or None
        Add the nearest passages of the best candidates, see `ragq.pipelines.expansion`; ``pagerank`` also ranks all of
        them by a walk on their graph.
    rerank : Reranker, CrossEncoder, str or None
    select : {'mmr', 'coverage', 'unique'} or None
    fetch_k : int or None
        Candidates of the scan; by default 4 k, and 50 at least.
    """

    hybrid: bool | str = False
    expand: str | None = None
    rerank: Any = None
    select: str | None = None
    fetch_k: int | None = None

    def __post_init__(self) -> None:
        if self.hybrid:
            fusion(self.hybrid)
        if self.expand is not None and self.expand not in EXPANSIONS:
            raise InvalidArgumentError(f"'expand' must be one of {', '.join(EXPANSIONS)}. Got {self.expand!r}.")
        if self.select is not None and self.select not in SELECTIONS:
            raise InvalidArgumentError(f"'select' must be one of {', '.join(SELECTIONS)}. Got {self.select!r}.")
        if self.fetch_k is not None:
            check_int(self.fetch_k, "fetch_k", 1)

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.hybrid or self.expand or self.select or self.rerank is not None)

    def candidates(self, k: int) -> int:
        """Return how many candidates the scan must bring."""
        return (self.fetch_k or max(CANDIDATES, 4 * k)) if self.any else k

    def run(
        self,
        view: View,
        queries: Sequence[str] | None,
        k: int,
        rankings: list[Ranking],
        masks: Masks,
    ) -> list[Ranking]:
        """Take the scan's ranking of each query to its final one, `k` long at most."""
        if queries is None and (self.hybrid or self.rerank is not None):
            raise InvalidArgumentError("'hybrid' and 'rerank' read the question; search with text.")
        if self.hybrid and queries is not None:
            join, allowed = fusion(self.hybrid), view.allowed(masks)
            n = self.candidates(k)
            rankings = [
                join([ranking, view.lexical.search(query, n, ranking[0], allowed)])
                for query, ranking in zip(queries, rankings, strict=True)
            ]
        if self.expand:
            rankings = [expanded(view, ranking, self.expand, masks) for ranking in rankings]
        if self.rerank is not None and queries is not None:
            score = load_reranker(self.rerank)
            rankings = [reranked(view, score, query, ranking) for query, ranking in zip(queries, rankings, strict=True)]
        if self.select:
            rankings = [selected(view, ranking, self.select, k) for ranking in rankings]
        return [(rows[:k], scores[:k]) for rows, scores in rankings]


def read_stages(options: dict[str, Any]) -> Stages:
    """Return the stages that keyword arguments name; raise `InvalidArgumentError` on one that does not exist."""
    known = [field.name for field in fields(Stages)]
    for name in options:
        if name not in known:
            raise InvalidArgumentError(f"A search has no option '{name}'; it takes {', '.join(known)}.")
    return Stages(**options)


def reranked(view: View, score: Any, query: str, ranking: Ranking) -> Ranking:
    """Order candidates by a reranker, whose scores they then have."""
    rows, _ = ranking
    if not len(rows):
        return ranking
    table = fetch(view.snapshot, rows, ["title", "text"])
    pairs = zip(table.column("title").to_pylist(), table.column("text").to_pylist(), strict=True)
    scores = score(query, [passage_text(title, text) for title, text in pairs])
    order = np.argsort(-scores, kind="stable")
    return rows[order], scores[order]


def selected(view: View, ranking: Ranking, name: str, k: int) -> Ranking:
    """Choose k candidates by `name`; they keep their scores."""
    rows, scores = ranking
    chosen = select(name, scores, view.decode(rows), k)
    return rows[chosen], scores[chosen]
