"""MUVERA: one vector a document whose inner product with a query's one vector estimates MaxSim.

MaxSim (Chamfer similarity) of a query ``Q`` and a document ``D`` is ``sum over q of max over x of <q, x>``. `k` random
hyperplanes cut the space into ``2^k`` buckets, so that near tokens tend to share one. In each of `R` repetitions, a
query's vector holds, bucket by bucket, the *sum* of its tokens there, a document's the *mean* of its own; a bucket that
has no token of the document is filled with the token whose side of the hyperplanes differs in the fewest places. A
count sketch ``psi`` brings every block down to `p` dimensions, and another the whole vector to `final`:

    F(Q) = (1 / R) [ sum of psi_r(q) over q in bucket b ]_(r, b)
    F(D) =         [ mean of psi_r(x) over x in bucket b, or the nearest x ]_(r, b)

and ``<F(Q), F(D)>`` is, up to the sketches' unbiased noise, the sum over `q` of an average of ``<q, x>`` over document
tokens that lie where `q` does. The scale is MaxSim's own.

Jayaram, Dhulipala, Hadian, Lee and Mirrokni, "MUVERA: multi-vector retrieval via fixed dimensional encodings", NeurIPS
2024 (arXiv 2405.19504), section 2.1. Count sketch: Charikar, Chen and Farach-Colton 2002.

Bytes per document: those of the codec that follows, over ``R 2^k p`` (or `final`) dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool, check_int
from ragq.compressors.base import Floats
from ragq.compressors.exact import exact_matmul
from ragq.compressors.reduction import second_moment
from ragq.compressors.tokens import TokenStage
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.tokens import TokenEmbeddings

__all__ = ["MUVERA"]

MAX_DIM = 1 << 20
MAX_STRETCH = 10.0  # of a mean of tokens that all but cancel
CHUNK_TOKENS = 1 << 16
CHUNK_CELLS = 1 << 23  # numbers of the table that fills empty buckets


class MUVERA(TokenStage):
    """Fixed-dimensional encodings of multi-vector embeddings.

    Parameters
    ----------
    R : int
        Repetitions. The more, the nearer the estimate is to MaxSim; nothing else matters as much.
    k : int
        Hyperplanes of a repetition, for ``2^k`` buckets; 0 to 10.
    p : int or None
        Dimensions of a bucket; None keeps those of the tokens.
    final : int or None
        Dimensions of the whole, by one more count sketch; None keeps ``R 2^k p``.
    centred : bool
        Let the hyperplanes pass through the mean of the sample instead of zero, so that the tokens of a model with a
        large common mean spread over the buckets.
    axes : bool
        Deal the principal axes of the sample out to the repetitions, `p` each, in place of the sketches: no noise, but
        the axes beyond ``R p`` are lost.
    unit : bool
        Stretch the mean of a bucket to the mean length of its tokens, since MaxSim wants the best token and a mean is
        shorter than any.
    """

    forms = ("MUVERA",)
    state_dtypes = {"signs_": "int8", "column_": "int32", "final_signs_": "int8", "final_column_": "int32"}  # noqa: RUF012

    planes_: Floats  # (R k, dim), normals
    offsets_: Floats  # (R k,), where each plane lies along its normal
    axes_: Floats  # (dim, R p), what projects to the blocks, with `axes`
    signs_: NDArray[np.int8]  # (R, dim), of the sketches
    column_: NDArray[np.int32]  # (R, dim), where a sketch adds each dimension
    final_signs_: NDArray[np.int8]  # (R 2^k p,), and the same of the last sketch
    final_column_: NDArray[np.int32]

    def __init__(
        self,
        R: int = 20,
        k: int = 4,
        p: int | None = 8,
        final: int | None = None,
        centred: bool = False,
        axes: bool = False,
        unit: bool = False,
    ) -> None:
        self.R = check_int(R, "R", 1, 1000)
        self.k = check_int(k, "k", 0, 10)
        self.p = None if p is None else check_int(p, "p", 1)
        self.final = None if final is None else check_int(final, "final", 1, MAX_DIM)
        self.centred = check_bool(centred, "centred")
        self.axes = check_bool(axes, "axes")
        if self.axes and self.p is None:
            raise InvalidArgumentError("'axes' of MUVERA needs 'p': without it there is nothing to project to.")
        self.unit = check_bool(unit, "unit")

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        sketch = () if not self.p else ("axes_",) if self.axes else ("signs_", "column_")
        last = ("final_signs_", "final_column_") if self.final else ()
        return ("planes_", "offsets_", *sketch, *last)

    @property
    def buckets(self) -> int:
        """Buckets of a repetition."""
        return int(2**self.k)

    @property
    def dim_block(self) -> int:
        """Dimensions of a bucket."""
        return self.p or self.dim

    @property
    def dim_out(self) -> int:
        """Dimensions of an encoding."""
        return self.final or self.R * self.buckets * self.dim_block

    def _check_dim(self, dim: int) -> None:
        blocks = self.R * self.buckets * (self.p or dim)
        if blocks > MAX_DIM:
            raise InvalidArgumentError(
                f"{self} makes R 2^k p = {blocks:,} dimensions; at most {MAX_DIM:,} are allowed. Lower R, k or p."
            )

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        sketch, last = (self.R, self.dim), (self.R * self.buckets * self.dim_block,)
        return {
            "planes_": (self.R * self.k, self.dim),
            "offsets_": (self.R * self.k,),
            "axes_": (self.dim, self.R * (self.p or 0)),
            "signs_": sketch,
            "column_": sketch,
            "final_signs_": last,
            "final_column_": last,
        }

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        super()._check_state(arrays)
        for name, limit in (("column_", self.p), ("final_column_", self.final)):
            if name in arrays and (arrays[name].min() < 0 or arrays[name].max() >= (limit or 0)):
                raise CorruptIndexError(f"'{name}' of {self} must lie in 0..{(limit or 0) - 1}.")
        for name in ("signs_", "final_signs_"):
            if name in arrays and (np.abs(arrays[name]) != 1).any():
                raise CorruptIndexError(f"'{name}' of {self} must be 1 or -1.")

    def _fit_tokens(self, tokens: TokenEmbeddings, queries: TokenEmbeddings | None, rng: np.random.Generator) -> None:
        self.planes_ = rng.standard_normal((self.R * self.k, self.dim)).astype(np.float32)
        mean = tokens.values.mean(axis=0, dtype=np.float64) if self.centred and tokens.total else np.zeros(self.dim)
        self.offsets_ = (self.planes_ @ mean).astype(np.float32)
        if self.axes:
            self.axes_ = self._principal_axes(tokens.values)
        elif self.p:
            self.signs_ = rng.choice(np.array([-1, 1], np.int8), (self.R, self.dim))
            self.column_ = rng.integers(self.p, size=(self.R, self.dim), dtype=np.int32)
        if self.final:
            blocks = self.R * self.buckets * self.dim_block
            self.final_signs_ = rng.choice(np.array([-1, 1], np.int8), blocks)
            self.final_column_ = rng.integers(self.final, size=blocks, dtype=np.int32)

    def _principal_axes(self, x: Floats) -> Floats:
        """Return the principal axes, dealt out so that each repetition has long ones and short ones.

        An axis that several repetitions hold, where ``R p`` is above the dimension, is made as much shorter, so that
        the sum over all repetitions is ``R`` times the inner product; encoding divides by `R`.
        """
        assert self.p is not None
        _, vectors = np.linalg.eigh(second_moment(x))
        axes = np.arange(self.R * self.p) % self.dim
        times = np.bincount(axes, minlength=self.dim)[axes]
        columns = vectors[:, ::-1][:, axes] * np.sqrt(self.R / times)
        dealt = columns.reshape(self.dim, self.p, self.R).transpose(0, 2, 1)
        return np.ascontiguousarray(dealt.reshape(self.dim, -1), np.float32)

    def encode_queries(self, queries: TokenEmbeddings) -> Floats:
        """Return the encodings of queries, `(n, dim_out)` float32; a query without tokens gives zeros."""
        self._check_tokens(queries, "queries")
        parts = [self._blocks(part, np.matmul)[0] for part in self._chunks(queries)]
        return self._finished(parts, np.float32(1 / self.R))

    def encode_documents(self, documents: TokenEmbeddings) -> Floats:
        """Return the encodings of documents, `(n, dim_out)` float32, each from its own tokens; zeros without any."""
        self._check_tokens(documents)
        parts = []
        for part in self._chunks(documents):
            sums, cells, blocks, projected = self._blocks(part, exact_matmul)
            counts = np.bincount(cells.ravel(), minlength=len(part) * self.R * self.buckets)
            sums /= np.maximum(counts, 1).astype(np.float32).reshape(*sums.shape[:3], 1)
            if self.unit:
                sums *= self._stretch(sums, cells, counts, projected)
            self._fill(sums, blocks, projected, part)
            parts.append(sums)
        return self._finished(parts, np.float32(1))

    def _chunks(self, tokens: TokenEmbeddings) -> list[TokenEmbeddings]:
        """Cut into runs of documents that need little memory."""
        documents = max(1, CHUNK_CELLS // (self.R * self.buckets * max(self.buckets, self.dim_block)))
        chunks, start = [], 0
        while start < len(tokens):
            stop = int(np.searchsorted(tokens.offsets, tokens.offsets[start] + CHUNK_TOKENS, "right")) - 1
            stop = min(max(stop, start + 1), start + documents, len(tokens))
            chunks.append(tokens[start:stop])
            start = stop
        return chunks

    def _blocks(
        self, tokens: TokenEmbeddings, matmul: Callable[[Floats, Floats], Floats]
    ) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64], Floats]:
        """Add up the tokens of each document in each repetition and bucket.

        Parameters
        ----------
        tokens : TokenEmbeddings
        matmul : callable
            `exact_matmul` where a document must get the same code in any batch.

        Returns
        -------
        sums : ndarray of float32, shape (n, R, buckets, dim_block)
        cells : ndarray of int64, shape (R, total)
            Which block of `sums` a token was added to, counted over documents, repetitions and buckets.
        buckets : ndarray of int64, shape (total, R)
        projected : ndarray of float32, shape (total, R, dim_block), or (total, 1, dim) without sketches
        """
        n, total = len(tokens), tokens.total
        sides = matmul(tokens.values, self.planes_.T) > self.offsets_
        buckets = sides.reshape(total, self.R, self.k) @ (1 << np.arange(self.k, dtype=np.int64))
        if self.p:
            projected = matmul(tokens.values, self._sketches()).reshape(total, self.R, self.p)
        else:
            projected = tokens.values[:, None, :]
        documents = np.repeat(np.arange(n), tokens.counts)
        cells = (documents * self.R + np.arange(self.R)[:, None]) * self.buckets + buckets.T
        sums = np.zeros((n * self.R * self.buckets, self.dim_block), np.float32)
        for r in range(self.R if total else 0):
            order = np.argsort(cells[r], kind="stable")
            sorted_cells = cells[r, order]
            starts = np.flatnonzero(np.diff(sorted_cells, prepend=-1))
            rows = projected[order, r if self.p else 0]
            sums[sorted_cells[starts]] = np.add.reduceat(rows, starts, axis=0)
        return sums.reshape(n, self.R, self.buckets, self.dim_block), cells, buckets, projected

    def _stretch(
        self, means: Floats, cells: NDArray[np.int64], counts: NDArray[np.int64], projected: Floats
    ) -> NDArray[np.float32]:
        """Return what makes the mean of each bucket as long as its tokens are on average, `(n, R, buckets, 1)`."""
        lengths = np.sqrt(np.square(projected, dtype=np.float64).sum(axis=2)).T  # (R or 1, total)
        sums = np.bincount(cells.ravel(), np.broadcast_to(lengths, cells.shape).ravel(), minlength=len(counts))
        own = np.sqrt(np.square(means, dtype=np.float64).sum(axis=3)).ravel() * counts
        stretch = np.divide(sums, own, out=np.ones(len(counts)), where=own > 0)
        return np.minimum(stretch, MAX_STRETCH).astype(np.float32).reshape(*means.shape[:3], 1)

    def _sketches(self) -> Floats:
        """Return what projects to the blocks of all repetitions, `(dim, R p)`: count sketches or axes."""
        if self.axes:
            return self.axes_
        assert self.p is not None
        matrix = np.zeros((self.dim, self.R, self.p), np.float32)
        for r in range(self.R):
            matrix[np.arange(self.dim), r, self.column_[r]] = self.signs_[r]
        return matrix.reshape(self.dim, self.R * self.p)

    def _fill(self, blocks: Floats, buckets: NDArray[np.int64], projected: Floats, tokens: TokenEmbeddings) -> None:
        """Put into each empty bucket the document's token in the nearest bucket, of equals the first token."""
        n, total = len(tokens), tokens.total
        if not total or not self.k:
            return
        unset = np.int64(total)
        first = np.full((n, self.R, self.buckets), unset)  # the first token of each bucket
        documents = np.repeat(np.arange(n), tokens.counts)[:, None]
        np.minimum.at(first, (documents, np.arange(self.R), buckets), np.arange(total)[:, None])
        numbers = np.arange(self.buckets)
        differing = np.bitwise_count(numbers[:, None] ^ numbers).astype(np.int64)  # places in which two buckets differ
        held = np.where(first == unset, self.k + 1, 0)  # a bucket without tokens gives none
        cost = (differing + held[:, :, None, :]) * (unset + 1) + first[:, :, None, :]
        nearest = np.min(cost, axis=3) % (unset + 1)
        document, repetition, bucket = np.nonzero((first == unset) & (tokens.counts > 0)[:, None, None])
        token = nearest[document, repetition, bucket]
        blocks[document, repetition, bucket] = projected[token, repetition if self.p else 0]

    def _finished(self, parts: list[Floats], scale: np.float32) -> Floats:
        blocks = [part.reshape(len(part), -1) for part in parts]
        if self.final:
            blocks = [self._final_sketch(part) for part in blocks]
        encodings = np.concatenate([np.empty((0, self.dim_out), np.float32), *blocks])
        encodings *= scale
        return encodings

    def _final_sketch(self, blocks: Floats) -> Floats:
        order = np.argsort(self.final_column_, kind="stable")
        columns = self.final_column_[order]
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        sketched = np.zeros((len(blocks), self.dim_out), np.float32)
        signed = blocks[:, order] * self.final_signs_[order].astype(np.float32)
        sketched[:, columns[starts]] = np.add.reduceat(signed, starts, axis=1)
        return sketched
