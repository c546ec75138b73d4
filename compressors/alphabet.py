"""FP4A: four-bit codes whose sixteen values are learned to keep directions.

E2M1 (`FP4`) spends its 15 values as floating point does, an even share for every power of two; embeddings need them
elsewhere. Here the alphabet of 8 magnitudes, each with both signs, minimises over a sample

    sum_i |x_i / |x_i| - g_i a(code_i)|^2,    g_i = <x_i, a> / (|x_i| <a, a>)

which, with the best length `g_i` for each row, is the mean of ``1 - cos^2`` between a row and its code: only directions
count, since the stored factor ``f = |x|^2 / <x, a>`` gives the length back. Alternating least squares (Lloyd's
algorithm with a scale a row), from the Lloyd-Max levels of the normal law; encoding tries 8 scales a row and adjusts
once.

    ``<q, x> ~ f <q, a(code)>``

Bytes per vector: ``4 ceil(dim / 8) + 2``; 194 for 384 dimensions, where E2M1 with block scales has 204.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.scalar import append_factors, encode_planes, sphere_levels, stack_tables
from ragq.compressors.scorers import LinearScorer, PlanesScorer, factor
from ragq.errors import CorruptIndexError
from ragq.layouts import Layout, from_planes

__all__ = ["FP4A", "learn_alphabet"]

BITS = 4
SAMPLE_ROWS = 8192
ITERATIONS = 20
SCALES = np.geomspace(0.8, 1.25, 8).astype(np.float32)


def learn_alphabet(x: Floats) -> Floats:
    """Return the 16 ascending levels, symmetric about 0, that keep the directions of the rows of `x` best.

    In units of ``|x| / sqrt(dim)``.
    """
    square = np.square(x).sum(axis=1, dtype=np.float64)
    rows = x[square > 0] * np.sqrt(x.shape[1] / square[square > 0])[:, None]
    magnitudes = sphere_levels(BITS)[8:].astype(np.float64)
    if not len(rows):
        return np.concatenate([-magnitudes[::-1], magnitudes]).astype(np.float32)
    sizes, scale = np.abs(rows), np.ones(len(rows))
    for _ in range(ITERATIONS):
        edges = (magnitudes[1:] + magnitudes[:-1]) / 2
        code = np.searchsorted(edges, sizes / scale[:, None])
        values = magnitudes[code]
        scale = np.maximum((sizes * values).sum(axis=1) / np.square(values).sum(axis=1), 1e-6)
        weight = np.broadcast_to(np.square(scale)[:, None], code.shape)
        used = np.bincount(code.ravel(), weight.ravel(), minlength=8)
        total = np.bincount(code.ravel(), (scale[:, None] * sizes).ravel(), minlength=8)
        magnitudes = np.sort(np.divide(total, used, out=magnitudes.copy(), where=used > 0))
    magnitudes = np.maximum(magnitudes, 1e-6)
    return np.concatenate([-magnitudes[::-1], magnitudes]).astype(np.float32)


class FP4A(Quantizer):
    """Four bits a dimension with a learned alphabet."""

    forms = ("FP4A",)
    examples = ("FP4A", "RR,FP4A")
    state_names = ("levels_",)

    levels_: Floats  # (16,), ascending

    @property
    def layout(self) -> Layout:
        return Layout("planes", self.dim, BITS, 1)

    @property
    def _step(self) -> np.float32:
        return np.float32(1 / np.sqrt(self.dim))

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        if len(x) > SAMPLE_ROWS:
            x = x[np.sort(rng.choice(len(x), SAMPLE_ROWS, replace=False))]
        self.levels_ = learn_alphabet(x)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"levels_": (2**BITS,)}

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        super()._check_state(arrays)
        if (np.diff(self.levels_) < 0).any():
            raise CorruptIndexError(f"'levels_' of {self} must ascend. Got {self.levels_}.")

    def _encode(self, x: Floats) -> Codes:
        step, tables = np.full(self.dim, self._step), stack_tables({BITS: self.levels_})
        return append_factors(*encode_planes(x, BITS, step, tables, scales=SCALES, rounds=1, normalise=True))

    def _decode(self, codes: Codes) -> Floats:
        levels = self.levels_[from_planes(codes[:, : self.layout.width], self.dim, BITS)]
        return levels * (factor(codes, -1)[:, None] * self._step)

    def _scorer(self, queries: Floats) -> LinearScorer:
        return PlanesScorer(np.zeros(len(queries), np.float32), queries * self._step, self.levels_, factors=1)
