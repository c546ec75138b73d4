"""E8: eight dimensions at a time, rounded to points of the densest lattice in eight dimensions.

Every row is rotated at random and scaled to unit variance, so that a block of 8 coordinates is nearly normal; `E8`
packs space better than a grid does, and a ball of its points fits the normal law better than a box.

bits=2
    The E8P codebook of QuIP# (Tseng et al., arXiv 2402.04396, section 4.2), 2 bytes a block: ``E8 + 1/4`` is ``(D8 +
    1/2) +- 1/4``, and 65,536 points near 0 are 256 patterns of magnitudes (8 bits), times signs with even parity in the
    sense of the pattern (7 bits), plus or minus a quarter (1 bit). Squared error .092 of the variance on rotated
    vectors, where the best scalar code of 2 bits has .1175.
bits=1
    The 240 shortest vectors of E8 and 16 of the next shell, a byte a block: .317, where signs have .363.

``<q, x> ~ f <P q, v>`` with ``f = |x|^2 / <P x, v>`` in fp16, the norm and the length correction in one.

Bytes per vector: ``bits ceil(dim / 8) + 2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool, check_int
from ragq.compressors import _cpu
from ragq.compressors.base import Codes, Floats, Quantizer, row_slices
from ragq.compressors.codebooks import cpu_threads
from ragq.compressors.rotation import RandomRotation
from ragq.compressors.scalar import append_factors
from ragq.compressors.scorers import LinearScorer, LookupScorer, factor
from ragq.layouts import Layout

__all__ = ["E8", "E8Scorer"]

BLOCK = 8
SCALES = {1: 1.64, 2: 0.97}  # length of the lattice's unit in standard deviations: least squared error, normal law


@cache
def shortest() -> Floats:
    """Return the 240 vectors of E8 of squared length 2 and 16 of squared length 4, (256, 8)."""
    pairs = [
        [s * (k == i) + t * (k == j) for k in range(8)]
        for i, j in combinations(range(8), 2)
        for s, t in product((-1, 1), repeat=2)
    ]
    halves = [signs for signs in product((-0.5, 0.5), repeat=8) if sum(signs) % 2 == 0]
    return np.concatenate([pairs, halves, 2 * np.eye(8), -2 * np.eye(8)]).astype(np.float32)


@cache
def patterns() -> tuple[Floats, NDArray[np.uint8]]:
    """Return E8P's magnitudes, (256, 8), and 1 where a pattern takes an odd number of minus signs, (256,).

    Magnitudes of ``D8 + 1/2``: all 227 of squared length up to 10, and 29 of the squared length 12.
    """
    every = np.array(list(product((0.5, 1.5, 2.5, 3.5), repeat=8)), np.float32)
    square = np.square(every).sum(axis=1)
    short, next_shell = every[square <= 10], every[square == 12]
    step = len(next_shell) / (256 - len(short))
    chosen = np.concatenate([short, next_shell[(np.arange(256 - len(short)) * step).astype(int)]])
    return chosen, (chosen.sum(axis=1) % 2).astype(np.uint8)


def decode_pairs(codes: Codes) -> Floats:
    """Return the points of E8P codes: (n, 2 blocks) bytes, pattern and signs, to (n, 8 blocks) floats."""
    table, odd = patterns()
    index, rest = codes[:, 0::2], codes[:, 1::2]
    signs = np.unpackbits(rest[:, :, None], axis=2, bitorder="little")
    quarter = signs[:, :, 7].astype(np.float32) / 2 - 0.25
    signs[:, :, 7] = (signs[:, :, :7].sum(axis=2) + odd[index]) & 1
    points = table[index] * (1 - 2 * signs.astype(np.float32)) + quarter[:, :, None]
    return points.reshape(len(codes), codes.shape[1] // 2 * BLOCK).astype(np.float32, copy=False)


@dataclass(frozen=True)
class E8Scorer(LinearScorer):
    """Blocks of the E8P codebook: ``raw = queries @ points``.

    Attributes
    ----------
    queries : ndarray of float32, shape (n_queries, 8 * blocks)
    """

    queries: Floats

    kernel = "e8"

    def raw(self, body: Codes) -> Floats:
        return self.queries @ decode_pairs(body).T


class E8(RandomRotation, Quantizer):
    """Lattice codes on the rotated vector.

    Parameters
    ----------
    bits : int
        Bits a dimension, 1 or 2.
    dense : bool
        Rotate by a dense matrix in place of the randomised Hadamard transform.
    """

    forms = ("E8",)
    examples = ("E8", "E8(bits=1)", "E8(dense)")
    menu = ("E8", "E8(bits=1)")

    def __init__(self, bits: int = 2, dense: bool = False) -> None:
        self.bits = check_int(bits, "bits", 1, 2)
        self.dense = check_bool(dense, "dense")

    @property
    def _blocks(self) -> int:
        return -(-self.dim // BLOCK)

    @property
    def layout(self) -> Layout:
        return Layout("nibbles" if self.bits == 1 else "rows", self.bits * self._blocks, 8, 1)

    @property
    def _unit(self) -> np.float32:
        return np.float32(SCALES[self.bits] / np.sqrt(self.dim))

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        self._draw_rotation(rng)

    def _padded(self, z: Floats) -> Floats:
        return np.pad(z, ((0, 0), (0, BLOCK * self._blocks - self.dim)))

    def _encode(self, x: Floats) -> Codes:
        codes = np.empty((len(x), self.code_size), np.uint8)
        for rows in row_slices(x):
            z = self._padded(self.rotate(x[rows]))
            square = np.square(z, dtype=np.float64).sum(axis=1)
            unit = self._unit * np.sqrt(square)
            blocks = np.divide(z, unit[:, None], out=np.zeros_like(z), where=unit[:, None] > 0, casting="unsafe")
            nearest = nearest_short if self.bits == 1 else nearest_pair
            body = nearest(blocks.reshape(-1, BLOCK)).reshape(len(z), -1)
            along = (z * self._points(body)).sum(axis=1, dtype=np.float64)
            f = np.divide(square, along, out=np.zeros_like(along), where=along > 0)
            codes[rows] = append_factors(body, f.astype(np.float32))
        return codes

    def _points(self, body: Codes) -> Floats:
        points = shortest()[body].reshape(len(body), self._blocks * BLOCK) if self.bits == 1 else decode_pairs(body)
        return points * self._unit

    def _decode(self, codes: Codes) -> Floats:
        points = self._points(codes[:, :-2])[:, : self.dim]
        return self.unrotate(points * factor(codes, -1)[:, None])

    def _scorer(self, queries: Floats) -> LinearScorer:
        bias, rotated = np.zeros(len(queries), np.float32), self._padded(self.rotate(queries)) * self._unit
        if self.bits == 2:
            return E8Scorer(bias, rotated, factors=1)
        tables = rotated.reshape(len(queries), self._blocks, BLOCK) @ shortest().T
        return LookupScorer(bias, tables.astype(np.float32, copy=False), factors=1)


def nearest_short(y: Floats) -> Codes:
    """Return the index of the nearest of the short vectors for each row of `y`, (n, 8)."""
    nearest, _ = _cpu.assign(np.ascontiguousarray(y), shortest(), cpu_threads())
    return nearest.astype(np.uint8)


def nearest_pair(y: Floats) -> Codes:
    """Return the E8P code, (n, 2), of the nearest point for each row of `y`, (n, 8).

    For either quarter, the best signs of a pattern are those of the row; where their parity is wrong, the cheapest flip
    is the coordinate with the smallest product of magnitudes. All 256 patterns are tried, in C++.
    """
    table, odd = patterns()
    columns = np.ascontiguousarray(table.T)
    half = np.square(table).sum(axis=1) / 2
    return _cpu.nearest_pair(np.ascontiguousarray(y), columns, half, odd.astype(np.int32), cpu_threads())
