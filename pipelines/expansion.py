"""Expansion: what lies beside the candidates of a search joins them, along the graph of nearest neighbours.

The graph is the one that `Index.restructure` stored, when there is one: looking neighbours up costs nothing next to a
scan, so that a walk reaches the neighbours of every candidate. Without it, and for passages that came later, the
neighbours of the best candidates are found by searching with their decoded embeddings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ragq.checks import normalized
from ragq.pipelines.view import Masks, View
from ragq.retrievers.lexical import Ranking
from ragq.retrievers.selection import neighbours, pagerank, transition
from ragq.retrievers.structures.neighbours import passing

__all__ = ["EXPANSIONS", "expanded"]

EXPANSIONS = ("neighbours", "pagerank")
SEEDS = 10  # candidates whose neighbours an expansion looks for
DEGREE = 8


def expanded(view: View, ranking: Ranking, how: str, masks: Masks) -> Ranking:
    """Add the nearest passages of the best candidates to a ranking.

    ``neighbours`` gives a new candidate the score of its seed times their similarity; ``pagerank`` walks the graph of
    all candidates, starting from their scores (half of the final score is the walk).
    """
    rows, scores = ranking
    if not len(rows):
        return ranking
    seeds = rows if how == "pagerank" and view.has_neighbours else rows[:SEEDS]
    near = neighbours_of(view, seeds, masks)
    fresh = np.setdiff1d(np.unique(near[near >= 0]), rows)
    everything = np.concatenate([rows, fresh])
    x = normalized(view.decode(everything))
    low, high = float(scores.min()), float(scores.max())
    relevance = (scores - low) / (high - low) if high > low else np.ones_like(scores)
    similarity = np.maximum(x[len(rows) :] @ x[: len(seeds)].T, 0)
    reached = (similarity * relevance[: len(seeds)]).max(axis=1) if len(fresh) else np.empty(0, np.float32)
    total = np.concatenate([relevance, reached.astype(np.float32)])
    if how == "pagerank" and len(everything) > 1 and total.sum() > 0:
        graph = linked(x, everything, seeds, near) if view.has_neighbours else neighbours(x, DEGREE)
        walk = pagerank(total / total.sum(), graph)
        total = (total + walk / walk.max()) / 2
    final = (low + total * (high - low)).astype(np.float32) if high > low else total.astype(np.float32)
    order = np.argsort(-final, kind="stable")
    return everything[order], final[order]


def neighbours_of(view: View, seeds: NDArray[np.int64], masks: Masks) -> NDArray[np.int64]:
    """Return the allowed neighbours of rows, (n, k) with -1: stored ones, and found ones where none are stored."""
    if not view.has_neighbours:
        return view.near(seeds, DEGREE + 1, masks)
    assert view.searcher is not None and view.searcher.neighbours is not None
    starts = view.snapshot.starts
    near = view.searcher.neighbours.of(seeds, starts)
    near = np.where(passing(near.ravel(), masks, starts).reshape(near.shape), near, -1)
    lacking = np.flatnonzero((near < 0).all(axis=1))[:SEEDS]  # came later, or all its neighbours are filtered out
    if len(lacking):
        found = view.near(seeds[lacking], min(DEGREE, near.shape[1]), masks)
        near[lacking, : found.shape[1]] = found
    return near


def linked(
    x: NDArray[np.float32], everything: NDArray[np.int64], seeds: NDArray[np.int64], near: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the column-stochastic matrix of the stored links among rows, weighed by similarity.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dim)
        Unit embeddings of the rows.
    everything : ndarray of int64, shape (n,)
    seeds : ndarray of int64, shape (m,)
        The first m of them.
    near : ndarray of int64, shape (m, k)
        Their neighbours, -1 for none.
    """
    place = {row: i for i, row in enumerate(everything.tolist())}
    weights = np.zeros((len(x), len(x)), np.float32)
    ends = [[place.get(row, -1) for row in links] for links in near.tolist()]
    for i, links in enumerate(ends):
        others = [j for j in links if j >= 0 and j != i]
        weights[others, i] = np.maximum(x[others] @ x[i], 0)
    return transition(np.maximum(weights, weights.T))
