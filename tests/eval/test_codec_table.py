"""The table of codecs and peers at equal bytes."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from ragq.checks import normalized
from ragq.eval.codec_table import (
    BUDGETS,
    Row,
    Scale,
    contenders,
    faiss_answer,
    markdown,
    ours,
    paired,
    ragq_answer,
    size_of,
)
from ragq.eval.exact import Exact


def small_scale() -> Scale:
    x = normalized(np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32))
    return Scale(x[:350], x[:300], Exact.search(x[:350], x[350:], 10, "ip"))


@pytest.mark.parametrize("budget", BUDGETS)
def test_nobody_exceeds_the_budget(budget: int) -> None:
    assert f"VPQ{budget}" in ours(384, budget)
    for size, _, _, code_bytes, _, _ in contenders([budget], 384, "all", 65_536):
        assert code_bytes <= size == budget


def test_recall_is_one_for_exact_codes_and_less_for_coarse_ones() -> None:
    scale = small_scale()
    exact = scale.measure(64, "ragq", "F32", 64, 300, lambda s: ragq_answer("F32", s))
    coarse = scale.measure(64, "ragq", "BIN", 2, 200, lambda s: ragq_answer("BIN", s))
    assert exact.recall == 1
    assert (exact.train_rows, coarse.train_rows) == (300, 200)
    assert 0.1 < coarse.recall < 0.9


def test_additive_codes_are_searched_as_faiss_searches_them() -> None:
    scale = small_scale()
    index = faiss.index_factory(16, "RQ3x4", faiss.METRIC_INNER_PRODUCT)
    index.train(scale.sample)
    index.add(scale.documents)
    found = index.search(scale.exact.queries, 10)[1]
    assert scale.exact.agreement(faiss_answer("RQ3x4", scale), 10).mean() == scale.exact.agreement(found, 10).mean()


def test_the_best_of_a_budget_comes_first() -> None:
    rows = [Row(48, "a", "X", 48, 9, 0.5, 1), Row(48, "b", "Y", 47, 9, 0.6, 1), Row(96, "c", "Z", 96, 9, 0.1, 1)]
    table = markdown(rows)
    assert [line.split("|")[2].strip() for line in table.splitlines()[2:]] == ["c", "b", "a"]
    assert size_of("PQ0x8", 384) == float("inf")


def test_a_pair_is_compared_query_by_query() -> None:
    (exact, coarse), found = paired(small_scale(), "F32", "PCA2,SQ8")
    assert exact == 1 and 0 < coarse < 0.9
    assert found.difference == pytest.approx(exact - coarse)
    assert found.low <= found.difference <= found.high
    assert found.significant
