"""LIMIT's stress test with free embeddings."""

from __future__ import annotations

import pytest

from ragq.errors import InvalidArgumentError
from ragq.eval import limit
from ragq.eval.limit import capacities, critical_n, holds


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up sooner than for a published number: these sizes are found within a hundred steps."""
    monkeypatch.setattr(limit, "STEPS", 300)
    monkeypatch.setattr(limit, "TRIES", 1)


def test_three_dimensions_hold_any_two_of_four_and_a_plane_of_three() -> None:
    # in the plane only neighbours on the circle can be a top two: 3 documents have no others
    assert (critical_n(2), critical_n(3)) == (3, 4)


def test_more_dimensions_hold_more_and_a_bit_each_holds_less_than_float32() -> None:
    assert holds(8, 4) and not holds(8, 4, "BIN")
    assert holds(8, 4, "INT8")


def test_the_effective_dimension_of_exact_codes_is_their_own() -> None:
    rows = {row.spec: row for row in capacities(["F16", "PQ2x8", "F32"], 3)}
    assert list(rows) == ["F32", "F16", "PQ2x8"]
    assert (rows["F32"].critical_n, rows["F32"].effective_dim, rows["F32"].code_bytes) == (4, 3, 12)
    assert (rows["F16"].critical_n, rows["F16"].effective_dim, rows["F16"].code_bytes) == (4, 3, 6)
    assert "at least 256 embeddings" in str(rows["PQ2x8"].error)


def test_the_dimension_is_bounded() -> None:
    with pytest.raises(InvalidArgumentError, match=r"2\.\.16"):
        capacities(["F16"], 17)
