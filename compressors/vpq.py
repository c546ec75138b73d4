"""Variance-balanced product quantization: principal axes, codebooks of unequal width, one factor a vector.

Per fit, with `S` the covariance of the embeddings and ``S = V diag(s) V'``:

1. Principal coordinates, weighted: ``y_i = s_i^(1/4) <v_i, x - mean>``. An error ``e_i`` in coordinate `i` costs a
   query ``q_i e_i``, and queries spread like documents, so large coordinates must be more precise than the squared
   error asks for; the weight is the geometric mean of 1 (plain squared error) and ``s_i^(1/2)`` (what a random query
   sees).
2. Reverse water-filling (Cover and Thomas, section 10.3.3) gives coordinate `i` the rate
   ``r_i = max(0, log2(s_i^(3/2) / level) / 2)``, the level such that the rates add up to the bits of the code.
   Coordinates of rate 0 are dropped.
3. The others are dealt, the highest rate first, each to the sub-quantizer with the least rate so far: all carry the
   same share, in whatever number of coordinates that takes (the eigenvalue allocation of Ge et al., "Optimized product
   quantization", TPAMI 2014, deals equal numbers).
4. k-means in each.

Per vector, ``x^ = mean + f z^``, `z^` being the decoded ``z = x - mean``. The factor `f` makes ``f <q, z^>`` the best
estimate of ``<q, z>`` over queries of covariance ``S + t z z'``, ones like the documents with a few (t = 0.01) that
look for this vector:

    f = (z' S z^ + t |z|^2 <z, z^>) / (z^' S z^ + t <z, z^>^2)

For t -> infinity it is the length correction ``|z|^2 / <z, z^>`` of RaBitQ (Gao and Long, SIGMOD 2024), unbiased for a
query along `z`; that overrates vectors that are coded badly, which then crowd into every answer.

Bytes per vector: `size`, the factor's 2 included.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors import codebooks
from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.exact import exact_matmul
from ragq.compressors.pq import with_factor
from ragq.compressors.scorers import LookupScorer, factor
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.layouts import Layout

__all__ = ["VPQ"]

WEIGHT_POWER = 0.25  # of the variance, in the weight of a coordinate
OWN_QUERIES = 0.01  # t above: the share of a document's own direction among the queries
SMALLEST_VARIANCE = 1e-7  # of the largest: what lies below is rounding


class VPQ(Quantizer):
    """Variance-balanced product quantization: the most answers per byte without training a network.

    Parameters
    ----------
    size : int
        Bytes of a code: ``size - 2`` bytes of codewords and an fp16 factor.
    bits : int
        8, or 4 for codes that a byte shuffle looks up.
    iterations : int
        Of k-means, at most.
    """

    forms: ClassVar[tuple[str, ...]] = ("VPQ{size}",)
    examples: ClassVar[tuple[str, ...]] = ("VPQ10", "VPQ10(bits=4)", "VPQ48")
    menu: ClassVar[tuple[str, ...]] = ("VPQ{2}", "VPQ{4}", "VPQ{8}", "VPQ{12}", "VPQ{16}", "VPQ{24}")
    state_names = ("mean_", "basis_", "variances_", "codebook_", "offsets_")
    state_dtypes = {"basis_": "float16", "codebook_": "float16", "offsets_": "int64"}  # noqa: RUF012

    mean_: Floats  # (dim,)
    basis_: NDArray[np.float16]  # (kept, dim), the principal axes in the order in which they are dealt
    variances_: Floats  # (kept,), along the axes
    codebook_: NDArray[np.float16]  # (2**bits, kept), of weighted coordinates
    offsets_: NDArray[np.int64]  # (M + 1,)

    _separate = True  # the codes, see `LookupScorer`

    def __init__(self, size: int, bits: int = 8, iterations: int = 25) -> None:
        self.size = check_int(size, "size", 3)
        if bits not in (4, 8):
            raise InvalidArgumentError(f"'bits' of VPQ must be 4 or 8. Got {bits!r}.")
        self.bits = int(bits)
        self.iterations = check_int(iterations, "iterations", 1)

    @property
    def m(self) -> int:
        """Sub-quantizers."""
        return (self.size - 2) * 8 // self.bits

    @property
    def groups(self) -> int:
        """Groups of coordinates, here one a sub-quantizer."""
        return self.m

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return int(2**self.bits)

    @property
    def layout(self) -> Layout:
        self._check_fitted()
        return Layout("nibbles" if self.bits == 8 else "blocks", self.m, self.bits, 1)

    def _check_dim(self, dim: int) -> None:
        if self.groups > dim:
            raise InvalidArgumentError(f"{self} needs {self.groups} dimensions. The embeddings have {dim}.")

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        kept = len(self.basis_)
        return {
            "mean_": (self.dim,),
            "basis_": (kept, self.dim),
            "variances_": (kept,),
            "codebook_": self._codebook_shape(kept),
            "offsets_": (self.groups + 1,),
        }

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        super()._check_state(arrays)
        offsets = self.offsets_
        if offsets[0] != 0 or offsets[-1] != len(self.basis_) or (np.diff(offsets) < 1).any():
            raise CorruptIndexError(f"'offsets_' of {self} must rise from 0 to {len(self.basis_)}. Got {offsets}.")
        if (self.variances_ <= 0).any():
            raise CorruptIndexError(f"'variances_' of {self} must be positive. Got {self.variances_.min()}.")

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        k = 2**self.bits
        rows = codebooks.sample_rows(x, codebooks.ROWS_PER_CODEWORD * k, rng)
        self.mean_ = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        variances, axes = principal_axes(x - self.mean_)
        spread, words = self._fit_clusters(rows, variances, axes, rng)
        falling = np.argsort(-spread, kind="stable")
        rates = water_fill(spread[falling], (self.m - len(words)) * self.bits)
        kept = (rates > 0) | (np.abs(words).max(axis=(0, 1), initial=0) > 0)[falling]
        kept[: self.groups] = True
        groups = deal(rates[kept], self.groups)
        order = falling[kept][np.concatenate(groups)]
        self.offsets_ = np.cumsum([0] + [len(group) for group in groups]).astype(np.int64)
        self.basis_ = axes[order].astype(np.float16)
        self.variances_ = variances[order].astype(np.float32)
        y = self._coordinates(rows) * self._weights
        scale = np.float32(self._weights[0] / variances[order[0]] ** WEIGHT_POWER)
        self.codebook_ = self._fit_codebook(y, words[:, :, order] * scale, rng).astype(np.float16)

    def _codebook_shape(self, kept: int) -> tuple[int, ...]:
        return 2**self.bits, kept

    def _fit_clusters(
        self, rows: Floats, variances: NDArray[np.float64], axes: NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], Floats]:
        """Return the variances of all weighted coordinates, and the codewords of the codes that come before the groups.

        VPQ has none: shape (0, 2**bits, dim).
        """
        none = np.zeros((0, 2**self.bits, len(axes)), np.float32)
        return variances ** (1 + 2 * WEIGHT_POWER), none

    def _fit_codebook(self, y: Floats, words: Floats, rng: np.random.Generator) -> Floats:
        """Return codewords for the weighted coordinates of a sample, before they are rounded to fp16."""
        codebook = codebooks.fit_codebook(y, self.offsets_, 2**self.bits, iterations=self.iterations, rng=rng)
        return codebooks.in_nibble_order(codebook, self.offsets_)

    def _nearest(self, y: Floats, codebook: Floats) -> Codes:
        """Return the codes of weighted coordinates, `(n, m)`."""
        return codebooks.encode(y, codebook, self.offsets_)

    def _decoded(self, codes: Codes, codebook: Floats) -> Floats:
        """Return the weighted coordinates that codes stand for."""
        return codebooks.decode(codes, codebook, self.offsets_)

    def _tables(self, queries: Floats, codebook: Floats) -> Floats:
        """Return the inner products of queries, divided by the weights, with codewords: `(n_queries, m, 2**bits)`."""
        return codebooks.tables(queries, codebook, self.offsets_)

    @property
    def _weights(self) -> Floats:
        """What principal coordinates are multiplied by, `(kept,)`; the largest weighted variance becomes 1."""
        variances = self.variances_.astype(np.float64)
        return (variances**WEIGHT_POWER / variances.max() ** (0.5 + WEIGHT_POWER)).astype(np.float32)

    def _coordinates(self, x: Floats) -> Floats:
        return exact_matmul(x - self.mean_, self.basis_.T)

    def _encode(self, x: Floats) -> Codes:
        z = self._coordinates(x)
        codebook = self.codebook_.astype(np.float32)
        codes = self._nearest(z * self._weights, codebook)
        decoded = self._decoded(codes, codebook) / self._weights
        f = query_aware_factor(x - self.mean_, z, decoded, self.variances_)
        return with_factor(codebooks.pack_codes(codes, self.bits), f)

    def _decode(self, codes: Codes) -> Floats:
        body = codebooks.unpack_codes(codes[:, : self.layout.width], self.m, self.bits)
        z = self._decoded(body, self.codebook_.astype(np.float32)) / self._weights
        return codebooks.add_mean(self.mean_, factor(codes, -1)[:, None] * (z @ self.basis_.astype(np.float32)))

    def _query_side(self) -> tuple[Floats, Floats]:
        """Return the axes `(dim, kept)`, divided by the weights, and the codebook in float32, kept for the next."""
        known = self.__dict__.get("_widened")
        if known is None or known[0] is not self.basis_ or known[1] is not self.codebook_:
            axes = np.ascontiguousarray((self.basis_.astype(np.float32) / self._weights[:, None]).T)
            known = self._widened = (self.basis_, self.codebook_, axes, self.codebook_.astype(np.float32))
        return known[2], known[3]

    def _scorer(self, queries: Floats) -> LookupScorer:
        axes, codebook = self._query_side()
        tables = self._tables(queries @ axes, codebook)
        return LookupScorer(queries @ self.mean_, tables, factors=1, separate=self._separate)


def principal_axes(z: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the variances of centred rows, descending and above zero, and their axes as rows."""
    covariance = np.zeros((z.shape[1], z.shape[1]))
    for start in range(0, len(z), 16384):
        part = z[start : start + 16384].astype(np.float64)
        covariance += part.T @ part
    variances, axes = np.linalg.eigh(covariance / len(z))
    variances, axes = variances[::-1], axes[:, ::-1].T
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])  # eigenvectors have no sign of their own
    largest = variances[0] if variances[0] > 0 else 1.0
    return np.maximum(variances, largest * SMALLEST_VARIANCE), axes * signs[:, None]


