"""Which k of many candidates to return: not the k best ones when those say the same thing.

All functions here work on the candidates of one query: ``relevance``, float32 of shape (n,), and ``x``, the candidates'
unit embeddings, float32 of shape (n, dim). They return positions in the order of choice.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ragq.checks import normalized
from ragq.errors import InvalidArgumentError

__all__ = [
    "SELECTIONS",
    "coverage",
    "facility_location",
    "mmr",
    "neighbours",
    "pagerank",
    "select",
    "transition",
    "unique",
]

TEMPERATURE = 0.2  # of the weights that relevance gives
NEARNESS = 0.05  # of cosines: 0.95 covers 0.37 of a passage, 0.8 hardly any

Floats = NDArray[np.float32]
Positions = NDArray[np.int64]


def scaled(relevance: Floats) -> Floats:
    """Divide relevance by its largest size, so that it can be weighed against a similarity."""
    largest = float(np.abs(relevance).max())
    return relevance / largest if largest > 0 else np.ones_like(relevance)


def mmr(relevance: Floats, x: Floats, k: int, balance: float = 0.5) -> Positions:
    """Maximal marginal relevance (Carbonell and Goldstein 1998).

    Takes, one at a time, the candidate of highest ``balance * relevance - (1 - balance) * nearest``, where ``nearest``
    is its largest similarity to one that was taken.

    Parameters
    ----------
    balance : float
        1 is the most relevant, 0 the most diverse.
    """
    gain = balance * scaled(relevance)
    nearest = np.zeros(len(x), np.float32)
    chosen: list[int] = []
    while len(chosen) < min(k, len(x)):
        value = gain - (1 - balance) * nearest
        value[chosen] = -np.inf
        best = int(value.argmax())
        chosen.append(best)
        nearest = np.maximum(nearest, x @ x[best])
    return np.asarray(chosen, np.int64)


def coverage(relevance: Floats, x: Floats, chosen: Positions, balance: float = 0.05) -> float:
    """The objective of `facility_location`, in [0, 1].

    ``balance * sum_{s in S} w_s + (1 - balance) * sum_v w_v max_{s in S} sim(v, s)`` over the candidates v, with the
    weights ``w = softmax(relevance / 0.2)`` of `scaled` relevance, and ``sim = exp((cos - 1) / 0.05)``: monotone and
    submodular. Candidates for one query resemble each other anyway, so that the cosine itself would call all of them
    covered by the most central ones; this calls a passage covered that says nearly the same.
    """
    if not len(chosen):
        return 0.0
    weights, similarity = terms(relevance, x)
    covered = similarity[:, chosen].max(axis=1)
    return float(balance * weights[chosen].sum() + (1 - balance) * (weights * covered).sum())


def terms(relevance: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Return the weight of each candidate and the similarities of all pairs."""
    weights = np.exp((scaled(relevance) - 1) / np.float32(TEMPERATURE))
    return weights / weights.sum(), np.exp(np.minimum(x @ x.T - 1, 0) / np.float32(NEARNESS))


def facility_location(relevance: Floats, x: Floats, k: int, balance: float = 0.05) -> Positions:
    """Greedy maximum of `coverage`: within 1 - 1/e of the best choice (Nemhauser et al. 1978).

    Lazy greedy (Minoux 1978): a candidate's gain can only fall, so one whose stale gain is not the highest is not
    looked at again. Greedy can lose to `mmr` by chance; then the choice of `mmr` is returned.
    """
    weights, similarity = terms(relevance, x)
    covered = np.zeros(len(x), np.float32)

    def gain(i: int) -> float:
        more = np.maximum(similarity[:, i] - covered, 0)
        return float(balance * weights[i] + (1 - balance) * (weights * more).sum())

    heap = [(-gain(i), i, 0) for i in range(len(x))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < k:
        _, i, seen = heapq.heappop(heap)
        if seen == len(chosen):
            chosen.append(i)
            covered = np.maximum(covered, similarity[:, i])
        else:
            heapq.heappush(heap, (-gain(i), i, len(chosen)))
    greedy, other = np.asarray(chosen, np.int64), mmr(relevance, x, k)
    better = coverage(relevance, x, greedy, balance) >= coverage(relevance, x, other, balance)
    return greedy if better else other


def unique(relevance: Floats, x: Floats, k: int, same: float = 0.95) -> Positions:
    """Take candidates in order of relevance, leaving out those nearly equal (cosine above `same`) to one taken."""
    chosen: list[int] = []
    for i in np.argsort(-relevance, kind="stable"):
        if len(chosen) == k:
            break
        if not chosen or float((x[chosen] @ x[i]).max()) <= same:
            chosen.append(int(i))
    return np.asarray(chosen, np.int64)


SELECTIONS: dict[str, Callable[[Floats, Floats, int], Positions]] = {
    "mmr": mmr,
    "coverage": facility_location,
    "unique": unique,
}


def select(name: str, relevance: Floats, x: Floats, k: int) -> Positions:
    """Choose by name: ``mmr``, ``coverage`` or ``unique``."""
    if name not in SELECTIONS:
        raise InvalidArgumentError(f"'select' must be one of {', '.join(SELECTIONS)}. Got {name!r}.")
    if not len(relevance):
        return np.empty(0, np.int64)
    return SELECTIONS[name](relevance, normalized(x), k)


def neighbours(x: Floats, degree: int = 8) -> Floats:
    """Return the column-stochastic matrix of the graph that joins each of n passages with its `degree` nearest ones."""
    similarity = np.maximum(x @ x.T, 0)
    np.fill_diagonal(similarity, 0)
    if degree < len(x) - 1:
        cut = -np.partition(-similarity, degree - 1, axis=1)[:, degree - 1 : degree]
        similarity = np.where(similarity >= cut, similarity, 0)
    return transition(np.maximum(similarity, similarity.T))


def transition(weights: Floats) -> Floats:
    """Return symmetric edge weights with each column divided by its sum; a column of zeros stays."""
    total = weights.sum(axis=0, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, np.float32(1)), np.float32)


def pagerank(start: Floats, transition: Floats, restart: float = 0.2, steps: int = 20) -> Floats:
    """Personalised PageRank: ``p = restart * start + (1 - restart) * transition @ p``, `start` summing to 1."""
    p = start.copy()
    for _ in range(steps):
        p = restart * start + (1 - restart) * (transition @ p)
    return p
