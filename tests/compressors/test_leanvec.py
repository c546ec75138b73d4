"""LeanVec: the losses in the order that theory gives them, and few queries that do no harm."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors.leanvec import LeanVec, closed_form, frank_wolfe, leading, loss
from ragq.errors import InvalidArgumentError

Floats = NDArray[np.float32]


def off_distribution(n: int, n_queries: int, dim: int = 48) -> tuple[Floats, Floats]:
    """Documents whose variance falls along the axes, and queries whose variance rises."""
    rng = np.random.default_rng(2)
    spread = np.linspace(1, 0.1, dim)
    x = rng.normal(size=(n, dim)) * spread
    q = rng.normal(size=(n_queries, dim)) * (0.2 + spread[::-1])
    return x.astype(np.float32), q.astype(np.float32)


def moments(x: Floats) -> NDArray[np.float64]:
    return x.T.astype(np.float64) @ x / len(x)


@pytest.mark.parametrize("d", [8, 16, 32])
def test_closed_form_beats_frank_wolfe_beats_pca(d: int) -> None:
    x, q = off_distribution(3000, 2000)
    k_x, k_q = moments(x), moments(q)
    pca = leading(k_x, d)
    losses = [
        loss(*closed_form(k_q, k_x, d), k_q, k_x),
        loss(*frank_wolfe(k_q, k_x, d), k_q, k_x),
        loss(pca, pca, k_q, k_x),
    ]
    assert losses[0] < losses[1] < losses[2]
    assert losses[0] > 0


def test_the_closed_form_is_the_best_of_its_rank() -> None:
    x, q = off_distribution(3000, 2000)
    k_x, k_q = moments(x), moments(q)
    a, b = closed_form(k_q, k_x, 12)
    best = loss(a, b, k_q, k_x)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(5):
            moved = loss(a + size * rng.normal(size=a.shape), b + size * rng.normal(size=b.shape), k_q, k_x)
            assert moved >= best * (1 - 1e-9)


def test_all_dimensions_lose_nothing() -> None:
    x, q = off_distribution(500, 200)
    for method in ("id", "closed"):
        t = LeanVec(48, method).fit(x, queries=q)
        folded, bias = t.fold(q)
        np.testing.assert_allclose(folded @ t.apply(x).T + bias[:, None], q @ x.T, atol=2e-2)


@pytest.mark.parametrize("method", ["closed", "fw"])
def test_queries_make_the_reduced_scores_better(method: str) -> None:
    x, q = off_distribution(3000, 3000)
    errors = []
    for chosen in (method, "id"):
        t = LeanVec(16, chosen).fit(x, queries=q[:2000])
        folded, bias = t.fold(q[2000:])
        errors.append(np.square(folded @ t.apply(x).T + bias[:, None] - q[2000:] @ x.T).mean())
    assert errors[0] < 0.9 * errors[1]


def test_few_queries_do_not_fit_themselves_alone() -> None:
    x, q = off_distribution(3000, 1005)
    errors = []
    for chosen in ("closed", "id"):
        t = LeanVec(16, chosen).fit(x, queries=q[:5])
        folded, bias = t.fold(q[5:])
        errors.append(np.square(folded @ t.apply(x).T + bias[:, None] - q[5:] @ x.T).mean())
    assert errors[0] < 1.15 * errors[1]


def test_methods_for_queries_need_queries() -> None:
    x, _ = off_distribution(100, 1)
    with pytest.raises(InvalidArgumentError, match="needs queries"):
        LeanVec(8, "closed").fit(x)
    with pytest.raises(InvalidArgumentError, match="keeps 99 dimensions"):
        LeanVec(99).fit(x)
    with pytest.raises(InvalidArgumentError, match="'method' must be one of"):
        LeanVec(8, "pca")
