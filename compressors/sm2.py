"""SM2: two bits a dimension, the sign and whether the coordinate is large.

The binary code of QuIVer (arXiv 2605.02171): with ``r = x - mean`` (and after the rotation that is on by default) and
``t = mean_j |r_j|``, the first bit is ``r_j > 0`` and the second says ``|r_j| > t``; the row stands for ``v_j = +-1``
or ``+-2``. There are two ways to compare:

asymmetric
    ``<q, x> ~ <q, mean> + f <q, v>``, a float query; ``f = |r|^2 / <r, v>`` is stored with the row. This is the score.
symmetric
    `distance`: ``D(a, b)`` = the sum of ``(1 + strong_a)(1 + strong_b)`` over the coordinates whose signs differ, four
    popcounts. For the hops of a graph; a flat scan loses a third of its recall by it.

Codes of signs fail on embeddings without angular structure, and say nothing when they do. So `fit` ranks a sample both
ways and refuses when the ten nearest by code and by float agree on less than `min_overlap`.

Bytes per vector: ``2 ceil(dim / 8) + 2``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool
from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.rotation import RandomRotation
from ragq.compressors.scalar import append_factors
from ragq.compressors.scorers import LinearScorer, PlanesScorer, factor
from ragq.errors import InvalidArgumentError
from ragq.layouts import Layout, from_planes, to_planes

__all__ = ["SM2"]

LEVELS = np.array([-2, -1, 1, 2], np.float32)  # the second bit is 1 for +2 and -1, so that codes ascend
SAMPLE_ROWS = 10_000
SAMPLE_QUERIES = 200
NEIGHBOURS = 10


class SM2(RandomRotation, Quantizer):
    """Sign and magnitude, 2 bits a dimension.

    Parameters
    ----------
    rotated : bool
        Rotate at random first, 3 to 5 points of recall.
    min_overlap : float
        Share of the ten nearest neighbours that codes and floats must agree on in a sample; 0 accepts anything.
    """

    forms = ("SM2",)
    examples = ("SM2", "SM2(rotated=false)")
    learned = ("mean_",)
    tolerance = 1e-4  # of a row near the mean
    dense = False

    mean_: Floats  # (dim,)

    def __init__(self, rotated: bool = True, min_overlap: float = 0.5) -> None:
        self.rotated = check_bool(rotated, "rotated")
        if isinstance(min_overlap, bool) or not isinstance(min_overlap, (int, float)) or not 0 <= min_overlap <= 1:
            raise InvalidArgumentError(f"The 'min_overlap' parameter of SM2 must be in 0..1. Got {min_overlap!r}.")
        self.min_overlap = min_overlap

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return super().state_names if self.rotated else self.learned

    @property
    def layout(self) -> Layout:
        return Layout("planes", self.dim, 2, 1)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._state_shapes(), "mean_": (self.dim,)}

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        if self.rotated:
            super()._check_state(arrays)
        else:
            super(RandomRotation, self)._check_state(arrays)

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        self.mean_ = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        if self.rotated:
            self._draw_rotation(rng)
        if self.min_overlap:
            self._check_applicable(x, rng)

    def _check_applicable(self, x: Floats, rng: np.random.Generator) -> None:
        """Raise when codes rank a sample otherwise than floats do."""
        sample = x[np.sort(rng.choice(len(x), min(len(x), SAMPLE_ROWS), replace=False))]
        queries = sample[rng.choice(len(sample), min(len(sample), SAMPLE_QUERIES), replace=False)]
        found = self.overlap(queries, sample)
        if found < self.min_overlap:
            raise InvalidArgumentError(
                f"{self} does not suit these embeddings: its codes find {found:.0%} of the {NEIGHBOURS} nearest "
                f"neighbours in a sample, and 'min_overlap' asks for {self.min_overlap:.0%}. Use RBQ2, the same bytes."
            )

    def overlap(self, queries: Floats, x: Floats) -> float:
        """Return the share of the ten best of `x` by codes that are among the ten best by floats, ties included."""
        k = min(NEIGHBOURS, len(x))
        exact, scores = queries @ x.T, self._scorer(queries).score(self._encode(x))
        kth = np.partition(exact, len(x) - k, axis=1)[:, len(x) - k, None]
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        slack = 1e-6 * np.abs(exact).max(initial=0)
        return float((np.take_along_axis(exact, best, axis=1) >= kth - slack).mean())

    def _residual(self, x: Floats) -> Floats:
        return self.rotate(x - self.mean_) if self.rotated else x - self.mean_

    def _encode(self, x: Floats) -> Codes:
        r = self._residual(x)
        size = np.abs(r)
        strong, positive = size > size.mean(axis=1, keepdims=True), r > 0
        code = 2 * positive + (strong == positive)
        v = LEVELS[code]
        along = (r * v).sum(axis=1, dtype=np.float64)
        square = np.square(r, dtype=np.float64).sum(axis=1)
        f = np.divide(square, along, out=np.zeros_like(along), where=along > 0)
        return append_factors(to_planes(code.astype(np.uint8), 2), f.astype(np.float32))

    def _decode(self, codes: Codes) -> Floats:
        v = LEVELS[from_planes(codes[:, : self.layout.width], self.dim, 2)] * factor(codes, -1)[:, None]
        return self.mean_ + (self.unrotate(v) if self.rotated else v)

    def _scorer(self, queries: Floats) -> LinearScorer:
        rotated = self.rotate(queries) if self.rotated else queries
        return PlanesScorer(queries @ self.mean_, rotated, LEVELS, factors=1)

    def distance(self, a: Codes, b: Codes) -> NDArray[np.int64]:
        """Return the symmetric distance of each code of `a` to each of `b`.

        Parameters
        ----------
        a : ndarray of uint8, shape (n, code_size)
        b : ndarray of uint8, shape (m, code_size)

        Returns
        -------
        ndarray of int64, shape (n, m)
            0 where all signs agree; 4 for a sign that differs between two large coordinates.
        """
        (pa, sa), (pb, sb) = self.bits(a), self.bits(b)
        differ = pa[:, None] ^ pb[None]
        parts = (differ, differ & sa[:, None], differ & sb[None], differ & sa[:, None] & sb[None])
        return np.sum([np.bitwise_count(part).sum(axis=2, dtype=np.int64) for part in parts], axis=0)

    def bits(self, codes: Codes) -> tuple[Codes, Codes]:
        """Return the packed bits of rows that `distance` compares.

        Returns
        -------
        signs, magnitudes : ndarray of uint8, shape (n, ceil(dim / 8))
            1 for a positive, and for a large coordinate; spare bits differ in no sign.
        """
        positive, second = np.split(self._check_codes(codes)[:, : self.layout.width], 2, axis=1)
        return positive, ~(positive ^ second)
