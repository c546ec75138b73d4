"""RaBitQ and extended RaBitQ: the code whose direction is nearest, on the residual to the mean.

Gao and Long, "RaBitQ: quantizing high-dimensional vectors with a theoretical error bound" (SIGMOD 2024), and Gao et
al., "Practical and asymptotically optimal quantization of high-dimensional vectors in Euclidean space" (SIGMOD 2025).

With ``r = P (x - mean)``, the code of `b` bits a dimension is the vector `v` of half-integers ``code + (1 - 2^b) / 2``
with the highest cosine with `r`, up to its sign and length. All candidates are roundings of ``t r`` for some `t > 0`
(extended RaBitQ). Their algorithm sweeps every critical `t`; here a grid about the value that is best on
average stands in for the sweep, and one pass of code adjustment moves single coordinates to where the cosine still
rises (SAQ, arXiv 2509.12086): the same cosines to three digits, a row a SIMD lane. One bit needs neither: the code is
the signs.

    f = |r|^2 / <r, v>             <q, x> ~ <q, mean> + f <P q, v>

is unbiased over the choice of `P`, and with ``rho = cos(r, v)`` its error is at most (RaBitQ, theorem 3.2)

    |q| |r| sqrt((1 - rho^2) / rho^2) e / sqrt(dim - 1)

with a probability that grows with `e`: 94 % at ``e = 1.9``. `RBQ.error_bound` gives it where the codes store the
row's part of it (option `bound`).

The papers centre every inverted list on its own centroid. Here all rows are centred on the mean, as an inverted file of
ragq sorts the codes of the index and does not code residuals.

Bytes per vector: ``b ceil(dim / 8) + 2``, 2 more with `bound`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ragq.checks import check_bool, check_embeddings, check_int
from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.rotation import RandomRotation
from ragq.compressors.scalar import append_factors, encode_planes, stack_tables, uniform_levels
from ragq.compressors.scorers import LinearScorer, PlanesScorer, RaggedPlanesScorer, factor
from ragq.errors import InvalidArgumentError
from ragq.layouts import Layout, from_planes

__all__ = ["RBQ"]

# Distance of uniform levels that quantises a normal variable of variance 1 best, for 1 .. 9 bits (Max 1960, table II,
# continued): where the grid of scales has its middle.
STEPS = (1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308, 0.0165)
SCALES = np.geomspace(0.72, 1.4, 16).astype(np.float32)


class RBQ(RandomRotation, Quantizer):
    """RaBitQ, 1 to 9 bits a dimension.

    Parameters
    ----------
    bits : int
        Bits a dimension, 1 to 9.
    bound : bool
        Store the row's part of the error bound, 2 bytes.
    dense : bool
        Rotate by a dense matrix in place of the randomised Hadamard transform.
    """

    forms = ("RBQ{bits}",)
    examples = ("RBQ4", "RBQ1", "RBQ9", "RBQ2(bound)", "RBQ3(dense)")
    menu = ("RBQ1", "RBQ2", "RBQ4")
    learned = ("mean_",)
    rows_at_once = 2048
    tolerance = 1e-4  # of a row near zero, where the mean and the decoded residual cancel

    mean_: Floats  # (dim,)

    def __init__(self, bits: int, bound: bool = False, dense: bool = False) -> None:
        self.bits = check_int(bits, "bits", 1, 9)
        self.bound = check_bool(bound, "bound")
        self.dense = check_bool(dense, "dense")

    @property
    def layout(self) -> Layout:
        return Layout("planes", self.dim, self.bits, 1 + self.bound)

    @property
    def _step(self) -> np.float32:
        """Distance of the levels for a residual of length 1."""
        return np.float32(STEPS[self.bits - 1] / np.sqrt(self.dim))

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        self._draw_rotation(rng)
        self.mean_ = x.mean(axis=0, dtype=np.float64).astype(np.float32)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._state_shapes(), "mean_": (self.dim,)}

    def _encode(self, x: Floats) -> Codes:
        residuals = x - self.mean_
        body, f = encode_planes(
            self.rotate(residuals),
            self.bits,
            np.full(self.dim, self._step),
            None,
            scales=SCALES if self.bits > 1 else None,
            rounds=int(self.bits > 1),
            normalise=True,
        )
        if not self.bound:
            return append_factors(body, f)
        square = np.square(residuals, dtype=np.float64).sum(axis=1)
        levels = np.square(self._levels(body), dtype=np.float64).sum(axis=1)
        # f = |r|^2 / <r, v>, so |r|^2 (1 - rho^2) / rho^2 = f^2 |v|^2 - |r|^2
        error = np.sqrt(np.maximum(f.astype(np.float64) ** 2 * levels - square, 0) / max(self.dim - 1, 1))
        return append_factors(body, f, error)

    def _levels(self, body: Codes) -> Floats:
        return uniform_levels(self.bits)[from_planes(body, self.dim, self.bits)] * self._step

    def _factor(self, codes: Codes) -> Floats:
        return factor(codes, -1 - self.bound)[:, None]

    def _decode(self, codes: Codes) -> Floats:
        return self.mean_ + self.unrotate(self._levels(codes[:, : self.layout.width]) * self._factor(codes))

    def _scorer(self, queries: Floats) -> LinearScorer:
        bias, rotated = queries @ self.mean_, self.rotate(queries) * self._step
        levels, factors, weight = uniform_levels(self.bits), 1 + self.bound, np.zeros_like(bias) if self.bound else None
        if self.bits <= 8:
            return PlanesScorer(bias, rotated, levels, factors=factors, shift_weight=weight)
        tables, widths = stack_tables({self.bits: levels}), (self.dim,) * self.bits
        return RaggedPlanesScorer(bias, rotated, tables, widths, factors=factors, shift_weight=weight)

    def error_bound(self, queries: ArrayLike, codes: Codes, epsilon: float = 1.9) -> Floats:
        """Return how far an inner product may lie from its score.

        Parameters
        ----------
        queries : array_like of float, shape (q, dim)
        codes : ndarray of uint8, shape (n, code_size)
        epsilon : float
            Standard deviations of a normal variable: 1.9 holds for at least 94 % of all pairs, 3 for 99.7 %.

        Returns
        -------
        ndarray of float32, shape (q, n)

        Raises
        ------
        InvalidArgumentError
            The codec was built without `bound`.
        """
        if not self.bound:
            raise InvalidArgumentError(f"{self} stores no error bound. Build the index with 'RBQ{self.bits}(bound)'.")
        floats = check_embeddings(queries, self.dim, name="queries")
        error = factor(self._check_codes(codes), -1)
        return np.linalg.norm(floats, axis=1)[:, None] * (np.float32(epsilon) * error)
