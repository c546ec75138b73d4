"""Products that do not depend on the batch."""

from __future__ import annotations

import numpy as np
import pytest

from ragq.compressors.exact import exact_matmul


@pytest.mark.parametrize(("d", "k"), [(1, 1), (33, 7), (64, 64), (384, 100)])
def test_a_row_is_the_same_alone_and_anywhere_in_a_batch(d: int, k: int) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(301, d)) * np.exp(5 * rng.normal(size=(301, 1)))).astype(np.float32)
    w = rng.normal(size=(d, k)).astype(np.float32)
    whole = exact_matmul(x, w)
    order = rng.permutation(len(x))
    np.testing.assert_array_equal(exact_matmul(x[order], w), whole[order])
    np.testing.assert_array_equal(np.concatenate([exact_matmul(row[None], w) for row in x]), whole)


def test_it_does_not_depend_on_the_order_of_the_sum() -> None:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(50, 384)).astype(np.float32), rng.normal(size=(384, 20)).astype(np.float32)
    order = rng.permutation(384)
    np.testing.assert_array_equal(exact_matmul(x[:, order], w[order]), exact_matmul(x, w))


def test_it_is_as_near_as_float32() -> None:
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(200, 384)).astype(np.float32), rng.normal(size=(384, 50)).astype(np.float32)
    true = x.astype(np.float64) @ w
    unit = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=0)
    assert (np.abs(exact_matmul(x, w) - true) / unit).max() < 2**-22


def test_zeros_and_no_rows() -> None:
    w = np.eye(4, 3, dtype=np.float32)
    assert exact_matmul(np.empty((0, 4), np.float32), w).shape == (0, 3)
    np.testing.assert_array_equal(exact_matmul(np.zeros((2, 4), np.float32), w), 0)
    np.testing.assert_array_equal(exact_matmul(np.ones((2, 4), np.float32), 0 * w), 0)