def water_fill(variances: NDArray[np.float64], bits: float) -> NDArray[np.float64]:
    """Return the rates ``max(0, log2(variance / level) / 2)`` that add up to `bits`; `variances` descend."""
    logs = np.log2(variances) / 2
    totals = np.cumsum(logs) - np.arange(1, len(logs) + 1) * logs  # of the rates if the level were each variance
    count = int(np.searchsorted(totals, bits))  # so many lie above the level
    level = (logs[:count].sum() - bits) / count if count else logs[0]
    return np.maximum(0, logs - level)


def deal(rates: NDArray[np.float64], m: int) -> list[list[int]]:
    """Deal dimensions to `m` groups of like rate, the highest rate first."""
    groups: list[list[int]] = [[i] for i in range(m)]
    sums = rates[:m].copy()
    for i in range(m, len(rates)):
        group = int(sums.argmin())
        groups[group].append(i)
        sums[group] += rates[i]
    return groups


def query_aware_factor(centred: Floats, z: Floats, decoded: Floats, variances: Floats) -> Floats:
    """Return the factor `f` of the module's formula, `(n,)`; 1 where the codewords decode to zero.

    Parameters
    ----------
    centred : ndarray of float32, shape (n, dim)
        ``x - mean``.
    z, decoded : ndarray of float32, shape (n, kept)
        Its principal coordinates, and what they decode to.
    variances : ndarray of float32, shape (kept,)
        `S` in principal coordinates.
    """
    both = z.astype(np.float64) * decoded
    square = np.sum(centred.astype(np.float64) ** 2, axis=1)
    product = both.sum(axis=1)
    above = (both * variances).sum(axis=1) + OWN_QUERIES * square * product
    below = (decoded.astype(np.float64) ** 2 * variances).sum(axis=1) + OWN_QUERIES * product**2
    f = np.divide(above, below, out=np.ones_like(above), where=below > 0)
    return np.clip(f, 0, np.finfo(np.float16).max).astype(np.float32)
