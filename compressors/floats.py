"""Floats stored as they are, or with half the bits.

====  ==================  ===========================================
F32   4 bytes a dimension exact: the baseline of every comparison
F16   2 bytes a dimension 11 significant bits, largest value 65504
BF16  2 bytes a dimension 8 significant bits, float32's range
====  ==================  ===========================================

Values are rounded to the nearest, ties to even; a value out of range becomes the largest one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.scorers import DenseScorer
from ragq.layouts import Layout

__all__ = ["BF16", "F16", "F32"]

F16_MAX = np.float32(65504)
BF16_MAX = np.uint32(0x7F7F0000).view(np.float32)


class F32(Quantizer):
    """IEEE float32, 4 bytes a dimension."""

    forms = ("F32",)
    examples = ("F32",)

    dtype: ClassVar[str] = "f4"
    bytes_per_dim: ClassVar[int] = 4

    @property
    def layout(self) -> Layout:
        return Layout("rows", self.bytes_per_dim * self.dim)

    def _encode(self, x: Floats) -> Codes:
        return x.astype("<f4").view(np.uint8)

    def _decode(self, codes: Codes) -> Floats:
        return self._scorer(np.empty((0, self.dim), np.float32)).values(codes)

    def _scorer(self, queries: Floats) -> DenseScorer:
        return DenseScorer(np.zeros(len(queries), np.float32), queries, self.dtype)


class F16(F32):
    """IEEE float16, 2 bytes a dimension."""

    forms = ("F16",)
    examples = ("F16",)

    dtype = "f2"
    bytes_per_dim = 2

    def _encode(self, x: Floats) -> Codes:
        return np.clip(x, -F16_MAX, F16_MAX).astype("<f2").view(np.uint8)


class BF16(F32):
    """bfloat16, the upper half of a float32, 2 bytes a dimension."""

    forms = ("BF16",)
    examples = ("BF16",)

    dtype = "bf2"
    bytes_per_dim = 2

    def _encode(self, x: Floats) -> Codes:
        bits = np.clip(x, -BF16_MAX, BF16_MAX).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # half up, less one when the kept part is even
        return (rounded >> 16).astype("<u2").view(np.uint8)
