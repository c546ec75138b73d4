"""Fewer vectors a document: clusters of its tokens, or a choice among them.

======= =========================================================================================================
POOL    Ward or spherical k-means inside each document; a cluster is kept as its mean (Clavié, Chaffin and Adams,
        "Reducing the footprint of multi-vector retrieval with minimal performance impact via token pooling", 2024;
        CRISP, arXiv 2505.11471: a fixed number such as 8 or 32, or a share of the tokens)
PRUNE   keeps some tokens: the first ones, evenly spaced ones, those far from the mean of all tokens, or those whose
        centroid few documents hold
MAP     a linear map of tokens before they are clustered, learned from queries without labels
CARVE   merges the near tokens of a *query* (query ball carving, MUVERA, section 3)
======= =========================================================================================================

Documents keep means, since MaxSim takes their best vector; queries keep sums, since MaxSim adds over theirs. A size is
a number of vectors, or a share of the document's tokens such as ``33%``, rounded up; a document with fewer tokens than
that keeps all of them as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool, check_int, normalized
from ragq.compressors import _cpu
from ragq.compressors.base import Floats
from ragq.compressors.codebooks import cpu_threads, kmeans, sample_rows
from ragq.compressors.exact import exact_matmul
from ragq.compressors.tokens import TokenStage
from ragq.errors import InvalidArgumentError
from ragq.tokens import TokenEmbeddings

__all__ = ["CARVE", "MAP", "POOL", "PRUNE", "Pooling", "nearest_centroid"]

ITERATIONS = 10  # of spherical k-means in a document; more change nothing that a search can see
FIT_TOKENS = 50_000  # for the centroids whose rarity PRUNE weighs


class Pooling(TokenStage):
    """A stage that changes how many vectors stand for a document or a query, never their dimensions."""

    @abstractmethod
    def apply(self, documents: TokenEmbeddings) -> TokenEmbeddings:
        """Return the vectors that stand for documents, each document's from its own tokens."""

    def apply_queries(self, queries: TokenEmbeddings) -> TokenEmbeddings:
        """Return the vectors that stand for queries: their tokens, unless the stage says otherwise."""
        return queries


def check_size(size: int | str, name: str) -> int | str:
    """Return a number of vectors, or a share of the tokens such as ``'33%'``."""
    if isinstance(size, str):
        try:
            share = float(size.removesuffix("%")) if size.endswith("%") else 0
        except ValueError:
            share = 0
        if 0 < share <= 100:
            return f"{share:g}%"
        raise InvalidArgumentError(
            f"'size' of {name} must be a number of vectors, or a share in 1%..100%. Got {size!r}."
        )
    return check_int(size, "size", 1)


