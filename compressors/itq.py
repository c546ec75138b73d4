"""Iterative quantization: the rotation of the principal components whose signs say most.

``z = R'W'(x - mean)``: `W` are the leading principal axes, and the rotation `R` minimises ``|sign(V R) - V R|^2`` over
the sample ``V = (x - mean) W``: in turns, the signs ``B = sign(V R)`` with `R` fixed, and ``R = U T`` of the singular
value decomposition ``V'B = U S T`` with `B` fixed (equation 2 and section 2.2).

Gong and Lazebnik, "Iterative quantization: a Procrustean approach to learning binary codes", CVPR 2011.

Bytes per vector: those of the quantizer that follows; n / 8 for ``ITQ{n},BIN``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ragq.checks import check_int
from ragq.compressors.base import Floats
from ragq.compressors.codebooks import sample_rows
from ragq.compressors.opq import procrustes
from ragq.compressors.reduction import PCA, LinearReduction

__all__ = ["ITQ"]

FIT_ROWS = 50_000


class ITQ(LinearReduction):
    """Rotated principal components, for sign bits.

    Parameters
    ----------
    n_components : int or str
        Bits of the code: a count, or a share of the dimensions such as ``'50%'``.
    iterations : int
        Turns of signs and rotation.
    """

    forms = ("ITQ{n_components}",)
    examples = ("ITQ16,BIN", "ITQ50%(iterations=5),BIN(length)")
    menu = ("ITQ{1},BIN(length)", "ITQ{2},BIN")

    def __init__(self, n_components: int | str, iterations: int = 50) -> None:
        super().__init__(n_components)
        self.iterations = check_int(iterations, "iterations", 1)

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        axes = PCA(self.n_components).fit(x)
        v = axes.apply(sample_rows(x, FIT_ROWS, rng))
        rotation, _ = np.linalg.qr(rng.standard_normal((self.dim_out, self.dim_out)))
        for _ in range(self.iterations):
            rotation = procrustes(v, np.where(v @ rotation >= 0, 1, -1))
        self.mean_ = axes.mean_
        self.matrix_ = np.ascontiguousarray(axes.matrix_ @ rotation, np.float32)
