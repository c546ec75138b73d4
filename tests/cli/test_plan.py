"""`ragq plan` says what an index of any size would take, and where each number comes from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ragq
from ragq.cli import cli
from ragq.errors import InvalidArgumentError
from ragq.pipelines import plan as module
from ragq.pipelines.plan import Plan, plan


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 2048)
    monkeypatch.setattr(module, "SCANNED_BYTES", 1 << 20)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2048, 32)).astype(np.float32)


def test_the_command_prints_every_part_and_its_origin(tmp_path: Path) -> None:
    arguments = ["plan", "--docs", "1e9", "--dim", "64", "--budget", "24", "--tmp", str(tmp_path)]
    text = CliRunner().invoke(cli, arguments, catch_exceptions=False).output
    for word in (
        "1,000,000,000 passages x 64 dimensions",
        "24 code bytes",
        "shards",
        "memory",
        "scan",
        "ivf",
        "workers",
        "Assumed",
    ):
        assert word in text
    assert text.count("computed") == 4 and text.count("extrapolated") == 4
    body = json.loads(CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert body["computed"]["code_bytes"] <= 24 and body["docs"] == 10**9
    assert all(value > 0 for name, value in body["measured"].items() if name not in ("embed_ms", "fit_seconds"))
    assert body["measured"]["embed_ms"] is None and body["assumed"]["embedding"] == "ready embeddings"
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_computed_bytes_are_those_of_a_real_index(x: np.ndarray, tmp_path: Path) -> None:
    made = plan(2048, codec="PQ8x8", embeddings=x)
    with ragq.build(None, tmp_path / "i", embeddings=x, ids=[str(i) for i in range(2048)], codec="PQ8x8") as index:
        real = index.info()["bytes"]
    for part in ("codes", "ids"):
        assert made.sizes()[part] <= real[part] <= made.sizes()[part] + 3000  # the headers of the files
    assert made.sizes()["compressor"] == real["compressor"]
    assert made.shards == 1 and made.spec == "PQ8x8"


def test_costs_grow_with_the_rows_and_shrink_with_the_workers(x: np.ndarray) -> None:
    small = plan(1e6, codec="FP8", embeddings=x, workers=1, text_bytes=100)
    large = Plan(**{**small.__dict__, "docs": 10**8})
    assert large.sizes()["text"] == 10**10
    assert large.latency()["scan_ms"] - large.measured.query_ms == pytest.approx(
        100 * (small.latency()["scan_ms"] - small.measured.query_ms)
    )
    assert large.latency()["ivf_ms"] < large.latency()["scan_ms"]
    assert large.hours(10) < large.hours(1)
    wanted = large.workers_wanted()
    assert wanted is not None and large.hours(wanted) <= large.hours_wanted
    assert wanted == 1 or large.hours(wanted - 1) > large.hours_wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"docs": 0, "dim": 8, "codec": "FP8"}, "'docs'"),
        ({"docs": 10, "codec": "FP8"}, "Give 'dim'"),
        ({"docs": 10, "dim": 8}, "either 'codec' or 'budget'"),
        ({"docs": 10, "dim": 8, "codec": "FP8", "budget": 4}, "either 'codec' or 'budget'"),
        ({"docs": 10, "dim": 8, "codec": "FP8", "probe": 0}, "'probe' must be above 0"),
        ({"docs": 10, "dim": 8, "codec": "FP8", "hours": 0}, "'hours' must be above 0"),
    ],
)
def test_arguments_that_make_no_plan(options: dict, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        plan(**options)
