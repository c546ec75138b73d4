"""Scans of lists and of chosen rows: one C++ call for all queries gives what the kernels give a query at a time."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest

from ragq.compressors import from_spec
from ragq.errors import InvalidArgumentError
from ragq.layouts import Block
from ragq.retrievers import kernels
from ragq.retrievers.kernels import cpu
from ragq.retrievers.structures import ivf
from ragq.retrievers.structures.base import Prepared
from ragq.retrievers.structures.chosen import Ranker, codes_at
from ragq.retrievers.structures.lists import Lists, one_by_one, scan_lists
from ragq.select import topk

DIM, N, NLIST = 24, 1500, 17
RNG = np.random.default_rng(3)
X = RNG.standard_normal((N, DIM)).astype(np.float32)
X[4::3] = X[3::3][: len(X[4::3])]  # scores tie, also between lists
QUERIES = RNG.standard_normal((9, DIM)).astype(np.float32)


def prepared(spec: str) -> tuple[Prepared, Lists]:
    """Return the queries for a codec, and its codes in lists of random lengths, one of them empty."""
    codec = from_spec(spec).fit(X)
    assigned = np.minimum(RNG.integers(0, NLIST, N), RNG.integers(0, NLIST, N)).astype(np.uint32)
    assigned[assigned == 5] = 6
    rows, offsets = ivf.places_of(assigned, NLIST)
    codes = codec.encode(X)[np.where(rows == ivf.NO_ROW, 0, rows)]
    return Prepared(codec, QUERIES, "ip"), Lists(Block.from_codes(codec.layout, codes), rows, offsets)


@pytest.mark.parametrize("spec", ["PQ6x4", "VPQ10(bits=4)", "PQ5x8", "VPQ10"])
@pytest.mark.parametrize("threads", [1, 3])
def test_lists_of_tables_give_what_each_query_alone_gives(spec: str, threads: int) -> None:
    p, lists = prepared(spec)
    for share, k in ((1.0, 10), (0.3, 40), (0.01, 5), (0.5, 1)):
        bits = lists.bits(RNG.random(N) < share)
        for nprobe in (1, 6, NLIST):
            probed = np.argsort(RNG.random((len(QUERIES), NLIST)), axis=1)[:, :nprobe]
            expected = one_by_one(p, lists, k, probed, bits, 1)
            found = scan_lists(p, lists, k, probed, bits, threads)
            np.testing.assert_array_equal(found[1], expected[1])
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
            alone = scan_lists(p.part([4]), lists, k, probed[4:5], bits, threads)
            np.testing.assert_array_equal(alone[1][0], expected[1][4])


@pytest.mark.parametrize("instructions", cpu.available_sets())
def test_every_instruction_set_and_the_likely_bound_find_the_best_rows(instructions: str) -> None:
    p, lists = prepared("VPQ10(bits=4)")
    bits, probed = lists.bits(np.ones(N, bool)), np.tile(np.arange(NLIST), (len(QUERIES), 1))
    expected = one_by_one(p, lists, 10, probed, bits, 1)[0]
    with mock.patch.dict("os.environ", {kernels.VARIABLE: instructions}):
        np.testing.assert_allclose(scan_lists(p, lists, 10, probed, bits, 1)[0], expected, rtol=1e-6)
        with mock.patch.object(kernels, "MARGIN_ROWS", 0):
            likely = scan_lists(p, lists, 10, probed, bits, 1)[0]
    assert (np.abs(likely - expected) < 1e-5).mean() > 0.98


@pytest.mark.parametrize("spec", ["PQ6x4", "VPQ10(bits=4)", "RQ3x4", "PQ5x8", "VPQ10"])
def test_candidates_are_the_same_however_they_are_scanned_and_hold_the_best_rows(spec: str) -> None:
    p, lists = prepared(spec)
    single = p.part([4])
    single.all = p.one(4)  # the same tables to the last bit: what is rounded could fall to the other side
    for share, k in ((1.0, 200), (0.3, 40), (0.01, 50), (0.5, 1)):
        allowed = RNG.random(N) < share
        bits, probed = lists.bits(allowed), np.argsort(RNG.random((len(QUERIES), NLIST)), axis=1)[:, :9]
        exact = one_by_one(p, lists, k, probed, bits, 1)[1]
        sets = []
        for instructions, threads in ((name, threads) for name in cpu.available_sets() for threads in (1, 3)):
            with mock.patch.dict("os.environ", {kernels.VARIABLE: instructions}):
                found = scan_lists(p, lists, k, probed, bits, threads, candidates=True)[1]
                alone = scan_lists(single, lists, k, probed[4:5], bits, 1, candidates=True)[1]
            sets.append(np.sort(found, axis=1))
            np.testing.assert_array_equal(np.sort(alone[0]), sets[-1][4])
        for found in sets:
            np.testing.assert_array_equal(found, sets[0])
        np.testing.assert_array_equal((sets[0] >= 0).sum(axis=1), (exact >= 0).sum(axis=1))
        for mine, best in zip(sets[0], exact[:, : max(1, k // 2)], strict=True):
            rows = mine[mine >= 0]
            assert allowed[rows].all() and len(np.unique(rows)) == len(rows)
            assert k == 1 or np.isin(best, mine).mean() > 0.95


def test_tables_without_a_bound_are_scored_as_they_are() -> None:
    p, lists = prepared("PQ6x4")
    p.all.tables[0, 0, 0] = np.inf
    bits, probed = lists.bits(np.ones(N, bool)), np.tile(np.arange(NLIST), (len(QUERIES), 1))
    expected = scan_lists(p, lists, 20, probed, bits, 1)[1]
    found = scan_lists(p, lists, 20, probed, bits, 1, candidates=True)[1]
    np.testing.assert_array_equal(found, expected)


def test_lists_beyond_the_places_are_refused() -> None:
    p, lists = prepared("PQ6x4")
    longer = Lists(lists.block, lists.rows, lists.offsets + 64)
    with pytest.raises(InvalidArgumentError, match="places"):
        scan_lists(p, longer, 3, np.zeros((len(QUERIES), 1), np.int64), lists.bits(np.ones(N, bool)), 1)


@dataclass
class FakeShard:
    """A shard with codes alone."""

    block: Block
    rows: int


CODECS = ["INT8", "FP8", "F16", "F32", "TQ4", "VPQ10", "PQ6x4", "BIN", "SAQ2", "PQ6x4+INT8", "RBQ1+TQ4"]


@pytest.mark.parametrize("spec", CODECS)
def test_chosen_rows_score_what_they_score_in_a_scan(spec: str) -> None:
    codec = from_spec(spec).fit(X)
    codes = codec.encode(X)
    bounds = ((0, 700), (700, 701), (701, N))
    shards = [FakeShard(Block.from_codes(codec.layout, codes[a:b]), b - a) for a, b in bounds]
    ranker, p = Ranker(shards), Prepared(codec, QUERIES, "ip")  # type: ignore[arg-type]
    some = np.sort(RNG.choice(799, 50, replace=False))
    np.testing.assert_array_equal(codes_at(shards[2].block, some), codes[701:][some])
    chosen = np.argsort(RNG.random((len(QUERIES), N)), axis=1)[:, :60]
    chosen[RNG.random(chosen.shape) < 0.2] = -1
    chosen[2] = -1
    exact = codec.scorer(QUERIES).score(codes)
    kept = np.zeros((len(QUERIES), N), bool)
    for row, picked in zip(kept, chosen, strict=True):
        row[picked[picked >= 0]] = True
    expected = topk(np.where(kept, exact, -np.inf), 80)
    for k, threads, variable in ((80, 1, ""), (80, 2, ""), (10, 1, "reference")):
        with mock.patch.dict("os.environ", {kernels.VARIABLE: variable}):
            scores, rows = ranker.topk(p, chosen, k, threads)
        np.testing.assert_allclose(scores, expected[0][:, :k], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(rows < 0, expected[1][:, :k] < 0)
        assert (rows == expected[1][:, :k]).mean() > 0.99  # sums in another order may swap what nearly ties
