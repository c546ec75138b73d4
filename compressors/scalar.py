"""What the scalar codecs share: Lloyd-Max levels, bit planes from C++, and the factor behind them.

`levels` everywhere are the ascending values that the codes 0, 1, ... of a `b`-bit coordinate stand for, in units of the
coordinate's step. Tables of several widths lie one after the other: `b` bits at ``2^b - 2``.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import _cpu
from ragq.compressors.base import Codes, Floats
from ragq.compressors.codebooks import cpu_threads
from ragq.compressors.floats import F16_MAX

__all__ = ["append_factors", "distortion", "encode_planes", "sphere_levels", "stack_tables", "uniform_levels"]

GRID = 1 << 14
GAUSSIAN_DIM = 1 << 20  # where the Beta law has become the normal one


@cache
def beta_law(dim: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return values, cumulative mass and cumulative mean of ``sqrt(dim) u_j``, `u` uniform on the unit sphere.

    The density of ``u_j`` is ``(1 - t^2)^((dim - 3) / 2)``; with ``t = sin a`` it is ``cos(a)^(dim - 2)``, smooth up to
    the ends.
    """
    reach = min(np.pi / 2, 9 / np.sqrt(dim))
    angle = np.linspace(-reach, reach, GRID + 1)
    middle = (angle[1:] + angle[:-1]) / 2
    density = np.exp((max(dim, 2) - 2) * np.log(np.cos(middle)))
    mass = density / density.sum()
    value = np.sqrt(dim) * np.sin(middle)
    total, mean = np.concatenate([[0], mass.cumsum()]), np.concatenate([[0], (mass * value).cumsum()])
    return np.sqrt(dim) * np.sin(angle), total, mean


@cache
def sphere_levels(bits: int, dim: int = GAUSSIAN_DIM) -> Floats:
    """Return the Lloyd-Max levels of a coordinate of a random rotation.

    Parameters
    ----------
    bits : int
    dim : int
        Dimensions of the sphere; the normal law by default.

    Returns
    -------
    ndarray of float32, shape (2**bits,)
        In units of ``1 / sqrt(dim)``, ascending and symmetric about 0.
    """
    value, total, mean = beta_law(dim)
    density = np.diff(total) / np.diff(value)
    companded = np.concatenate([[0], (density ** (1 / 3) * np.diff(value)).cumsum()])  # optimal for many levels
    levels = np.interp((np.arange(2**bits) + 0.5) / 2**bits * companded[-1], companded, value)
    for _ in range(500):
        edges = np.concatenate([[value[0]], (levels[1:] + levels[:-1]) / 2, [value[-1]]])
        inside = np.diff(np.interp(edges, value, total))
        moved = np.diff(np.interp(edges, value, mean)) / np.maximum(inside, 1e-300)
        moved = np.where(inside > 1e-14, moved, levels)
        moved = (moved - moved[::-1]) / 2
        if np.abs(moved - levels).max() < 1e-7:
            break
        levels = moved
    return np.sort(levels).astype(np.float32)


@cache
def distortion(bits: int) -> float:
    """Return the mean squared error of `sphere_levels` on a normal variable of variance 1; 1 for no bits."""
    if bits == 0:
        return 1.0
    value, total, mean = beta_law(GAUSSIAN_DIM)
    levels = sphere_levels(bits).astype(np.float64)
    edges = np.concatenate([[value[0]], (levels[1:] + levels[:-1]) / 2, [value[-1]]])
    inside, moment = np.diff(np.interp(edges, value, total)), np.diff(np.interp(edges, value, mean))
    return float(1 - 2 * (moment * levels).sum() + (inside * levels**2).sum())


def uniform_levels(bits: int) -> Floats:
    """Return ``code + (1 - 2^bits) / 2``: levels one apart, symmetric about 0."""
    return (np.arange(2**bits) + (1 - 2**bits) / 2).astype(np.float32)


def stack_tables(tables: dict[int, Floats]) -> Floats:
    """Put levels of several widths one after the other; widths without a table are zeros."""
    widest = max(tables)
    parts = [tables.get(b, np.zeros(2**b, np.float32)) for b in range(1, widest + 1)]
    return np.concatenate(parts).astype(np.float32)


def encode_planes(
    z: Floats,
    bits: int | NDArray[np.uint8],
    step: Floats,
    levels: Floats | None,
    *,
    scales: Floats | None = None,
    along: Floats | None = None,
    noise: Floats | None = None,
    rounds: int = 0,
    coded: bool = False,
    normalise: bool = False,
) -> tuple[Codes, Floats]:
    """Quantise rows to bit planes and give each the factor that corrects its length.

    Parameters
    ----------
    z : ndarray of float32, shape (n, dim)
    bits : int or ndarray of uint8, shape (dim,)
        Bits of a coordinate, not increasing.
    step : ndarray of float32, shape (dim,)
        What one unit of a level is worth in each coordinate.
    levels : ndarray of float32, shape (2**(bits + 1) - 2,), or None
        See the module; None for `uniform_levels`.
    scales : ndarray of float32, optional
        Multiples of the row to try; the one whose code has the highest cosine with the row is kept.
    along, noise : ndarray of float32, shape (dim,), optional
        Weights `u` and `w`, 1 by default: the factor is ``g = sum u z^2 / sum u z v``, `v` the levels of the row, and
        code adjustment lowers ``sum w (z - g v)^2``.
    rounds : int
        Passes of code adjustment: every coordinate moves to a neighbouring level where that helps.
    coded : bool
        Hold the last bits of 8 coordinates to a word of the Hamming code; see `ragq.layouts.HAMMING_WORDS`.
    normalise : bool
        Quantise rows of length 1.

    Returns
    -------
    body : ndarray of uint8, shape (n, bytes of the planes)
    factor : ndarray of float32, shape (n,)
        0 where nothing of the row was left.
    """
    dim = z.shape[1]
    ones = np.ones(dim, np.float32)
    return _cpu.encode_planes(
        np.ascontiguousarray(z, np.float32),
        np.full(dim, bits, np.uint8) if isinstance(bits, int) else bits,
        np.ascontiguousarray(step, np.float32),
        np.zeros(0, np.float32) if levels is None else levels,
        ones[:1] if scales is None else scales,
        ones if along is None else along,
        ones if noise is None else noise,
        rounds=rounds,
        uniform=levels is None,
        coded=coded,
        normalise=normalise,
        threads=cpu_threads(),
    )


def append_factors(body: Codes, *factors: Floats) -> Codes:
    """Put fp16 factors behind row codes, the largest finite one where a factor is out of range."""
    halves = [np.clip(f, -F16_MAX, F16_MAX).astype("<f2")[:, None].view(np.uint8) for f in factors]
    return np.concatenate([body, *halves], axis=1)
