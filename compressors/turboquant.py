"""TurboQuant: rotate, then give every coordinate the Lloyd-Max code of the law that rotation makes it follow.

Zandieh, Daliri, Hadian and Mirrokni, "TurboQuant: online vector quantization with near-optimal distortion rate", arXiv
2504.19874. Nothing is learned from the data.

TQ{b} (their algorithm 1)
    ``u = P x / |x|``, a coordinate of which follows a Beta law; ``code_j`` = nearest of its 2^b Lloyd-Max levels; `v` =
    the levels of the row. Stored: the codes as bit planes and one fp16 number ``|x| / <u, v>``, the norm and the length
    correction in one: ``x ~ |x| / <u, v> P'v`` has the right inner product with `x` itself, which plain rounding
    shrinks. With ``correction=false`` the number is ``|x|``, as published: least squared error (.363, .117, .0345,
    .0095 of ``|x|^2`` at 1 to 4 bits), and worse ranking.
TQprod{b} (their algorithm 2)
    b - 1 bits as above, and the signs of the rotated residual (a QJL sketch): ``<q, x> ~ s (<P q, v> + k <S P q,
    sign(S r)>)`` with ``r = u - s v`` is unbiased over the choice of `S` when ``k = |r| / (s d E|S_1|)``. Here `k` is
    one constant and `s` is chosen for each row so that this holds, so that one fp16 number is enough. Unbiased is not
    better: the sign stage adds variance, and TQ ranks better at equal bytes.

Bytes per vector: ``b ceil(dim / 8) + 2`` (TQ), ``ceil(2 dim / 8) + (b - 2) ceil(dim / 8) + 2`` (TQprod).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool, check_int
from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.rotation import RandomRotation
from ragq.compressors.scalar import append_factors, distortion, encode_planes, sphere_levels, stack_tables
from ragq.compressors.scorers import LinearScorer, PlanesScorer, RaggedPlanesScorer, factor
from ragq.layouts import Layout, from_planes

__all__ = ["TQ", "TQprod", "mean_coordinate"]


def mean_coordinate(dim: int) -> float:
    """Return ``E |s_1|`` of a vector uniform on the unit sphere: ``Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2))``."""
    from math import exp, lgamma, pi, sqrt

    return exp(lgamma(dim / 2) - lgamma((dim + 1) / 2)) / sqrt(pi)


def lengths(x: Floats) -> Floats:
    """Return the length of each row, `(n, 1)`."""
    return np.sqrt(np.square(x, dtype=np.float64).sum(axis=1, keepdims=True)).astype(np.float32)


class TQ(RandomRotation, Quantizer):
    """TurboQuant.

    Parameters
    ----------
    bits : int
        Bits a dimension, 1 to 8.
    correction : bool
        Correct the length that rounding takes, see the module.
    dense : bool
        Rotate by a dense matrix in place of the randomised Hadamard transform.
    """

    forms = ("TQ{bits}",)
    examples = ("TQ4", "TQ1", "TQ8", "TQ2(correction=false)", "TQ3(dense)")
    menu = ("TQ1", "TQ2", "TQ4")
    learned = ("levels_",)
    rows_at_once = 2048

    levels_: Floats  # (2**bits,), in units of 1 / sqrt(dim)

    def __init__(self, bits: int, correction: bool = True, dense: bool = False) -> None:
        self.bits = check_int(bits, "bits", 1, 8)
        self.correction = check_bool(correction, "correction")
        self.dense = check_bool(dense, "dense")

    @property
    def layout(self) -> Layout:
        return Layout("planes", self.dim, self.bits, 1)

    @property
    def _step(self) -> np.float32:
        return np.float32(1 / np.sqrt(self.dim))

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        self._draw_rotation(rng)
        self.levels_ = sphere_levels(self.bits, self.dim)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._state_shapes(), "levels_": (2**self.bits,)}

    def _encode(self, x: Floats) -> Codes:
        step = np.full(self.dim, self._step)
        tables = stack_tables({self.bits: self.levels_})
        body, scale = encode_planes(self.rotate(x), self.bits, step, tables, normalise=True)
        return append_factors(body, scale if self.correction else lengths(x)[:, 0])

    def _decode(self, codes: Codes) -> Floats:
        levels = self.levels_[from_planes(codes[:, : self.layout.width], self.dim, self.bits)]
        return self.unrotate(levels * (factor(codes, -1)[:, None] * self._step))

    def _scorer(self, queries: Floats) -> LinearScorer:
        rotated = self.rotate(queries) * self._step
        return PlanesScorer(np.zeros(len(queries), np.float32), rotated, self.levels_, factors=1)


class TQprod(RandomRotation, Quantizer):
    """TurboQuant with an unbiased inner product.

    Parameters
    ----------
    bits : int
        Bits a dimension, 2 to 9; one of them is the sign of the residual.
    dense : bool
        Rotate by dense matrices in place of the randomised Hadamard transform.
    """

    forms = ("TQprod{bits}",)
    examples = ("TQprod3", "TQprod2", "TQprod5(dense)")
    menu = ("TQprod3",)
    learned = ("levels_",)
    rotations = 2  # of the embedding, and of the residual

    levels_: Floats  # (2**(bits - 1),), in units of 1 / sqrt(dim)

    def __init__(self, bits: int, dense: bool = False) -> None:
        self.bits = check_int(bits, "bits", 2, 9)
        self.dense = check_bool(dense, "dense")

    @property
    def _widths(self) -> tuple[int, ...]:
        return (2 * self.dim, *[self.dim] * (self.bits - 2))

    @property
    def layout(self) -> Layout:
        return Layout("planes", 2 * self.dim, self.bits - 1, 1, self._widths)

    @property
    def _residual(self) -> float:
        """Length of the residual in units of `s`; a little above the mean, so that almost every row has a solution."""
        return float(np.sqrt(1.1 * distortion(self.bits - 1)))

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        self._draw_rotation(rng)
        self.levels_ = sphere_levels(self.bits - 1, self.dim)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._state_shapes(), "levels_": (2 ** (self.bits - 1),)}

    def _encode(self, x: Floats) -> Codes:
        step = np.full(self.dim, np.float32(1 / np.sqrt(self.dim)))
        norms = lengths(x)
        u = np.divide(self.rotate(x), norms, out=np.zeros_like(x), where=norms > 0)
        body, _ = encode_planes(u, self.bits - 1, step, stack_tables({self.bits - 1: self.levels_}))
        v = self.levels_[from_planes(body, self.dim, self.bits - 1)] * step[0]
        # |u - s v| = s k:  with t = 1 / s,  t^2 - 2 <u, v> t + |v|^2 - k^2 = 0
        uv, vv = (u * v).sum(axis=1, dtype=np.float64), (v * v).sum(axis=1, dtype=np.float64)
        root = uv + np.sqrt(np.maximum(uv**2 - vv + self._residual**2, 0))
        s = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
        signs = self.rotate(u - s[:, None].astype(np.float32) * v, 1) > 0
        first, rest = np.split(body, [-(-self.dim // 8)], axis=1)
        top = np.concatenate([np.unpackbits(first, axis=1, count=self.dim, bitorder="little"), signs], axis=1)
        return append_factors(
            np.concatenate([np.packbits(top, axis=1, bitorder="little"), rest], axis=1),
            (s * norms[:, 0]).astype(np.float32),
        )

    def _tables(self) -> tuple[Floats, Floats]:
        """Return the level tables and what one unit of a level is worth in each of the 2 dim positions."""
        unit = np.float32(1 / np.sqrt(self.dim))
        signs = np.float32(self._residual / (self.dim * mean_coordinate(self.dim)))
        tables = {1: np.array([-1, 1], np.float32)}
        if self.bits == 2:
            unit = unit * self.levels_[1]
        else:
            tables[self.bits - 1] = self.levels_
        return stack_tables(tables), np.repeat([unit, signs], self.dim).astype(np.float32)

    def _decode(self, codes: Codes) -> Floats:
        tables, unit = self._tables()
        scorer = RaggedPlanesScorer(np.zeros(0, np.float32), unit[None], tables, self._widths)
        parts: NDArray[np.float32] = scorer.values(codes[:, : self.layout.width]) * unit
        first, second = parts[:, : self.dim], parts[:, self.dim :]
        return factor(codes, -1)[:, None] * self.unrotate(first + self.unrotate(second, 1))

    def _scorer(self, queries: Floats) -> LinearScorer:
        tables, unit = self._tables()
        rotated = self.rotate(queries)
        both = np.concatenate([rotated, self.rotate(rotated, 1)], axis=1) * unit
        return RaggedPlanesScorer(np.zeros(len(queries), np.float32), both, tables, self._widths, factors=1)
