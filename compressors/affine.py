"""Integers on an even grid a dimension: INT8 (1 byte a dimension) and INT4 (half a byte).

Dimension `j` has a middle and a step: ``code = clip(round((x_j - middle_j) / step_j))``, ``x_j ~ middle_j + step_j
code``. Scores use the values, not the codes: ``<q, x> ~ <q, middle> + <q * step, code>``, the steps folded into the
query. Scoring raw codes instead (as the int8 baseline of arXiv 2505.00105 does) weighs every dimension by ``1 /
step_j`` and costs much of the recall.

The range of a dimension leaves out the tails whose clipping costs less than the finer step gains: the quantile pair of
least squared error on the sample. A value out of range takes the nearest end.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.base import Codes, Floats, Quantizer, row_slices
from ragq.compressors.scorers import DenseScorer, LinearScorer, PlanesScorer
from ragq.errors import CorruptIndexError
from ragq.layouts import Layout, from_planes, to_planes

__all__ = ["INT4", "INT8"]

TAILS = (0, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04)
SAMPLE_ROWS = 16384  # for the choice of the tails


class Affine(Quantizer):
    """What INT8 and INT4 share: a middle and a step a dimension, integers in ``-2^(bits-1) .. 2^(bits-1) - 1``."""

    state_names = ("middle_", "step_")

    bits: ClassVar[int]
    middle_: Floats  # (dim,), the value of code 0
    step_: Floats  # (dim,), 0 where the sample was constant

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        if len(x) > SAMPLE_ROWS:
            x = x[np.sort(rng.choice(len(x), SAMPLE_ROWS, replace=False))]
        best = np.full(x.shape[1], np.inf)
        self.middle_, self.step_ = np.zeros((2, x.shape[1]), np.float32)
        for tail in TAILS:
            low, high = np.quantile(x, [tail, 1 - tail], axis=0)
            step = ((high - low) / (2**self.bits - 1)).astype(np.float32)
            middle = (low + step * 2.0 ** (self.bits - 1)).astype(np.float32)
            error = np.square(middle + step * self._integers(x, middle, step) - x).sum(axis=0, dtype=np.float64)
            better = error < best
            best[better], self.middle_[better], self.step_[better] = error[better], middle[better], step[better]

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"middle_": (self.dim,), "step_": (self.dim,)}

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        super()._check_state(arrays)
        if (self.step_ < 0).any():
            raise CorruptIndexError(f"'step_' of {self} must not be negative. Got {self.step_.min()}.")

    def _integers(self, x: Floats, middle: Floats, step: Floats) -> Floats:
        """Return the integers of `x` as float32."""
        top = 2 ** (self.bits - 1)
        with np.errstate(over="ignore"):  # what overflows is out of range anyway
            inverse = np.divide(1, step, out=np.zeros_like(step), where=step >= np.finfo(np.float32).tiny)
            integers = (x - middle) * inverse
        return np.clip(np.rint(integers, out=integers), -top, top - 1, out=integers)


class INT8(Affine):
    """256 even steps a dimension, 1 byte a dimension."""

    forms = ("INT8",)
    examples = ("INT8",)
    bits = 8

    @property
    def layout(self) -> Layout:
        return Layout("rows", self.dim)

    def _encode(self, x: Floats) -> Codes:
        codes = np.empty(x.shape, np.int8)
        for rows in row_slices(x):
            codes[rows] = self._integers(x[rows], self.middle_, self.step_)
        return codes.view(np.uint8)

    def _decode(self, codes: Codes) -> Floats:
        return self.middle_ + self.step_ * codes.view(np.int8)

    def _scorer(self, queries: Floats) -> LinearScorer:
        return DenseScorer(queries @ self.middle_, queries * self.step_, "i1")


class INT4(Affine):
    """16 even steps a dimension, half a byte a dimension, stored as bit planes."""

    forms = ("INT4",)
    examples = ("INT4",)
    bits = 4

    @property
    def layout(self) -> Layout:
        return Layout("planes", self.dim, self.bits)

    def _encode(self, x: Floats) -> Codes:
        codes = np.empty((len(x), self.code_size), np.uint8)
        for rows in row_slices(x):
            integers = self._integers(x[rows], self.middle_, self.step_)
            codes[rows] = to_planes((integers + 8).astype(np.uint8), self.bits)
        return codes

    def _decode(self, codes: Codes) -> Floats:
        return self.middle_ + self.step_ * (from_planes(codes, self.dim, self.bits).astype(np.float32) - 8)

    def _scorer(self, queries: Floats) -> LinearScorer:
        levels = np.arange(-8, 8, dtype=np.float32)
        return PlanesScorer(queries @ self.middle_, queries * self.step_, levels)
