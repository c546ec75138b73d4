"""The upper hull, and the best within a budget."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragq.eval.frontier import best_within, upper_hull

POINTS = st.lists(st.tuples(st.integers(1, 64), st.integers(0, 20)), max_size=12)


def test_dominated_points_and_points_under_a_line_are_left_out() -> None:
    points = [(8, 0.1), (16, 0.2), (32, 0.6), (64, 0.64), (128, 0.7), (48, 0.3), (128, 0.6), (256, 0.7)]
    assert upper_hull(points) == [0, 2, 4]
    assert upper_hull([]) == [] and upper_hull([(4, 1.0)]) == [0]
    assert upper_hull([(4, 1.0), (4, 1.0), (2, 1.0)]) == [2]


@settings(max_examples=60, deadline=None)
@given(POINTS)
def test_no_point_lies_above_the_hull(points: list[tuple[float, float]]) -> None:
    hull = upper_hull(points)
    x, y = [log2(points[i][0]) for i in hull], [points[i][1] for i in hull]
    assert x == sorted(set(x)) and y == sorted(set(y))
    for size, quality in points:
        assert log2(size) >= x[0]
        assert quality <= np.interp(log2(size), x, y) + 1e-9


def test_the_best_fits_is_smallest_among_equals_and_may_not_exist() -> None:
    rows = [
        {"spec": "b", "code_bytes": 48, "m": 0.5},
        {"spec": "a", "code_bytes": 48, "m": 0.5},
        {"spec": "c", "code_bytes": 24, "m": 0.5},
        {"spec": "d", "code_bytes": 49, "m": 0.9},
        {"spec": "e", "code_bytes": 8, "m": None},
    ]
    found = [best_within(rows, budget, "m") for budget in (48, 49, 47, 10)]
    assert [row and row["spec"] for row in found] == ["c", "d", "c", None]
    assert best_within(rows[:2], 48, "m") == rows[1]


@pytest.mark.parametrize("budget", [1, 24, 48, 1000])
def test_nothing_that_fits_is_better(budget: int) -> None:
    rng = np.random.default_rng(0)
    rows = [{"spec": str(i), "code_bytes": int(rng.integers(1, 99)), "m": float(rng.integers(9))} for i in range(40)]
    best, fitting = best_within(rows, budget, "m"), [row for row in rows if row["code_bytes"] <= budget]
    assert (best is None) == (not fitting)
    assert best is None or best["m"] == max(row["m"] for row in fitting)
