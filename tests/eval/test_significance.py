"""The paired bootstrap: intervals that cover, differences that pair."""

from __future__ import annotations

import numpy as np
import pytest

from ragq.errors import InvalidArgumentError
from ragq.eval.significance import bootstrap_means, compare, interval


def test_the_interval_has_the_width_of_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, size=(1, 400))
    low, high = interval(bootstrap_means([values], draws=4000)[:, 0])
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_pairing_makes_a_constant_gain_certain_and_noise_a_tie() -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(size=300)
    table = np.stack([base, base + 0.01, base + rng.normal(0, 0.2, 300) - 0.0])
    draws, means = bootstrap_means([table], draws=2000), table.mean(1)
    gain, noise, self_ = (compare(draws, means, i, 0) for i in (1, 2, 0))
    assert gain.significant and gain.difference == pytest.approx(0.01) and gain.p_value < 0.01
    assert gain.high - gain.low < 1e-9
    assert not noise.significant and noise.p_value > 0.05
    assert not self_.significant and self_.p_value == 1 and self_.difference == 0


def test_data_sets_weigh_the_same_whatever_their_size() -> None:
    small, large = np.full((1, 5), 1.0), np.full((1, 500), 0.0)
    assert bootstrap_means([small, large], draws=10) == pytest.approx(0.5)


def test_the_seed_decides_the_draws() -> None:
    values = [np.random.default_rng(2).uniform(size=(2, 30))]
    assert np.array_equal(bootstrap_means(values, draws=50, seed=3), bootstrap_means(values, draws=50, seed=3))
    assert not np.array_equal(bootstrap_means(values, draws=50, seed=3), bootstrap_means(values, draws=50, seed=4))


def test_no_query_is_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="at least one query"):
        bootstrap_means([np.empty((3, 0))])
