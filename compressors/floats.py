"""Floats stored as they are: the baseline of every comparison.

F32: 4 bytes a dimension, exact.
"""

from __future__ import annotations

import numpy as np

from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.scorers import DenseScorer
from ragq.layouts import Layout

__all__ = ["F32"]


class F32(Quantizer):
    """IEEE float32, 4 bytes a dimension."""

    forms = ("F32",)
    examples = ("F32",)

    @property
    def layout(self) -> Layout:
        return Layout("rows", 4 * self.dim)

    def _encode(self, x: Floats) -> Codes:
        return x.astype("<f4").view(np.uint8)

    def _decode(self, codes: Codes) -> Floats:
        return np.ascontiguousarray(codes).view("<f4").astype(np.float32)

    def _scorer(self, queries: Floats) -> DenseScorer:
        return DenseScorer(np.zeros(len(queries), np.float32), queries, "f4")
