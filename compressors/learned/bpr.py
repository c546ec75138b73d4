"""BPR: learned binary codes, ranked by the float query.

    b(x) = sign(H (x - mean)),     score(q, x) = <q, u> + f <A q, b(x)>

`H` (n_bits, dim) hashes documents, `A` (n_bits, dim) maps queries, and `f` is 1, or with `length` the row's mean of
``|H (x - mean)|``. Training puts ``tanh(beta z)`` in the place of the sign, with ``beta = sqrt(1 + step / 10)``, so
that the smooth code becomes the binary one by and by, and distils the dense scores into the float query against the
code. (The published loss adds a margin for the query's own signs, which choose candidates by Hamming distance there;
the scan here scores every row with the float query, so that nothing is to be chosen.)

`fit` gives the start of training: the principal axes turned by iterative quantization (`ITQ`), both maps the same.

Yamada, Asai and Hajishirzi, "Efficient passage retrieval with hashing for open-domain question answering", ACL 2021,
equations 2-5; Thakur, Reimers and Lin, "Injecting domain adaptation with learning-to-hash for effective and efficient
zero-shot dense retrieval", 2022, adapt it to a domain with generated queries.

Bytes per vector: ``ceil(n_bits / 8)``, 2 more with `length`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool, check_int
from ragq.compressors.base import Codes, Floats, Quantizer, row_slices
from ragq.compressors.binary import SIGNS
from ragq.compressors.exact import exact_matmul
from ragq.compressors.floats import F16_MAX
from ragq.compressors.itq import ITQ
from ragq.compressors.scorers import PlanesScorer, factor
from ragq.errors import InvalidArgumentError
from ragq.layouts import Layout, from_planes, to_planes

__all__ = ["BPR"]


class BPR(Quantizer):
    """Learned binary codes: the start is ITQ; train it with ``ragq train --method bpr``.

    Parameters
    ----------
    n_bits : int
        Bits of a code, at most the dimension.
    length : bool
        Store how far each row's signs lie from the mean, 2 bytes.
    """

    forms: ClassVar[tuple[str, ...]] = ("BPR{n_bits}",)
    examples: ClassVar[tuple[str, ...]] = ("BPR24", "BPR30(length)")
    menu: ClassVar[tuple[str, ...]] = ("BPR{1}", "BPR{2}(length)")
    state_names = ("mean_", "hash_map_", "query_mean_", "query_map_")
    state_dtypes: ClassVar[dict[str, str]] = {"hash_map_": "float16", "query_map_": "float16"}

    mean_: Floats  # (dim,)
    hash_map_: NDArray[np.float16]  # H, (n_bits, dim)
    query_mean_: Floats  # u, (dim,)
    query_map_: NDArray[np.float16]  # A, (n_bits, dim)

    def __init__(self, n_bits: int, length: bool = False) -> None:
        self.n_bits = check_int(n_bits, "n_bits", 1)
        self.length = check_bool(length, "length")

    @property
    def layout(self) -> Layout:
        self._check_fitted()
        return Layout("planes", self.n_bits, 1, int(self.length))

    def _check_dim(self, dim: int) -> None:
        if self.n_bits > dim:
            raise InvalidArgumentError(f"{self} needs {self.n_bits} dimensions. The embeddings have {dim}.")

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        both = (self.n_bits, self.dim)
        return {"mean_": (self.dim,), "hash_map_": both, "query_mean_": (self.dim,), "query_map_": both}

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        start = ITQ(self.n_bits).fit(x, seed=int(rng.integers(2**31)))
        self.mean_ = start.mean_
        self.hash_map_ = np.ascontiguousarray(start.matrix_.T, np.float16)
        step = 1.0 if self.length else float(np.abs(start.apply(x)).mean(dtype=np.float64))
        self.set_query_side(self.mean_, self.hash_map_.astype(np.float32) * np.float32(step))

    def set_query_side(self, mean: Floats, query_map: Floats) -> None:
        """Take over trained parameters: `u` (dim,) and `A` (n_bits, dim), rounded to what is stored."""
        self.query_mean_ = np.array(mean, np.float32)  # a copy: training goes on with what it gave
        self.query_map_ = np.ascontiguousarray(np.clip(query_map, -F16_MAX, F16_MAX), np.float16)

    def _encode(self, x: Floats) -> Codes:
        codes = np.empty((len(x), self.code_size), np.uint8)
        for rows in row_slices(x):
            z = exact_matmul(x[rows] - self.mean_, self.hash_map_.T)
            codes[rows, : self.layout.width] = to_planes((z > 0).view(np.uint8), 1)
            if self.length:
                steps = np.abs(z, dtype=np.float64).mean(axis=1, keepdims=True)
                codes[rows, self.layout.width :] = np.minimum(steps, F16_MAX).astype("<f2").view(np.uint8)
        return codes

    def _decode(self, codes: Codes) -> Floats:
        signs = SIGNS[from_planes(codes[:, : self.layout.width], self.n_bits, 1)]
        if self.length:
            signs = signs * factor(codes, -1)[:, None]
        return self.query_mean_ + signs @ self.query_map_.astype(np.float32)

    def _scorer(self, queries: Floats) -> PlanesScorer:
        folded = queries @ self.query_map_.T.astype(np.float32)
        return PlanesScorer(queries @ self.query_mean_, folded, SIGNS, factors=int(self.length))
