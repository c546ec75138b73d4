"""Retrieval measures of a run, query by query.

A *run* maps a query id to the documents that a search returned, best first. Two kinds of measure:

- against judgements (qrels): nDCG@k, Recall@k, MAP@k and MRR@k, computed by ir-measures (pytrec_eval underneath);
- against another run, when nothing is judged: `overlap` (Recall@k of the reference's top k) and `rank_biased_overlap`.

Rules, the same everywhere:

- A judged query that the run does not answer scores 0. (pytrec_eval alone drops it, and a naive mean rises.)
- Ties: the order of the run is the ranking. ragq returns equal scores in insertion order, and the measures see that
  order. (pytrec_eval alone reorders equal scores by document id, from the last to the first.)
- A judged query without a relevant document scores 0 for every run, as in trec_eval.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.errors import InvalidArgumentError, missing_extra

__all__ = ["MEASURES", "Scores", "evaluate", "overlap", "rank_biased_overlap", "ranking"]

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Sequence[str]]

MEASURES = ("ndcg@1", "ndcg@5", "ndcg@10", "ndcg@100", "recall@10", "recall@100", "map@100", "mrr@10")
NAMES = {"ndcg": "nDCG", "recall": "R", "map": "AP", "mrr": "RR"}  # ours -> ir-measures'


@dataclass(frozen=True)
class Scores:
    """Measures of one run, query by query.

    Attributes
    ----------
    queries : tuple of str
        The judged query ids, in the order of the qrels.
    values : dict of str to ndarray of float64, shape (n_queries,)
        Measure name to its value for each query.
    unanswered : int
        Judged queries that the run does not answer; they score 0.
    """

    queries: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    unanswered: int = 0

    def mean(self, measure: str) -> float:
        """Return the mean of a measure over all judged queries."""
        return float(self.values[measure].mean())


def ranking(scores: Mapping[str, float]) -> list[str]:
    """Rank documents by score, highest first; equal scores stay in the order of the mapping."""
    return sorted(scores, key=lambda document: -scores[document])


def parse_measure(name: str) -> tuple[str, int]:
    """Split ``ndcg@10`` into ``('ndcg', 10)``; raise `InvalidArgumentError` on anything that is no measure."""
    match = re.fullmatch(r"([a-z]+)@(\d{1,6})", name.strip().lower())
    if not match or match[1] not in NAMES or int(match[2]) == 0:
        known = ", ".join(f"{kind}@k" for kind in NAMES)
        raise InvalidArgumentError(f"Unknown measure '{name}'. Known: {known}, with k at least 1, such as ndcg@10.")
    return match[1], int(match[2])


def _oracle(measures: Sequence[str]) -> dict[Any, str]:
    """Return ir-measures' object of each measure, with our name."""
    try:
        import ir_measures
    except ImportError:
        raise missing_extra("ir-measures", "eval") from None
    return {getattr(ir_measures, NAMES[kind]) @ k: f"{kind}@{k}" for kind, k in map(parse_measure, measures)}


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str] = MEASURES) -> Scores:
    """Score a run against judgements.

    Parameters
    ----------
    run : mapping of str to sequence of str
        Query id to document ids, best first. A document that comes twice counts at its first place.
    qrels : mapping of str to mapping of str to int
        Query id to document id to grade; above 0 is relevant, and nDCG uses the grade as the gain.
    measures : sequence of str
        ``ndcg@k``, ``recall@k``, ``map@k`` or ``mrr@k``.

    Returns
    -------
    Scores

    Raises
    ------
    InvalidArgumentError
        An unknown measure, no judgements, or a run that answers no judged query.
    """
    oracle = _oracle(measures)
    if not qrels:
        raise InvalidArgumentError("There are no judgements to score against. Give qrels, or measure the agreement.")
    answered = {query: list(dict.fromkeys(run[query])) for query in qrels if run.get(query)}
    if not answered:
        raise InvalidArgumentError(
            f"The run is empty: it answers none of the {len(qrels)} judged queries. "
            f"Its query ids: {list(run)[:3] or 'none'}; the qrels': {list(qrels)[:3]}."
        )
    # descending whole numbers, so that no tie rule but ours can apply
    scored = {
        query: {document: float(len(documents) - place) for place, document in enumerate(documents)}
        for query, documents in answered.items()
    }
    import ir_measures

    values = {name: np.zeros(len(qrels)) for name in oracle.values()}
    row = {query: i for i, query in enumerate(qrels)}
    grades = {query: {document: int(grade) for document, grade in judged.items()} for query, judged in qrels.items()}
    for result in ir_measures.iter_calc(list(oracle), grades, scored):
        values[oracle[result.measure]][row[result.query_id]] = result.value
    return Scores(tuple(qrels), values, len(qrels) - len(answered))


def overlap(
    scores: NDArray[np.float32], rows: NDArray[np.int64], kth: NDArray[np.float32], k: int
) -> NDArray[np.float64]:
    """Return the tie-aware Recall@k of each query against exact search.

    A returned row is a hit when its exact score reaches the exact k-th score less 1e-6, so that near-duplicates do not
    make a right answer wrong.

    Parameters
    ----------
    scores : ndarray of float32, shape (q, depth)
        Exact scores of the returned rows.
    rows : ndarray of int64, shape (q, depth)
        Returned rows, padded with -1.
    kth : ndarray of float32, shape (q,)
        The exact k-th best score of each query.
    k : int
    """
    hits = (scores[:, :k] >= kth[:, None] - 1e-6) & (rows[:, :k] >= 0)
    return np.asarray(hits.sum(axis=1) / k)


def rank_biased_overlap(a: Sequence[Hashable], b: Sequence[Hashable], p: float = 0.9) -> float:
    """Return the extrapolated rank-biased overlap of two rankings.

    ``RBO_ext`` of Webber, Moffat and Zobel, "A similarity measure for indefinite rankings" (TOIS 2010), equation 23,
    over the common depth ``k`` of the rankings:
    ``X_k / k * p^k + (1 - p) / p * sum_{d=1..k} X_d / d * p^d``, with ``X_d`` the size of the overlap of the top `d`.

    Parameters
    ----------
    a, b : sequence of hashable
        Documents, best first, each once.
    p : float
        Persistence in (0, 1): 0.9 puts 86 % of the weight on the first ten.

    Returns
    -------
    float
        1 for equal rankings, 0 for disjoint ones.
    """
    if not 0 < p < 1:
        raise InvalidArgumentError(f"'p' must be between 0 and 1. Got {p}.")
    depth = min(len(a), len(b))
    if depth == 0:
        return 0.0
    seen_a: set[Hashable] = set()
    seen_b: set[Hashable] = set()
    common, agreement = 0, np.empty(depth)
    for d in range(depth):
        seen_a.add(a[d])
        seen_b.add(b[d])
        common += (a[d] in seen_b) + (b[d] in seen_a and a[d] != b[d])
        agreement[d] = common / (d + 1)
    weights = p ** np.arange(1, depth + 1)
    return float(agreement[-1] * p**depth + (1 - p) / p * (agreement @ weights))
