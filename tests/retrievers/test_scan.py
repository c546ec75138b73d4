"""A scan of several blocks is the scan of their concatenation."""

from __future__ import annotations

import numpy as np
import pytest

from ragq.compressors.scorers import DenseScorer
from ragq.errors import InvalidArgumentError
from ragq.layouts import Block, Layout
from ragq.retrievers.scan import scan
from ragq.select import live_rows, pack_mask

DIM = 24
LAYOUT = Layout("rows", DIM)


def blocks_and_codes(sizes, rng):
    codes = rng.integers(0, 4, (sum(sizes), DIM), dtype=np.uint8)  # few values: many ties
    parts = np.split(codes, np.cumsum(sizes)[:-1])
    return [Block.from_codes(LAYOUT, part) for part in parts], codes


def scorer(rng, n_queries=3):
    queries = rng.integers(-1, 2, (n_queries, DIM)).astype(np.float32)
    return DenseScorer(np.zeros(n_queries, np.float32), queries, "i1")


@pytest.mark.parametrize("sizes", [(100,), (31, 33, 64), (1, 0, 1000, 7)])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_are_one_collection(sizes, threads):
    rng = np.random.default_rng(sizes)
    blocks, codes = blocks_and_codes(sizes, rng)
    live = rng.random(len(codes)) < 0.5
    masks = [pack_mask(part) for part in np.split(live, np.cumsum(sizes)[:-1])]
    query = scorer(rng)
    for keep, given in ((None, None), (pack_mask(live), masks)):
        expected = query.topk(Block.from_codes(LAYOUT, codes), 20, keep)
        for got, wanted in zip(scan(query, blocks, 20, given, threads), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_k_rows_come_back_whenever_k_rows_qualify():
    rng = np.random.default_rng(0)
    blocks, _ = blocks_and_codes((500, 500), rng)
    live = np.zeros(500, bool)
    live[[3, 77, 499]] = True
    _, rows = scan(scorer(rng), blocks, 5, [None, pack_mask(live)])
    assert (rows >= 0).all()
    _, rows = scan(scorer(rng), blocks, 5, [pack_mask(np.zeros(500, bool)), pack_mask(live)])
    assert (np.sort(rows, axis=1) == [-1, -1, 503, 577, 999]).all()


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 64, 1001])
def test_rows_are_counted_without_what_lies_behind_the_last(n):
    rows = np.random.default_rng(n).random(n) < 0.5
    mask = pack_mask(rows)
    assert live_rows(mask, n) == rows.sum() and live_rows(None, n) == n
    if n % 8:
        mask[-1] |= 0xFF << n % 8 & 0xFF
        assert live_rows(mask, n) == rows.sum()


def test_nothing_to_scan():
    rng = np.random.default_rng(0)
    scores, rows = scan(scorer(rng), [], 4)
    assert scores.shape == rows.shape == (3, 4)
    assert np.isneginf(scores).all() and (rows == -1).all()
    assert scan(scorer(rng), blocks_and_codes((10,), rng)[0], 0)[0].shape == (3, 0)


def test_wrong_arguments():
    rng = np.random.default_rng(0)
    blocks, _ = blocks_and_codes((10, 10), rng)
    with pytest.raises(InvalidArgumentError, match=r"'masks' must have one entry a block\. Got 1 for 2 blocks"):
        scan(scorer(rng), blocks, 3, [None])
    with pytest.raises(InvalidArgumentError, match="'k' must be"):
        scan(scorer(rng), blocks, -1)
    with pytest.raises(InvalidArgumentError, match="'threads' must be"):
        scan(scorer(rng), blocks, 3, threads=0)
