"""Refinement: a coarse code finds candidates, a finer one orders them."""

from __future__ import annotations

import numpy as np
import pytest

from ragq.compressors import from_spec
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.layouts import Block, Layout
from ragq.retrievers import kernels
from ragq.select import pack_mask, topk
from tests.compressors.conftest import documents, embeddings, query_embeddings

SPEC = "BIN(centred,length)+INT8"


def test_the_spec_prints_and_parses_to_itself() -> None:
    for spec in (SPEC, "PCA16,FP8+F32", "PQ8x4+PCA50%,F16"):
        assert str(from_spec(spec)) == spec
    for bad in ("BIN+", "+INT8", "BIN+INT8+F32", "BIN+NONE"):
        with pytest.raises(InvalidArgumentError):
            from_spec(bad)


def test_bytes_are_counted_apart() -> None:
    codec = from_spec(SPEC).fit(documents())
    assert codec.code_size == 8 + 2 + 64 == from_spec(SPEC).code_size_at(64)
    assert codec.coarse_size == 10
    assert codec.layout.columns["fine"] == 64
    assert Layout.parse(str(codec.layout)) == codec.layout


def test_it_decodes_and_scores_by_the_fine_code() -> None:
    x, q = documents(), query_embeddings()[:5]
    codec = from_spec(SPEC).fit(x)
    codes = codec.encode(x)
    np.testing.assert_array_equal(codec.decode(codes), codec.fine.decode(codec.fine.encode(x)))
    np.testing.assert_allclose(codec.scorer(q).score(codes), q @ codec.decode(codes).T, atol=1e-5)
    again = from_spec(SPEC).load_state(codec.state)
    np.testing.assert_array_equal(again.encode(x), codes)
    with pytest.raises(CorruptIndexError):
        from_spec(SPEC).load_state({**codec.state, "stranger": np.zeros(1, np.float32)})


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("scan", ["reference", "kernels"])
def test_the_answer_is_the_fine_order_of_the_coarse_candidates(metric: str, scan: str) -> None:
    x, q = embeddings(900, 64, seed=1), query_embeddings()[:6]
    codec = from_spec(SPEC).fit(x)
    codes = codec.encode(x)
    block = Block.from_codes(codec.layout, codes)
    np.testing.assert_array_equal(block.codes(), codes)
    mask = pack_mask(np.arange(900) % 3 > 0)
    scorer = codec.scorer(q, metric)
    search = scorer.topk if scan == "reference" else lambda *args: kernels.topk(scorer, *args)
    scores, rows = search(block, 5, mask)
    _, candidates = topk(scorer.coarse.score(codes[:, :10]), 50, mask)
    for found, best, allowed, exact in zip(rows, scores, candidates, scorer.score(codes), strict=True):
        expected = sorted(allowed, key=lambda row: (-exact[row], row))[:5]
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(best, exact[found], atol=1e-5)


def test_refinement_finds_what_the_coarse_code_misses() -> None:
    x, q = embeddings(2000, 64, seed=1), query_embeddings()
    codec = from_spec(SPEC).fit(x)
    block = Block.from_codes(codec.layout, codec.encode(x))
    _, exact = topk(q @ x.T, 10)

    def recall(rows: np.ndarray) -> float:
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)]))

    coarse = recall(codec.scorer(q).coarse.topk(block.coarse, 10)[1])
    assert recall(codec.scorer(q).topk(block, 10)[1]) > max(0.9, coarse + 0.2)


def test_few_rows_give_few_answers() -> None:
    codec = from_spec(SPEC).fit(documents())
    block = Block.from_codes(codec.layout, codec.encode(documents()[:3]))
    scores, rows = codec.scorer(query_embeddings()[:2]).topk(block, 5)
    assert (rows[:, :3] >= 0).all()
    assert (rows[:, 3:] == -1).all()
    assert (scores[:, 3:] == -np.inf).all()
