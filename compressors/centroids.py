"""Centroids of all tokens as a first stage: which of them a document's tokens are nearest to, a bit each.

The tokens of a sample make `n` centroids. A document's code is the set of centroids that its tokens are nearest to, as
bits; how often is left out, since MaxSim takes a maximum. A query token looks up its `nprobe` nearest centroids, and
with ``T[t, c] = <t, c>`` a document scores

    sum over tokens t of max( T[t, c] over the probed c that the document holds, floor_t )

where ``floor_t`` is T of the best centroid that was not probed: no document can get more from those. With all centroids
probed this is the centroid interaction of PLAID (Santhanam, Khattab, Potts and Zaharia, CIKM 2022, section 4.2), whose
stage 1 looks only at documents that hold a probed centroid; here they get the floors, and rank last.

On the token embeddings of MiniLM, 1,024 centroids (128 bytes) put 99 % of exact MaxSim's ten best among the 100
candidates on Cranfield and 87 % on SciFact; ``MUVERA(20,4,8,axes,unit),PQ320x8`` (320 bytes) 93 % and 87 %, without its
two options 90 % and 79 %; ``LEMUR640,PQ320x8`` (320 bytes) 99 % and 95 %.

Bytes per document: ``n / 8``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors import _cpu
from ragq.compressors.base import Codes, Floats
from ragq.compressors.codebooks import kmeans, sample_rows
from ragq.compressors.pooling import nearest_centroid
from ragq.compressors.scorers import Scorer
from ragq.compressors.tokens import TokenStage
from ragq.errors import InvalidArgumentError
from ragq.layouts import Layout
from ragq.tokens import TokenEmbeddings

__all__ = ["CENTROIDS", "CentroidScorer"]

ROWS_PER_CENTROID = 24
ITERATIONS = 5


class CENTROIDS(TokenStage):
    """The set of centroids that a document's tokens are nearest to.

    Parameters
    ----------
    n : int
        Centroids, a multiple of 8.
    nprobe : int
        Centroids that a query token looks up; all of them when there are fewer.
    """

    forms = ("CENTROIDS{n}",)
    state_names = ("centroids_",)

    centroids_: Floats  # (n, dim)

    def __init__(self, n: int, nprobe: int = 16) -> None:
        self.n = check_int(n, "n", 8, 1 << 16)
        if self.n % 8:
            raise InvalidArgumentError(f"'n' of CENTROIDS must be a multiple of 8. Got {n}.")
        self.nprobe = check_int(nprobe, "nprobe", 1)

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return self.n

    @property
    def layout(self) -> Layout:
        """How the codes lie in a shard."""
        return Layout("rows", self.n // 8)

    @property
    def code_size(self) -> int:
        """Bytes a document."""
        return self.n // 8

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"centroids_": (self.n, self.dim)}

    def _fit_tokens(self, tokens: TokenEmbeddings, queries: TokenEmbeddings | None, rng: np.random.Generator) -> None:
        rows = sample_rows(tokens.values, ROWS_PER_CENTROID * self.n, rng)
        self.centroids_ = kmeans(rows, self.n, iterations=ITERATIONS, seed=int(rng.integers(2**31)))

    def encode(self, documents: TokenEmbeddings) -> Codes:
        """Return the sets of documents, uint8 `(n, code_size)`, bit `c % 8` of byte `c // 8` for centroid `c`."""
        self._check_tokens(documents)
        held = np.zeros((len(documents), self.n), bool)
        number = np.repeat(np.arange(len(documents)), documents.counts)
        held[number, nearest_centroid(documents.values, self.centroids_)] = True
        return np.packbits(held, axis=1, bitorder="little")

    def scorer(self, queries: TokenEmbeddings) -> CentroidScorer:
        """Prepare queries to score sets."""
        self._check_tokens(queries, "queries")
        return CentroidScorer(queries.values @ self.centroids_.T, queries.offsets, self.nprobe)


class CentroidScorer(Scorer):
    """The inner products of query tokens with all centroids, prepared for sets of centroids.

    Parameters
    ----------
    products : ndarray of float32, shape (total, n)
        `T` of all queries' tokens.
    offsets : ndarray of int64, shape (n_queries + 1,)
    nprobe : int
    """

    def __init__(self, products: Floats, offsets: NDArray[np.int64], nprobe: int) -> None:
        self.offsets = offsets
        best = min(nprobe + 1, products.shape[1])
        order = np.argpartition(-products, best - 1, axis=1)[:, :best]
        values = np.take_along_axis(products, order, axis=1)
        order = np.take_along_axis(order, np.argsort(-values, axis=1, kind="stable"), axis=1)
        values = np.take_along_axis(products, order, axis=1)
        self.probed = np.ascontiguousarray(order[:, :nprobe], np.int64)  # best first
        self.values = np.ascontiguousarray(values[:, :nprobe], np.float32)
        self.floors = np.ascontiguousarray(values[:, -1], np.float32)

    @property
    def n_queries(self) -> int:
        return len(self.offsets) - 1

    def score(self, codes: Codes) -> Floats:
        sets = np.ascontiguousarray(codes)
        scores: Floats = _cpu.set_scores(sets, self.probed, self.values, self.floors, self.offsets)
        return scores
