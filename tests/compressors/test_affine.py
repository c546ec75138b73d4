"""INT8 and INT4: even steps a dimension."""

from __future__ import annotations

import numpy as np
import pytest

from ragq.compressors import from_spec
from ragq.compressors.affine import INT4, INT8


@pytest.fixture
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(2000, 24)) * np.exp(rng.normal(size=24)) + rng.normal(size=24)).astype(np.float32)


@pytest.mark.parametrize("spec", ["INT8", "INT4"])
def test_a_value_in_range_is_off_by_half_a_step(spec: str, x: np.ndarray) -> None:
    codec = from_spec(spec).fit(x)
    step, middle = codec.state["step_"], codec.state["middle_"]
    low, high = middle - step * 2 ** (codec.bits - 1), middle + step * (2 ** (codec.bits - 1) - 1)  # type: ignore[attr-defined]
    off = np.abs(codec.decode(codec.encode(x)) - x)
    inside = (x >= low) & (x <= high)
    assert inside.mean() > 0.95
    assert (off <= step * 0.501)[inside].all()


@pytest.mark.parametrize("cls", [INT8, INT4])
def test_a_value_out_of_range_takes_the_nearest_end(cls: type, x: np.ndarray) -> None:
    codec = cls().fit(x)
    far = np.stack([np.full(24, 1e6), np.full(24, -1e6)]).astype(np.float32)
    top = 2 ** (codec.bits - 1)
    ends = np.stack([codec.middle_ + codec.step_ * (top - 1), codec.middle_ - codec.step_ * top])
    np.testing.assert_array_equal(codec.decode(codec.encode(far)), ends.astype(np.float32))


@pytest.mark.parametrize("spec", ["INT8", "INT4"])
def test_a_constant_dimension_is_exact(spec: str, x: np.ndarray) -> None:
    x[:, 3] = 0.7
    codec = from_spec(spec).fit(x)
    np.testing.assert_array_equal(codec.decode(codec.encode(x))[:, 3], np.float32(0.7))


def test_int4_clips_the_tails_when_that_is_nearer() -> None:
    x = np.random.default_rng(1).normal(size=(20000, 2)).astype(np.float32)
    codec = INT4().fit(x)
    # Best even step of 16 levels for a normal variable: 0.3352 (Max 1960, table II).
    np.testing.assert_allclose(codec.step_, 0.3352, rtol=0.08)
    error = np.square(codec.decode(codec.encode(x)) - x).mean()
    assert error == pytest.approx(0.01154, rel=0.05)


def test_dequantised_scores_beat_raw_codes() -> None:
    """The trap of scoring codes: dimensions on different scales are weighed alike (recipe of arXiv 2505.00105)."""
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(1000, 64)) * np.exp(rng.normal(size=64)) + rng.normal(size=64)).astype(np.float32)
    q = x[:50] + 0.3 * rng.normal(size=(50, 64)).astype(np.float32)
    codec = INT8().fit(x)
    codes, true = codec.encode(x), q @ x.T
    raw = codec.encode(q).view(np.int8).astype(np.float32) @ codes.view(np.int8).T

    def recall(scores: np.ndarray) -> float:
        found, wanted = np.argsort(-scores)[:, :10], np.argsort(-true)[:, :10]
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, wanted, strict=True)]))

    assert recall(codec.scorer(q).score(codes)) > 0.97
    assert recall(raw) < 0.8
