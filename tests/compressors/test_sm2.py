"""SM2: the code of the paper, its symmetric distance, and embeddings that it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors import from_spec
from ragq.compressors.sm2 import SM2
from ragq.errors import InvalidArgumentError
from ragq.layouts import from_planes
from tests.compressors.conftest import documents, query_embeddings

Floats = NDArray[np.float32]


def structureless(n: int, dim: int) -> Floats:
    """Random directions in few dimensions: near neighbours share all their signs."""
    x = np.random.default_rng(0).normal(size=(n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_codes_are_signs_and_magnitudes_of_the_residual() -> None:
    x = documents()
    codec = SM2(rotated=False).fit(x)
    r = x - codec.mean_
    strong = np.abs(r) > np.abs(r).mean(axis=1, keepdims=True)
    code = from_planes(codec.encode(x)[:, :-2], 64, 2)
    np.testing.assert_array_equal(code >= 2, r > 0)
    np.testing.assert_array_equal((code == 0) | (code == 3), strong)


def test_the_symmetric_distance_weighs_signs_that_differ() -> None:
    x = documents()[:40]
    codec = SM2().fit(documents())
    codes = codec.encode(x)
    value = np.array([-2, -1, 1, 2])[from_planes(codes[:, :-2], 64, 2)]
    product = value[:, None] * value[None]
    np.testing.assert_array_equal(codec.distance(codes, codes), np.where(product < 0, -product, 0).sum(axis=2))


def test_a_float_query_finds_more_than_a_rounded_one() -> None:
    x, q = documents(), query_embeddings()
    codec = SM2().fit(x)
    exact = np.argsort(-(q @ x.T), axis=1)[:, :10]
    scores = codec.scorer(q).score(codec.encode(x))
    distance = codec.distance(codec.encode(q), codec.encode(x))

    def found(ranking: NDArray[np.int64]) -> float:
        return float(np.mean([np.isin(a, b).mean() for a, b in zip(exact, ranking[:, :10], strict=True)]))

    assert found(np.argsort(-scores, axis=1)) > found(np.argsort(distance, axis=1)) + 0.05


def test_embeddings_that_signs_cannot_rank_are_refused() -> None:
    x = structureless(4000, 8)
    with pytest.raises(InvalidArgumentError, match=r"does not suit.*RBQ2"):
        SM2().fit(x)
    SM2(min_overlap=0).fit(x)
    SM2().fit(documents())


def test_the_refusal_survives_a_spec() -> None:
    assert from_spec("SM2(min_overlap=0.7)").min_overlap == 0.7  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgumentError, match="min_overlap"):
        from_spec("SM2(min_overlap=2)")
