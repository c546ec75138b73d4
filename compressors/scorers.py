"""Queries prepared for codes.

Every codec's inner product reduces to one of a few forms. A form says what a kernel needs: arrays for the query side
and where the codes lie; `ragq.retrievers.kernels` has a fast scan for each, and the `score` here is its readable
reference. All of them compute, for query ``a`` and row ``i``,

    score[a, i] = scale[i] * raw[a, i] + shift[i] * shift_weight[a] + bias[a]

where ``scale`` and ``shift`` are the fp16 factors stored with the row (1 and 0 when there are none).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ragq.layouts import Block, from_planes, from_ragged_planes
from ragq.select import merge_topk, topk

if TYPE_CHECKING:
    from ragq.compressors.base import Compressor

__all__ = [
    "DenseScorer",
    "HammingScorer",
    "LookupScorer",
    "NormScorer",
    "PlanesScorer",
    "RaggedPlanesScorer",
    "Scorer",
    "factor",
]

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
CHUNK_ROWS = 8192
QUERY_SIDE = ("bias", "shift_weight", "queries", "tables", "codes", "weight")  # arrays of one entry a query


def factor(codes: Codes, index: int) -> Floats:
    """Return an fp16 factor of row codes as float32, counted from the end: -1 is the last."""
    stop = codes.shape[1] + 2 * (index + 1)
    return np.ascontiguousarray(codes[:, stop - 2 : stop]).view(np.float16)[:, 0].astype(np.float32)


class Scorer(ABC):
    """Queries prepared for one compressor and metric."""

    @property
    @abstractmethod
    def n_queries(self) -> int: ...

    @abstractmethod
    def score(self, codes: Codes) -> Floats:
        """Score row codes.

        Parameters
        ----------
        codes : ndarray of uint8, shape (n, code_size)

        Returns
        -------
        ndarray of float32, shape (n_queries, n)
            Higher is better, in the metric's own units.
        """

    def topk(self, block: Block, k: int, mask: NDArray[np.uint8] | None = None) -> tuple[Floats, NDArray[np.int64]]:
        """Return the best `k` rows of a block for each query, by the reference; see `ragq.select.topk`.

        Parameters
        ----------
        block : Block
        k : int
        mask : ndarray of uint8, optional
            Row bitset, 1 = may be returned.
        """
        parts = [topk(np.empty((self.n_queries, 0), np.float32), k)]
        for start in range(0, block.rows, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, block.rows)
            part = None if mask is None else mask[start // 8 : -(-stop // 8)]
            scores, rows = topk(self.score(block.codes(start, stop)), k, part)
            parts.append((scores, np.where(rows >= 0, rows + start, -1)))
        return merge_topk(parts, k)


@dataclass(frozen=True)
class LinearScorer(Scorer):
    """Base of the forms: a raw score per row, then the row's factors and the query's bias.

    Attributes
    ----------
    bias : ndarray of float32, shape (n_queries,)
    factors : int
        fp16 numbers behind each row code: 0 none, 1 ``scale``, 2 ``scale, shift``.
    shift_weight : ndarray of float32, shape (n_queries,), optional
        What ``shift`` is multiplied by; needed with two factors.
    """

    bias: Floats
    factors: int = field(default=0, kw_only=True)
    shift_weight: Floats | None = field(default=None, kw_only=True)

    kernel: ClassVar[str]

    @property
    def n_queries(self) -> int:
        return len(self.bias)

    @abstractmethod
    def raw(self, body: Codes) -> Floats:
        """Score the codes of rows, factors cut off: (n_queries, n)."""

    def score(self, codes: Codes) -> Floats:
        scores = self.raw(codes[:, : codes.shape[1] - 2 * self.factors])
        if self.factors:
            scores = scores * factor(codes, -self.factors)
        if self.factors == 2:
            assert self.shift_weight is not None
            scores = scores + self.shift_weight[:, None] * factor(codes, -1)
        return (scores + self.bias[:, None]).astype(np.float32, copy=False)

    def plus(self, bias: Floats) -> Self:
        """Return the same scorer with `bias` `(n_queries,)` added to every score of each query."""
        return replace(self, bias=(self.bias + bias).astype(np.float32))

    def part(self, which: slice) -> Self:
        """Return the scorer of some of the queries."""
        arrays = {name: getattr(self, name, None) for name in QUERY_SIDE}
        return replace(self, **{name: array[which] for name, array in arrays.items() if array is not None})


@dataclass(frozen=True)
class DenseScorer(LinearScorer):
    """One number a dimension: ``raw = queries @ value(code)``.

    Attributes
    ----------
    queries : ndarray of float32, shape (n_queries, dim)
    dtype : str
        What a code is: ``f4``, ``f2``, ``bf2``, ``i1``, or ``u1`` with `levels`.
    levels : ndarray of float32, shape (256,), optional
        Value of each byte, for ``u1``.
    """

    queries: Floats
    dtype: str
    levels: Floats | None = None

    kernel = "dense"

    def values(self, body: Codes) -> Floats:
        """Return the numbers that row codes stand for, `(n, dim)` float32."""
        if self.levels is not None:
            return self.levels[body]
        if self.dtype == "bf2":
            halves = np.ascontiguousarray(body).view(np.uint16).astype(np.uint32)
            return (halves << 16).view(np.float32)
        return np.ascontiguousarray(body).view(f"<{self.dtype}").astype(np.float32)

    def raw(self, body: Codes) -> Floats:
        return self.queries @ self.values(body).T


@dataclass(frozen=True)
class LookupScorer(LinearScorer):
    """A table a sub-quantizer: ``raw = sum over m of tables[:, m, code[m]]``.

    Attributes
    ----------
    tables : ndarray of float32, shape (n_queries, M, K)
        K is 256 (a byte a code), or 16 (two codes a byte, the first in the low nibble).
    separate : bool
        The codes of a row stand for dimensions of their own, and 16 codewords that share a high nibble are neighbours
        (`ragq.compressors.codebooks.nibble_order`). Then the high nibbles alone estimate a score, since what they leave
        out of one table has nothing to do with another; sums of codewords for the same dimensions make up for it.
    """

    tables: Floats
    separate: bool = False

    kernel = "lookup"

    def raw(self, body: Codes) -> Floats:
        _, m, k = self.tables.shape
        codes = body if k == 256 else np.stack([body & 15, body >> 4], axis=2).reshape(len(body), 2 * body.shape[1])
        scores = np.zeros((self.n_queries, len(body)), np.float32)
        for j in range(m):
            scores += self.tables[:, j, codes[:, j]]
        return scores


@dataclass(frozen=True)
class PlanesScorer(LinearScorer):
    """A `bits`-bit code a dimension, stored as bit planes: ``raw = queries @ levels[code]``.

    Attributes
    ----------
    queries : ndarray of float32, shape (n_queries, dim)
        A level scale or offset of each dimension is folded into the query and the bias.
    levels : ndarray of float32, shape (2**bits,)
        Value of each code, the same in every dimension; ascending, uniform or not.
    """

    queries: Floats
    levels: Floats

    kernel = "planes"

    @property
    def bits(self) -> int:
        """Bits a code."""
        return len(self.levels).bit_length() - 1

    def unpack(self, body: Codes) -> Codes:
        """Return the codes of rows, `(n, dim)`."""
        return from_planes(body, self.queries.shape[1], self.bits)

    def raw(self, body: Codes) -> Floats:
        return self.queries @ self.levels[self.unpack(body)].T


@dataclass(frozen=True)
class RaggedPlanesScorer(LinearScorer):
    """Bit planes whose dimensions have different numbers of bits: ``raw = queries @ levels[code]``.

    Attributes
    ----------
    queries : ndarray of float32, shape (n_queries, max(coded, widths[0]))
        In the order of the codes, the level scale of each dimension folded in.
    levels : ndarray of float32, shape (2**(bits + 1) - 2,)
        The levels of 1-bit dimensions, then those of 2 bits, and so on: code `c` of a `b`-bit dimension stands for
        ``levels[2**b - 2 + c]``; ascending in each table.
    widths : tuple of int
        Dimensions of each plane, descending; a dimension has as many bits as there are widths above it.
    coded : int
        Dimensions with one bit more, from the Hamming words behind the planes; see `ragq.layouts.from_ragged_planes`.
    """

    queries: Floats
    levels: Floats
    widths: tuple[int, ...]
    coded: int = 0

    kernel = "ragged_planes"

    def values(self, body: Codes) -> Floats:
        """Return the levels of rows, `(n, max(coded, widths[0]))`."""
        every = np.arange(max(self.coded, *self.widths, 0))
        bits = (every[:, None] < np.array(self.widths, int)).sum(axis=1) + (self.coded > 0)
        return self.levels[from_ragged_planes(body, self.widths, self.coded) + (2**bits - 2)]

    def raw(self, body: Codes) -> Floats:
        return self.queries @ self.values(body).T


@dataclass(frozen=True)
class HammingScorer(LinearScorer):
    """Signs against signs: ``raw = weight * (dim - 2 * popcount(query xor code))``, a symmetric score.

    Attributes
    ----------
    codes : ndarray of uint8, shape (n_queries, ceil(dim / 8))
        The queries as packed bits.
    weight : ndarray of float32, shape (n_queries,)
        What an agreeing dimension adds.
    dim : int
        Bits that count; the spare bits of the last byte are zero on both sides.
    """

    codes: Codes
    weight: Floats
    dim: int

    kernel = "hamming"

    def raw(self, body: Codes) -> Floats:
        distance = np.bitwise_count(body[None, :, :] ^ self.codes[:, None, :]).sum(axis=2, dtype=np.int32)
        return self.weight[:, None] * (self.dim - 2 * distance).astype(np.float32)


class NormScorer(Scorer):
    """Cosine and l2 from the inner product and the norm of the decoded vector.

    ``cosine = <q, x> / (|q| |x|)`` (0 where a norm is 0) and ``l2 = -|q - x|^2 = 2 <q, x> - |q|^2 - |x|^2``.
    """

    def __init__(self, compressor: Compressor, queries: Floats, metric: str) -> None:
        self.compressor = compressor
        self.metric = metric
        self.inner = compressor._scorer(queries)
        self.squares = np.einsum("ij,ij->i", queries, queries)  # no root is taken where it would be squared again

    @property
    def n_queries(self) -> int:
        return len(self.squares)

    def score(self, codes: Codes) -> Floats:
        products = self.inner.score(codes)
        decoded = self.compressor._decode(codes)
        rows = np.einsum("ij,ij->i", decoded, decoded)
        if self.metric == "l2":
            scores = 2 * products - self.squares[:, None] - rows
        else:
            norms = np.sqrt(self.squares)[:, None] * np.sqrt(rows)
            scores = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
        return scores.astype(np.float32, copy=False)
