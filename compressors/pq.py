"""Product quantization.

``x = (x_1, ..., x_M)``, each part replaced by the nearest of its own 2^b codewords; the codewords come from k-means.
The inner product of a query is a sum of M table entries, ``<q, x^> = sum_m T_m[code_m]`` with ``T_m[k] = <q_m, c_mk>``
(asymmetric distance computation).

Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", TPAMI 2011, section 3.

With ``length`` the quantized vector is stretched around the mean by the factor with the least squared error,
``f = <x - mean, c> / |c|^2`` for the codewords `c` of ``x - mean``, which an fp16 number keeps: as k-means codewords
are means of their clusters, a vector off its codewords decodes shorter or longer than it should.

Bytes per vector: M b / 8, and 2 more with ``length``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool, check_int
from ragq.compressors import codebooks
from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.scorers import LookupScorer, factor
from ragq.errors import InvalidArgumentError
from ragq.layouts import Layout

__all__ = ["PQ"]


class PQ(Quantizer):
    """Product quantization: a codeword for each of M parts of the vector.

    Parameters
    ----------
    m : int
        Sub-quantizers. Where `m` does not divide the dimension, the first ones are one dimension wider.
    bits : int
        4 or 8 bits a code: 16 or 256 codewords a sub-quantizer.
    length : bool
        Store the least-squares factor of each vector around the mean, 2 bytes.
    iterations : int
        Of k-means, at most.
    """

    forms = ("PQ{m}x{bits}",)
    examples = ("PQ8x4", "PQ7x4(length)", "PQ8x8", "PQ6x8(length)")
    menu = ("PQ{2}x4", "PQ{4}x8", "PQ{8}x8", "PQ{16}x8")

    codebook_: Floats  # (2**bits, dim); sub-quantizer m has the columns offsets[m] .. offsets[m + 1]
    mean_: Floats  # (dim,), with `length`

    def __init__(self, m: int, bits: int = 8, length: bool = False, iterations: int = 8) -> None:
        self.m = check_int(m, "m", 1)
        if bits not in (4, 8):
            raise InvalidArgumentError(f"'bits' of PQ must be 4 or 8. Got {bits!r}.")
        self.bits = int(bits)
        self.length = check_bool(length, "length")
        self.iterations = check_int(iterations, "iterations", 1)

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("codebook_", "mean_") if self.length else ("codebook_",)

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return int(2**self.bits)

    @property
    def layout(self) -> Layout:
        return Layout("nibbles" if self.bits == 8 else "blocks", self._codes, self.bits, int(self.length))

    @property
    def _codes(self) -> int:
        self._check_fitted()
        return self.m

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each sub-quantizer's columns begin, and the dimension: shape (m + 1,)."""
        return codebooks.even_offsets(self.dim, self.m)

    def _check_dim(self, dim: int) -> None:
        if self.m > dim:
            raise InvalidArgumentError(f"{self} has {self.m} parts. The embeddings have {dim} dimensions.")

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"codebook_": (2**self.bits, self.dim), "mean_": (self.dim,)}

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        k = 2**self.bits
        if self.length:
            self.mean_ = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        rows = self._centred(codebooks.sample_rows(x, codebooks.ROWS_PER_CODEWORD * k, rng))
        codebook = codebooks.fit_codebook(rows, self.offsets, k, iterations=self.iterations, rng=rng)
        self.codebook_ = codebooks.in_nibble_order(codebook, self.offsets)

    def _centred(self, x: Floats) -> Floats:
        return x - self.mean_ if self.length else x

    def _encode(self, x: Floats) -> Codes:
        z = self._centred(x)
        codes = codebooks.encode(z, self.codebook_, self.offsets)
        body = codebooks.pack_codes(codes, self.bits)
        if not self.length:
            return body
        return with_factor(body, least_squares_factor(z, codebooks.decode(codes, self.codebook_, self.offsets)))

    def _decode(self, codes: Codes) -> Floats:
        body = codebooks.unpack_codes(codes[:, : self.layout.width], self.m, self.bits)
        x = codebooks.decode(body, self.codebook_, self.offsets)
        return codebooks.add_mean(self.mean_, factor(codes, -1)[:, None] * x) if self.length else x

    def _scorer(self, queries: Floats) -> LookupScorer:
        bias = queries @ self.mean_ if self.length else np.zeros(len(queries), np.float32)
        return LookupScorer(bias, self._tables(queries), factors=int(self.length), separate=True)

    def _tables(self, queries: Floats) -> Floats:
        if len(queries) != 1 or self.dim % self.m:
            return codebooks.tables(queries, self.codebook_, self.offsets)
        return np.matmul(queries.reshape(self.m, 1, -1), self._words)[None, :, 0]

    @property
    def _words(self) -> Floats:
        """The codewords of parts of one width, `(m, width, 2**bits)`: where they lie in the codebook, a query waits."""
        known = self.__dict__.get("_parted")
        if known is None or known[0] is not self.codebook_:
            words = np.ascontiguousarray(self.codebook_.T).reshape(self.m, -1, 2**self.bits)
            known = self._parted = (self.codebook_, words)
        return known[1]


def least_squares_factor(z: Floats, decoded: Floats) -> Floats:
    """Return ``f = <z, c> / |c|^2``, which minimises ``|z - f c|^2``; 1 where `c` is zero, never below 0."""
    products = np.sum(z.astype(np.float64) * decoded, axis=1)
    squares = np.sum(decoded.astype(np.float64) ** 2, axis=1)
    f = np.divide(products, squares, out=np.ones_like(squares), where=squares > 0)
    return np.clip(f, 0, np.finfo(np.float16).max).astype(np.float32)


def with_factor(body: Codes, f: Floats) -> Codes:
    """Append a factor to row codes as fp16."""
    return np.concatenate([body, f.astype("<f2")[:, None].view(np.uint8)], axis=1)
