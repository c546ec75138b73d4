"""Locally-adaptive vector quantization: an even grid between the smallest and the largest coordinate of each row.

Aguerrebere et al., "Similarity search in the blink of an eye with compressed indices" (VLDB 2023), arXiv 2304.04759.

LVQ{b} (definition 1)
    ``y = x - mean``, ``l = min_j y_j``, ``delta = (max_j y_j - l) / (2^b - 1)``, ``c_j = round((y_j - l) / delta)``;
    ``<q, x> ~ <q, mean> + l sum(q) + delta <q, c>``. `l` and `delta` are stored as fp16, and rounded before use.
LVQ{b1}x{b2} (definition 2)
    The residual of a coordinate lies within ``delta / 2``; it gets `b2` bits on an even grid there. The planes of the
    first level come first, so one stored code answers at both precisions.

An outlier stretches the grid of its whole row: rotate first (``RR,LVQ4``), and below 4 bits take RaBitQ or TurboQuant.

Bytes per vector: ``(b1 + b2) ceil(dim / 8) + 4``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors.base import Codes, Floats, Quantizer, row_slices
from ragq.compressors.floats import F16_MAX
from ragq.compressors.scalar import append_factors, stack_tables
from ragq.compressors.scorers import LinearScorer, PlanesScorer, RaggedPlanesScorer, factor
from ragq.layouts import Layout, from_planes, to_planes

__all__ = ["LVQ"]

SMALLEST = np.float32(2.0**-24)  # the smallest step that fp16 can hold


class LVQ(Quantizer):
    """LVQ of one or two levels.

    Parameters
    ----------
    bits : int
        Bits a dimension of the first level, 1 to 8.
    residual_bits : int, optional
        Bits a dimension of the second level, 1 to 8; None for one level.
    """

    forms = ("LVQ{bits}x{residual_bits}", "LVQ{bits}")
    examples = ("LVQ4", "LVQ4x4", "LVQ4x8", "LVQ8", "RR,LVQ4")
    menu = ("LVQ4", "LVQ8", "LVQ4x4", "LVQ4x8")
    state_names = ("mean_",)
    tolerance = 1e-3  # of a row near zero, where the mean and the decoded residual cancel

    mean_: Floats  # (dim,)

    def __init__(self, bits: int, residual_bits: int | None = None) -> None:
        self.bits = check_int(bits, "bits", 1, 8)
        self.residual_bits = None if residual_bits is None else check_int(residual_bits, "residual_bits", 1, 8)

    @property
    def _all_bits(self) -> int:
        return self.bits + (self.residual_bits or 0)

    @property
    def layout(self) -> Layout:
        return Layout("planes", self.dim, self._all_bits, 2)

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        self.mean_ = x.mean(axis=0, dtype=np.float64).astype(np.float32)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"mean_": (self.dim,)}

    def _levels(self) -> Floats:
        """Return what each code stands for, in units of `delta` above `l`."""
        first = np.arange(2**self.bits, dtype=np.float32)
        if self.residual_bits is None:
            return first
        second = np.linspace(-0.5, 0.5, 2**self.residual_bits, dtype=np.float32)
        return (first[:, None] + second).ravel()

    def _encode(self, x: Floats) -> Codes:
        codes = np.empty((len(x), self.code_size), np.uint8)
        for rows in row_slices(x):
            codes[rows] = self._encode_rows(x[rows] - self.mean_)
        return codes

    def _encode_rows(self, y: Floats) -> Codes:
        top = 2**self.bits - 1
        low = np.clip(y.min(axis=1), -F16_MAX, F16_MAX).astype(np.float16)
        step = np.clip((y.max(axis=1) - low) / top, SMALLEST, F16_MAX).astype(np.float16)
        position = (y - low[:, None].astype(np.float32)) / step[:, None].astype(np.float32)
        first = np.clip(np.rint(position), 0, top)
        code: NDArray[np.uint16] = first.astype(np.uint16)
        if self.residual_bits is not None:
            finest = 2**self.residual_bits - 1
            second = np.clip(np.rint((position - first + 0.5) * finest), 0, finest)
            code = (code << self.residual_bits) | second.astype(np.uint16)
        body = to_planes(code, self._all_bits)
        return append_factors(body, step.astype(np.float32), low.astype(np.float32))

    def _decode(self, codes: Codes) -> Floats:
        levels = self._levels()[from_planes(codes[:, : self.layout.width], self.dim, self._all_bits)]
        return self.mean_ + factor(codes, -1)[:, None] + factor(codes, -2)[:, None] * levels

    def _scorer(self, queries: Floats) -> LinearScorer:
        bias, sums, levels = queries @ self.mean_, queries.sum(axis=1), self._levels()
        if self._all_bits <= 8:
            return PlanesScorer(bias, queries, levels, factors=2, shift_weight=sums)
        tables, widths = stack_tables({self._all_bits: levels}), (self.dim,) * self._all_bits
        return RaggedPlanesScorer(bias, queries, tables, widths, factors=2, shift_weight=sums)
