"""LVQ: the grid of each row, two levels in one code, and what rotation does for it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors import Compressor, from_spec
from ragq.layouts import from_planes
from tests.compressors.conftest import documents

Floats = NDArray[np.float32]


def error(codec: Compressor, x: Floats) -> float:
    return float(np.square(codec.decode(codec.encode(x)) - x).sum(axis=1).mean())


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_grid_spans_the_row_and_errs_by_half_a_step(bits: int) -> None:
    x = documents()
    codec = from_spec(f"LVQ{bits}").fit(x)
    y, decoded = x - codec.mean_, codec.decode(codec.encode(x)) - codec.mean_
    step = (y.max(axis=1) - y.min(axis=1)) / (2**bits - 1)
    assert (np.abs(decoded - y) <= 0.501 * step[:, None] + 2e-3 * np.abs(y).max()).all()
    codes = from_planes(codec.encode(x)[:, :-4], 64, bits)
    assert (codes.min(axis=1) == 0).all()
    assert (codes.max(axis=1) == 2**bits - 1).all()


@pytest.mark.parametrize("second", [2, 4, 8])
def test_the_second_level_refines_the_first(second: int) -> None:
    x = documents()
    one, two = from_spec("LVQ4").fit(x), from_spec(f"LVQ4x{second}").fit(x)
    first = from_planes(one.encode(x)[:, :-4], 64, 4)
    both = from_planes(two.encode(x)[:, :-4], 64, 4 + second)
    np.testing.assert_array_equal(both >> second, first)
    assert error(two, x) < 1.3 * error(one, x) / (2**second - 1) ** 2 + 1e-6


def test_rotation_takes_the_outlier_out_of_the_grid() -> None:
    x = documents().copy()
    x[np.arange(len(x)), np.random.default_rng(0).integers(64, size=len(x))] += 2
    assert error(from_spec("RR,LVQ4").fit(x), x) < 0.7 * error(from_spec("LVQ4").fit(x), x)


def test_below_four_bits_rabitq_is_the_better_choice() -> None:
    x = documents()
    assert error(from_spec("RBQ2").fit(x), x) < 0.8 * error(from_spec("LVQ2").fit(x), x)
