"""A writer and readers in other processes: whatever is read is one generation, and nothing piles up."""

from __future__ import annotations

import pytest

from tests.stress import stress


@pytest.mark.slow
def test_readers_see_one_generation_each_and_nothing_grows() -> None:
    found = stress(seconds=15, readers=3)
    assert found["left_over"] == []
    assert all(found["writer"][kind] for kind in ("add", "delete", "compact"))
    for reader in found["readers"]:
        assert reader["checks"] > 3 and reader["generations"] > 1
        assert reader["handles"][2] <= reader["handles"][0] + 3 < reader["handles"][1], "closed is let go"
        assert reader["megabytes"][1] <= reader["megabytes"][0] + 40
