"""QJL: the signs of a random projection and the length.

Zandieh, Daliri and Han, "QJL: 1-bit quantized JL transform for KV cache quantization with zero overhead", arXiv
2406.03482. With `S` of `m` random directions, ``<q, x> ~ |x| / (m E|s_1|) <S q, sign(S x)>`` is unbiased; ``E|s_1|`` is
the mean of ``|<s, u>|`` over unit vectors (``sqrt(2 / (pi dim))`` for many dimensions). The directions are orthonormal
in blocks of `dim`, which lowers the variance; `m` may exceed `dim`. It is a baseline: RaBitQ is better at equal bytes.

Bytes per vector: ``ceil(m / 8) + 2``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ragq.checks import check_int
from ragq.compressors import _cpu
from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.codebooks import cpu_threads
from ragq.compressors.rotation import haar
from ragq.compressors.scalar import append_factors
from ragq.compressors.scorers import LinearScorer, PlanesScorer, factor
from ragq.compressors.turboquant import lengths, mean_coordinate
from ragq.layouts import Layout, from_planes, to_planes

__all__ = ["QJL"]

SIGNS = np.array([-1, 1], np.float32)


class QJL(Quantizer):
    """Quantized Johnson-Lindenstrauss sketch.

    Parameters
    ----------
    m : int
        Random directions, a bit each.
    """

    forms = ("QJL{m}",)
    examples = ("QJL64", "QJL150")
    menu = ("QJL{1}",)
    state_names = ("directions_",)

    directions_: Floats  # (m, dim), unit rows

    def __init__(self, m: int) -> None:
        self.m = check_int(m, "m", 1, 1 << 16)

    @property
    def layout(self) -> Layout:
        self._check_fitted()
        return Layout("planes", self.m, 1, 1)

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        blocks = [haar(self.dim, rng) for _ in range(-(-self.m // self.dim))]
        self.directions_ = np.concatenate(blocks)[: self.m].astype(np.float32)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"directions_": (self.m, self.dim)}

    @property
    def _unit(self) -> np.float32:
        return np.float32(1 / (self.m * mean_coordinate(self.dim)))

    def _encode(self, x: Floats) -> Codes:
        sketch = _cpu.project(x, self.directions_, threads=cpu_threads())
        return append_factors(to_planes((sketch > 0).view(np.uint8), 1), lengths(x)[:, 0])

    def _decode(self, codes: Codes) -> Floats:
        signs = SIGNS[from_planes(codes[:, : self.layout.width], self.m, 1)]
        return (signs * (factor(codes, -1)[:, None] * self._unit)) @ self.directions_

    def _scorer(self, queries: Floats) -> LinearScorer:
        sketch = (queries @ self.directions_.T) * self._unit
        return PlanesScorer(np.zeros(len(queries), np.float32), sketch, SIGNS, factors=1)
