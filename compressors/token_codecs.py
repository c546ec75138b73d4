"""Codecs made for token embeddings, beside those for any vector: a centroid and a residual, and a centroid alone.

Tokens gather around the centroids of all tokens far more than passages do, so that the number of a token's centroid
says much of it.

======================= ================================================ ========================================
``PLAID1024x2``         ``x ~ C[id] + s * level[code]``, a code of `b`   2 + b dim / 8 bytes (1 + ... up to 256
                        bits a dimension of the residual                 centroids)
``HPC256``              ``x ~ C[id]``                                    1 byte
``HPC256(hamming)``     agreement of the bits of two ids                 1 byte
======================= ================================================ ========================================

PLAID: Santhanam, Khattab, Saad-Falcon, Potts and Zaharia, "ColBERTv2", NAACL 2022, section 3.3. HPC: "Hierarchical
patch compression for ColPali", 2025, which ranks by the Hamming distance of centroid numbers. The numbers that k-means
gives are arbitrary, and so are their distances; here the centroids are numbered so that bit `j` says on which side of
the median a centroid lies along the principal axis `j`, and near centroids differ in few bits. Scoring the ids through
the table of ``<t, C>`` is exact for the coded documents and no slower: the default. Neither ranks well: over MiniLM's
token embeddings of SciFact, tables keep 45 % of exact MaxSim's nDCG@10 and Hamming distances 47 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool, check_int
from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.codebooks import kmeans, sample_rows
from ragq.compressors.pooling import nearest_centroid
from ragq.compressors.scorers import LinearScorer, LookupScorer
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.layouts import Layout, from_planes, to_planes

__all__ = ["HPC", "PLAID", "CentroidResidualScorer"]

ROWS_PER_CENTROID = 64
ITERATIONS = 10
LINE_ROWS = 1000


class PLAID(Quantizer):
    """The nearest centroid, and `bits` a dimension of what is left.

    Parameters
    ----------
    centroids : int
        At most 65,536; their number takes a byte up to 256, two beyond.
    bits : int
        1, 2 or 4: the residuals' quantiles of equal weight, each decoded as its mean.
    """

    forms = ("PLAID{centroids}x{bits}",)
    examples = ("PLAID32x2", "PLAID300x1")
    state_names = ("centroids_", "cutoffs_", "levels_")

    centroids_: Floats  # (centroids, dim)
    cutoffs_: Floats  # (2**bits - 1,), between residual codes
    levels_: Floats  # (2**bits,)

    def __init__(self, centroids: int, bits: int = 2) -> None:
        self.centroids = check_int(centroids, "centroids", 1, 1 << 16)
        if bits not in (1, 2, 4):
            raise InvalidArgumentError(f"'bits' of PLAID must be 1, 2 or 4. Got {bits!r}.")
        self.bits = int(bits)

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return self.centroids

    @property
    def id_bytes(self) -> int:
        """Bytes of a centroid's number."""
        return 1 if self.centroids <= 256 else 2

    @property
    def layout(self) -> Layout:
        return Layout("rows", self.id_bytes + self.bits * -(-self.dim // 8))

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "centroids_": (self.centroids, self.dim),
            "cutoffs_": (2**self.bits - 1,),
            "levels_": (2**self.bits,),
        }

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        rows = sample_rows(x, ROWS_PER_CENTROID * self.centroids, rng)
        self.centroids_ = kmeans(rows, self.centroids, iterations=ITERATIONS, seed=int(rng.integers(2**31)))
        residuals = np.sort((rows - self.centroids_[nearest_centroid(rows, self.centroids_)]).ravel())
        parts = np.array_split(residuals, 2**self.bits)
        self.cutoffs_ = np.array([part[0] if part.size else 0 for part in parts[1:]], np.float32)
        self.levels_ = np.array([part.mean(dtype=np.float64) if part.size else 0 for part in parts], np.float32)

    def _encode(self, x: Floats) -> Codes:
        ids = nearest_centroid(x, self.centroids_)
        codes = np.searchsorted(self.cutoffs_, x - self.centroids_[ids], side="right").astype(np.uint8)
        numbers = ids.astype("<u2")[:, None].view(np.uint8)[:, : self.id_bytes]
        return np.concatenate([numbers, to_planes(codes, self.bits)], axis=1)

    def _decode(self, codes: Codes) -> Floats:
        ids, body = split_ids(codes, self.id_bytes)
        return self.centroids_[self._known(ids)] + self.levels_[from_planes(body, self.dim, self.bits)]

    def _known(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        if ids.max(initial=0) >= self.centroids:
            raise CorruptIndexError(f"The codes of {self} name centroid {ids.max()} of {self.centroids}.")
        return ids

    def _scorer(self, queries: Floats) -> CentroidResidualScorer:
        products = queries @ self.centroids_.T
        zeros = np.zeros(len(queries), np.float32)
        return CentroidResidualScorer(zeros, queries, products, self.levels_, self.id_bytes)


def split_ids(codes: Codes, id_bytes: int) -> tuple[NDArray[np.int64], Codes]:
    """Return the numbers at the head of row codes, and what follows."""
    numbers = np.zeros((len(codes), 2), np.uint8)
    numbers[:, :id_bytes] = codes[:, :id_bytes]
    return numbers.view("<u2")[:, 0].astype(np.int64), codes[:, id_bytes:]


@dataclass(frozen=True)
class CentroidResidualScorer(LinearScorer):
    """A centroid's product from a table, and bit planes: ``raw = tables[id] + queries @ levels[code]``.

    Attributes
    ----------
    queries : ndarray of float32, shape (n_queries, dim)
    tables : ndarray of float32, shape (n_queries, centroids)
        Inner products with the centroids.
    levels : ndarray of float32, shape (2**bits,)
    id_bytes : int
        Of the centroid's number, which comes first.
    """

    queries: Floats
    tables: Floats
    levels: Floats
    id_bytes: int

    kernel = "centroid_residual"

    def raw(self, body: Codes) -> Floats:
        ids, planes = split_ids(body, self.id_bytes)
        bits = len(self.levels).bit_length() - 1
        return self.tables[:, ids] + self.queries @ self.levels[from_planes(planes, self.queries.shape[1], bits)].T


class HPC(Quantizer):
    """The nearest centroid and nothing else, one byte.

    Parameters
    ----------
    centroids : int
        A power of two, 2 to 256.
    hamming : bool
        Round the query to a centroid too and score by the bits in which the two numbers agree, on the line that fits
        the inner products of the sample best. The numbers are ordered so that this means something; the exact score
        costs no more.
    """

    forms = ("HPC{centroids}",)
    examples = ("HPC256", "HPC16", "HPC64(hamming)")

    centroids_: Floats  # (centroids, dim)
    line_: Floats  # (2,), score of numbers that differ in half of their bits, and what an agreeing bit adds

    def __init__(self, centroids: int = 256, hamming: bool = False) -> None:
        self.centroids = check_int(centroids, "centroids", 2, 256)
        if self.centroids & (self.centroids - 1):
            raise InvalidArgumentError(f"'centroids' of HPC must be a power of two. Got {centroids}.")
        self.hamming = check_bool(hamming, "hamming")

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("centroids_", "line_") if self.hamming else ("centroids_",)

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return self.centroids

    @property
    def layout(self) -> Layout:
        self._check_fitted()
        return Layout("nibbles", 1)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"centroids_": (self.centroids, self.dim), "line_": (2,)}

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        rows = sample_rows(x, ROWS_PER_CENTROID * self.centroids, rng)
        found = kmeans(rows, self.centroids, iterations=ITERATIONS, seed=int(rng.integers(2**31)))
        self.centroids_ = np.ascontiguousarray(found[hamming_order(found)])
        if self.hamming:
            sample = sample_rows(rows, LINE_ROWS, rng)
            ids = nearest_centroid(sample, self.centroids_)
            products = sample @ self.centroids_[ids].T
            slope, start = np.polyfit(self._agreement(ids)[:, ids].ravel(), products.ravel(), 1)
            self.line_ = np.array([start, slope], np.float32)

    def _encode(self, x: Floats) -> Codes:
        return nearest_centroid(x, self.centroids_).astype(np.uint8)[:, None]

    def _decode(self, codes: Codes) -> Floats:
        if codes.max(initial=0) >= self.centroids:
            raise CorruptIndexError(f"The codes of {self} name centroid {codes.max()} of {self.centroids}.")
        return self.centroids_[codes[:, 0]]

    def _agreement(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bits that agree less those that differ, with every centroid: `(len(ids), centroids)`."""
        bits = self.centroids.bit_length() - 1
        return bits - 2 * np.bitwise_count(ids[:, None] ^ np.arange(self.centroids)).astype(np.int64)

    def _scorer(self, queries: Floats) -> LookupScorer:
        bias = np.zeros(len(queries), np.float32)
        tables = np.zeros((len(queries), 1, 256), np.float32)
        if self.hamming:
            bias = bias + self.line_[0]
            tables[:, 0, : self.centroids] = self.line_[1] * self._agreement(nearest_centroid(queries, self.centroids_))
        else:
            tables[:, 0, : self.centroids] = queries @ self.centroids_.T
        return LookupScorer(bias, tables)


def hamming_order(centroids: Floats) -> NDArray[np.int64]:
    """Number centroids so that near ones differ in few bits.

    Bit `j`, the most significant first, tells the sides of the median along the principal axis `j` of all centroids,
    taken anew in every group that the bits before it make, so that all numbers are used.

    Parameters
    ----------
    centroids : ndarray of float32, shape (K, dim)
        `K` a power of two.

    Returns
    -------
    ndarray of int64, shape (K,)
        Rows of `centroids` in the order of their numbers.
    """
    centred = (centroids - centroids.mean(axis=0, dtype=np.float64)).astype(np.float64)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    groups = [np.arange(len(centroids))]
    for j in range(len(centroids).bit_length() - 1):
        along = centred @ axes[j] if j < len(axes) else np.arange(len(centroids), dtype=np.float64)
        groups = [half for group in groups for half in np.split(group[np.argsort(along[group], kind="stable")], 2)]
    return np.concatenate(groups)
