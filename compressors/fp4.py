"""Four-bit floats with block scales: half a byte a dimension, and a byte a block.

A row is cut into blocks of `block` dimensions. A block stores one scale `s`, an E4M3 number, and for each dimension the
E2M1 value (0, 0.5, 1, 1.5, 2, 3, 4 or 6, with a sign) nearest to ``x / s``: ``x ~ s v``. The block's largest coordinate
goes to 6 or to 4, whichever leaves the smaller squared error: the grid is coarse between the two. One global power of
two keeps the scales inside E4M3's range.

Bytes per vector: ``ceil(dim / 2) + ceil(dim / block)``; 204 for 384 dimensions. The formats are those of the OCP
Microscaling specification (E2M1) and of NVFP4 (an E4M3 scale a block).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors.base import Codes, Floats, Quantizer, row_slices
from ragq.compressors.minifloat import E2M1, E4M3, power_of_two_scale
from ragq.compressors.scorers import LinearScorer
from ragq.errors import CorruptIndexError
from ragq.layouts import Layout

__all__ = ["FP4", "FP4Scorer"]

PEAKS = (6, 4)  # the values that a block's largest coordinate may be given


@dataclass(frozen=True)
class FP4Scorer(LinearScorer):
    """Blocks of E2M1 values under E4M3 scales: ``raw = queries @ (scale * value)``.

    Attributes
    ----------
    queries : ndarray of float32, shape (n_queries, dim)
    block : int
        Dimensions that share a scale.
    """

    queries: Floats
    block: int

    kernel = "fp4"

    def values(self, body: Codes) -> Floats:
        """Return the numbers that row codes stand for, `(n, dim)` float32."""
        dim = self.queries.shape[1]
        half = -(-dim // 2)
        nibbles = np.stack([body[:, :half] & 15, body[:, :half] >> 4], axis=2).reshape(len(body), 2 * half)[:, :dim]
        return E2M1.levels[nibbles] * np.repeat(E4M3.levels[body[:, half:]], self.block, axis=1)[:, :dim]

    def raw(self, body: Codes) -> Floats:
        return self.queries @ self.values(body).T


class FP4(Quantizer):
    """E2M1 with an E4M3 scale a block.

    Parameters
    ----------
    block : int
        Dimensions that share a scale, 2 to 256; fewer is finer and costs more bytes.
    """

    forms = ("FP4",)
    examples = ("FP4", "FP4(block=16)", "PCA30,FP4")
    menu = ("FP4", "FP4(block=16)")
    state_names = ("scale_",)

    scale_: Floats  # (1,), a power of two: what a block's scale is multiplied by before it is rounded

    def __init__(self, block: int = 32) -> None:
        self.block = check_int(block, "block", 2, 256)

    @property
    def layout(self) -> Layout:
        return Layout("rows", -(-self.dim // 2) + -(-self.dim // self.block))

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        self.scale_ = power_of_two_scale(np.abs(x).max() / min(PEAKS), E4M3.largest)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"scale_": (1,)}

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        super()._check_state(arrays)
        if not 2.0**-100 <= self.scale_[0] <= 2.0**100:
            raise CorruptIndexError(f"'scale_' of {self} must be in 2^-100..2^100. Got {self.scale_[0]}.")

    def _encode(self, x: Floats) -> Codes:
        codes = np.empty((len(x), self.code_size), np.uint8)
        with np.errstate(over="ignore"):  # what overflows is out of range anyway
            for rows in row_slices(x):
                codes[rows] = self._encode_rows(x[rows] * self.scale_)
        return codes

    def _encode_rows(self, x: Floats) -> Codes:
        n, dim = x.shape
        whole = -(-dim // (2 * self.block)) * 2 * self.block  # of blocks, and of pairs of dimensions
        blocks = np.zeros((n, whole), np.float32)
        np.clip(x, -6 * E4M3.largest, 6 * E4M3.largest, out=blocks[:, :dim])
        blocks = blocks.reshape(n, whole // self.block, self.block)
        largest = np.abs(blocks).max(axis=2)
        best_error = np.full(largest.shape, np.inf, np.float32)
        scales, values = np.zeros(largest.shape, np.uint8), np.zeros(blocks.shape, np.uint8)
        for peak in PEAKS:
            scale = E4M3.encode(largest / np.float32(peak))
            step = E4M3.levels[scale][:, :, None]
            value = E2M1.encode(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0))
            error = np.square(step * E2M1.levels[value] - blocks).sum(axis=2)
            better = error < best_error
            best_error[better], scales[better], values[better] = error[better], scale[better], value[better]
        nibbles = values.reshape(n, whole)
        pairs = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
        return np.concatenate([pairs[:, : -(-dim // 2)], scales[:, : -(-dim // self.block)]], axis=1)

    def _decode(self, codes: Codes) -> Floats:
        return self._scorer(np.empty((0, self.dim), np.float32)).values(codes) / self.scale_

    def _scorer(self, queries: Floats) -> FP4Scorer:
        return FP4Scorer(np.zeros(len(queries), np.float32), queries / self.scale_, self.block)
