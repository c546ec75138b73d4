"""RaBitQ: near-optimal directions, an error bound that holds, and parity with an exhaustive sweep."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors import from_spec
from ragq.compressors.scalar import uniform_levels
from ragq.errors import InvalidArgumentError
from ragq.layouts import from_planes
from tests.compressors.conftest import documents, query_embeddings

Floats = NDArray[np.float32]


def cosines(a: Floats, b: Floats) -> Floats:
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def sweep(r: Floats, bits: int) -> float:
    """The highest cosine over the roundings of `t r` at every critical `t`: extended RaBitQ, algorithm 1."""
    size, top = np.abs(r), 2 ** (bits - 1)
    critical = np.sort((np.arange(1, top)[:, None] / np.maximum(size, 1e-12)).ravel())
    best = 0.0
    for t in critical[critical < 1e6] * (1 + 1e-6):
        v = np.minimum(np.floor(t * size), top - 1) + 0.5
        best = max(best, float((size * v).sum() / np.sqrt((v * v).sum())))
    return best / float(np.linalg.norm(r))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_point_where_the_exhaustive_sweep_points(bits: int) -> None:
    x = documents()[:12]
    codec = from_spec(f"RBQ{bits}").fit(documents())
    r = codec.rotate(x - codec.mean_)
    v = uniform_levels(bits)[from_planes(codec.encode(x)[:, :-2], 64, bits)]
    best = np.array([sweep(row, bits) for row in r])
    lost = (1 - cosines(r, v) ** 2) / (1 - best**2)
    assert lost.max() < 1.03
    assert lost.mean() < 1.01


@pytest.mark.parametrize(("epsilon", "share"), [(1.0, 0.68), (1.9, 0.94), (3.0, 0.997)])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_error_bound_holds_for_its_share_of_pairs(bits: int, epsilon: float, share: float) -> None:
    x, q = documents(), query_embeddings()
    codec = from_spec(f"RBQ{bits}(bound)").fit(x)
    codes = codec.encode(x)
    error = np.abs(codec.scorer(q).score(codes) - q @ x.T)
    bound = codec.error_bound(q, codes, epsilon)
    assert bound.shape == error.shape
    assert (error <= bound + 1e-3 * np.abs(q @ x.T)).mean() >= share
    assert (bound / np.maximum(error.mean(), 1e-9)).mean() < 8  # and it says something


def test_the_bound_is_refused_where_it_is_not_stored() -> None:
    codec = from_spec("RBQ2").fit(documents())
    with pytest.raises(InvalidArgumentError, match="bound"):
        codec.error_bound(query_embeddings(), codec.encode(documents()))


def test_more_bits_are_better_down_to_the_shannon_bound() -> None:
    x = documents()
    errors = []
    for bits in range(1, 10):
        codec = from_spec(f"RBQ{bits}").fit(x)
        r = x - codec.mean_
        errors.append(float((1 - cosines(r, codec.decode(codec.encode(x)) - codec.mean_) ** 2).mean()))
    ratios = np.array(errors) * 4.0 ** np.arange(1, 10)
    assert (np.diff(errors) < 0).all()
    assert (ratios > 1).all()
    assert (ratios[:6] < 4).all()


@pytest.mark.parametrize("spec", ["RBQ4", "TQ4"])
def test_rows_are_encoded_alike_however_many_at_once(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = from_spec(spec).fit(documents())
    whole = codec.encode(documents())
    for rows in (0, 1, 7):
        monkeypatch.setattr(type(codec), "rows_at_once", rows)
        np.testing.assert_array_equal(codec.encode(documents()[:50]), whole[:50])
        assert codec.encode(documents()[:0]).shape == (0, codec.code_size)