def sizes(size: int | str, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many vectors documents of `counts` tokens keep, at least 1."""
    if isinstance(size, str):
        wanted = np.ceil(counts * (float(size[:-1]) / 100) - 1e-9).astype(np.int64)
    else:
        wanted = np.full(len(counts), size, np.int64)
    return np.maximum(1, np.minimum(wanted, counts))


class POOL(Pooling):
    """Cluster the tokens of each document and keep the clusters' means, in the order of their first tokens.

    Parameters
    ----------
    size : int or str
        Clusters a document: a number, or a share of its tokens such as ``'33%'``.
    method : str
        ``ward`` or ``kmeans`` (spherical).
    unit : bool
        Scale the means to unit length.
    """

    forms = ("POOL{size}",)

    def __init__(self, size: int | str, method: str = "ward", unit: bool = True) -> None:
        self.size = check_size(size, "POOL")
        if method not in ("ward", "kmeans"):
            raise InvalidArgumentError(f"'method' of POOL must be ward or kmeans. Got {method!r}.")
        self.method = method
        self.unit = check_bool(unit, "unit")

    def apply(self, documents: TokenEmbeddings) -> TokenEmbeddings:
        self._check_tokens(documents)
        iterations = ITERATIONS if self.method == "kmeans" else 0
        counts = sizes(self.size, documents.counts)
        labels = _cpu.cluster_runs(documents.values, documents.offsets, counts, iterations, cpu_threads())
        return merged(documents, labels, unit=self.unit)


def merged(tokens: TokenEmbeddings, labels: NDArray[np.uint32], *, unit: bool) -> TokenEmbeddings:
    """Return the mean of each cluster.

    Parameters
    ----------
    tokens : TokenEmbeddings
    labels : ndarray of uint32, shape (total,)
        The cluster of each token, numbered from 0 in every document.
    unit : bool
        Scale means of several tokens to unit length.
    """
    if not tokens.total:
        return tokens
    clusters = np.zeros(len(tokens), np.int64)
    np.maximum.at(clusters, np.repeat(np.arange(len(tokens)), tokens.counts), labels + np.int64(1))
    offsets = np.concatenate([[0], np.cumsum(clusters)]).astype(np.int64)
    rows = np.repeat(offsets[:-1], tokens.counts) + labels
    order = np.argsort(rows, kind="stable")
    starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
    members = np.diff(starts, append=len(rows))[:, None]
    means: Floats = np.add.reduceat(tokens.values[order], starts, axis=0)
    means /= members.astype(np.float32)
    if unit:
        several = members[:, 0] > 1
        means[several] = normalized(means[several])
    return TokenEmbeddings(means, offsets)


class PRUNE(Pooling):
    """Keep some tokens of each document, in their order.

    Parameters
    ----------
    size : int or str
        Tokens that stay: a number, or a share such as ``'33%'``.
    by : str
        ``first``: the first ones; ``spread``: evenly spaced ones; ``norm``: those farthest from the mean of the sample
        (unit-length tokens differ in nothing else); ``idf``: those whose nearest centroid the fewest documents hold,
        the text's stand-in for attention.
    centroids : int
        For ``idf``.
    """

    forms = ("PRUNE{size}",)

    mean_: Floats  # (dim,), for norm
    centroids_: Floats  # (centroids, dim), for idf
    idf_: Floats  # (centroids,), log((documents + 1) / (documents that hold it + 1))

    def __init__(self, size: int | str, by: str = "idf", centroids: int = 256) -> None:
        self.size = check_size(size, "PRUNE")
        if by not in ("first", "spread", "norm", "idf"):
            raise InvalidArgumentError(f"'by' of PRUNE must be first, spread, norm or idf. Got {by!r}.")
        self.by = by
        self.centroids = check_int(centroids, "centroids", 1, 1 << 16)

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return {"norm": ("mean_",), "idf": ("centroids_", "idf_")}.get(self.by, ())

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return self.centroids if self.by == "idf" else 1

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"mean_": (self.dim,), "centroids_": (self.centroids, self.dim), "idf_": (self.centroids,)}

    def _fit_tokens(self, tokens: TokenEmbeddings, queries: TokenEmbeddings | None, rng: np.random.Generator) -> None:
        if self.by == "norm":
            self.mean_ = tokens.values.mean(axis=0, dtype=np.float64).astype(np.float32)
        elif self.by == "idf":
            rows = sample_rows(tokens.values, max(FIT_TOKENS, self.centroids), rng)
            self.centroids_ = kmeans(rows, self.centroids, iterations=10, seed=int(rng.integers(2**31)))
            documents = np.repeat(np.arange(len(tokens)), tokens.counts)
            held = np.unique(documents * self.centroids + nearest_centroid(tokens.values, self.centroids_))
            frequency = np.bincount(held % self.centroids, minlength=self.centroids)
            self.idf_ = np.log((len(tokens) + 1) / (frequency + 1)).astype(np.float32)

    def _weights(self, tokens: TokenEmbeddings) -> NDArray[np.floating[Any]]:
        """Return what makes a token worth keeping, `(total,)`."""
        position = np.arange(tokens.total) - np.repeat(tokens.offsets[:-1], tokens.counts)
        if self.by == "first":
            return -position.astype(np.float64)
        if self.by == "spread":  # the tokens at which position * kept / tokens passes a whole number
            counts = np.repeat(tokens.counts, tokens.counts)
            kept = np.repeat(sizes(self.size, tokens.counts), tokens.counts)
            return (position * kept // counts != (position - 1) * kept // counts).astype(np.float64)
        if self.by == "norm":
            return np.square(tokens.values - self.mean_).sum(axis=1)
        return self.idf_[nearest_centroid(tokens.values, self.centroids_)]

    def apply(self, documents: TokenEmbeddings) -> TokenEmbeddings:
        self._check_tokens(documents)
        counts = sizes(self.size, documents.counts) * (documents.counts > 0)
        number = np.repeat(np.arange(len(documents)), documents.counts)
        order = np.lexsort((-self._weights(documents), number))  # stable: of equals the first
        rank = np.arange(documents.total) - np.repeat(documents.offsets[:-1], documents.counts)
        kept = np.sort(order[rank < np.repeat(counts, documents.counts)])
        return TokenEmbeddings(documents.values[kept], np.concatenate([[0], np.cumsum(counts)]))


def nearest_centroid(x: Floats, centroids: Floats) -> NDArray[np.int64]:
    """Return the number of the nearest centroid of each row, each row by itself."""
    numbers, _ = _cpu.assign(np.ascontiguousarray(x), np.ascontiguousarray(centroids), cpu_threads())
    return np.asarray(numbers, np.int64)


class MAP(Pooling):
    """A linear map of document tokens, scaled to unit length: ``x -> T'x / |T'x|``. Queries stay as they are.

    `ragq.pipelines.training.crisp.train_token_map` learns `T` so that clusters of the mapped tokens lose little of
    MaxSim; `fit` alone, for a map that nobody trained, is the identity.
    """

    forms = ("MAP",)
    state_names = ("matrix_",)

    matrix_: Floats  # (dim, dim); a token becomes x @ matrix_

    @classmethod
    def of(cls, matrix: Floats) -> Self:
        """Return a fitted stage with this matrix, `(dim, dim)`."""
        stage = cls()
        stage.matrix_ = np.ascontiguousarray(matrix, np.float32)
        stage.dim_ = len(stage.matrix_)
        return stage

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"matrix_": (self.dim, self.dim)}

    def _fit_tokens(self, tokens: TokenEmbeddings, queries: TokenEmbeddings | None, rng: np.random.Generator) -> None:
        if getattr(self, "matrix_", np.empty((0, 0))).shape != (self.dim, self.dim):
            self.matrix_ = np.eye(self.dim, dtype=np.float32)

    def apply(self, documents: TokenEmbeddings) -> TokenEmbeddings:
        self._check_tokens(documents)
        return TokenEmbeddings(normalized(exact_matmul(documents.values, self.matrix_)), documents.offsets)


class CARVE(Pooling):
    """Query ball carving: a token takes in all later tokens of the query that are near it; their sum stands for them.

    Parameters
    ----------
    threshold : float
        Least inner product with the first token of the ball, 0 to 1; 0.7 leaves a ColBERT query 6 vectors of 32.
    """

    forms = ("CARVE{threshold}",)

    def __init__(self, threshold: float = 0.7) -> None:
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise InvalidArgumentError(f"'threshold' of CARVE must be a number in 0..1. Got {threshold!r}.")
        self.threshold = float(threshold)

    def apply(self, documents: TokenEmbeddings) -> TokenEmbeddings:
        return self._check_tokens(documents)

    def apply_queries(self, queries: TokenEmbeddings) -> TokenEmbeddings:
        self._check_tokens(queries, "queries")
        return TokenEmbeddings.from_list([self._carve(tokens) for tokens in queries], queries.dim)

    def _carve(self, tokens: Floats) -> Floats:
        near = tokens @ tokens.T >= self.threshold
        left, balls = np.ones(len(tokens), bool), []
        for first in range(len(tokens)):
            if left[first]:
                ball = left & near[first]
                ball[first] = True
                balls.append(tokens[ball].sum(axis=0))
                left &= ~ball
        return np.stack(balls) if balls else tokens
