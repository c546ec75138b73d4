"""Every C++ kernel with every instruction set of this machine says what the NumPy formula says."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragq.compressors.scorers import DenseScorer, HammingScorer, LookupScorer, PlanesScorer, RaggedPlanesScorer
from ragq.errors import InvalidArgumentError
from ragq.layouts import Block, Layout, padded, to_blocks
from ragq.retrievers import kernels
from ragq.retrievers.kernels import cpu, reference
from ragq.select import pack_mask

SETS = cpu.available_sets()
ROWS = (0, 1, 31, 33, 1023)
DIMS = (1, 7, 64, 100, 384, 1536)
DTYPES = ("f4", "f2", "bf2", "i1", "u1", "e4m3", "e5m2", "levels")


class Case:
    """Random input of one size: codes in kernel layout, queries, and what all scans take."""

    def __init__(self, rows, dim, n_queries=3, k=10, factors=0, mask="none", seed=0, duplicates=False, part=False):
        self.rng = np.random.default_rng([rows, dim, n_queries, seed])
        self.rows, self.dim, self.n_queries, self.duplicates = rows, dim, n_queries, duplicates
        self.scan = {"k": k, "rows": rows, "bias": self.normal(n_queries)}
        if factors:
            self.scan["scale"] = self.normal(padded(rows)).astype(np.float16)
        if factors == 2:
            self.scan |= {"shift": self.normal(padded(rows)).astype(np.float16), "shift_weight": self.normal(n_queries)}
        if mask != "none":
            self.scan["mask"] = pack_mask(self.rng.random(rows) < {"half": 0.5, "few": 0.03, "all": 0}[mask])
        if part:
            self.scan |= {"start": rows // 3, "stop": rows - rows // 5}

    def normal(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def bytes(self, width, extreme=False):
        codes = self.rng.choice(np.array([0, 255], np.uint8), (self.rows, width)) if extreme else None
        codes = self.rng.integers(0, 256, (self.rows, width), dtype=np.uint8) if codes is None else codes
        return codes[self.rng.integers(0, min(self.rows, 3), self.rows)] if self.duplicates and self.rows else codes

    def columns(self, layout):
        return Layout.pack(layout, self.bytes(layout.width))

    def arguments(self, kernel):
        """Return the kernel's own arguments; with them, the largest difference that the formula allows."""
        q, dim = self.n_queries, self.dim
        if kernel == "lut4":
            return (self.columns(Layout("blocks", dim, 4))["codes"], self.normal(q, dim, 16)), {}, 0
        if kernel == "lut8":
            m = min(dim, 100)
            columns = self.columns(Layout("nibbles", m))
            return (columns["high"], columns["low"], self.normal(q, m, 256)), {}, 0
        if kernel in ("planes", "bits"):
            bits = 1 if kernel == "bits" else int(self.rng.integers(2, 9))
            columns = self.columns(Layout("planes", dim, bits))
            levels = np.sort(self.normal(1 << bits))
            return ([columns[f"plane{b}"] for b in range(bits)], self.normal(q, dim), levels), {}, 1e-5
        if kernel == "ragged":
            widths = tuple(sorted((dim, *self.rng.integers(0, dim + 1, 3).tolist()), reverse=True))
            columns = self.columns(Layout("planes", dim, 4, widths=widths))
            args = [columns[f"plane{b}"] for b in range(4)], self.normal(q, dim), self.normal(30)
            return args, {"widths": widths}, 1e-5
        if kernel == "coded":  # the last bits of whole segments of 8 dimensions in words
            widths = tuple(min(dim, 8 * -(-w // 8)) for w in sorted(self.rng.integers(1, dim + 1, 3).tolist())[::-1])
            columns = self.columns(Layout("planes", dim, 3, widths=widths, coded=dim))
            args = [columns[f"plane{b}"] for b in range(3)], self.normal(q, dim), self.normal(30)
            return args, {"widths": widths, "words": columns["words"]}, 1e-5
        if kernel == "hamming":
            width = -(-dim // 8)
            weight = self.normal(q)
            blocked = bool(self.rng.integers(2))
            column = self.columns(Layout("planes", dim, 1))["plane0"] if blocked else self.bytes(width)
            queries = self.rng.integers(0, 256, (q, width), dtype=np.uint8)
            return (column, queries), {"dim": dim, "weight": weight, "blocked": blocked}, 0
        return self.numbers(kernel.removeprefix("dense-"))

    def numbers(self, dtype):
        size = {"f4": 4, "f2": 2, "bf2": 2}.get(dtype, 1)
        levels = {"e4m3": cpu.minifloat(4, 0x7E, 7) * np.float32(0.3), "e5m2": cpu.minifloat(5, 0x7B, 15)}.get(dtype)
        if dtype == "levels":
            levels = self.normal(256)
        codes = self.bytes(self.dim)
        if size > 1:
            x = self.normal(self.rows, self.dim)
            x = x.astype(dtype) if dtype != "bf2" else (x.view(np.uint32) >> 16).astype(np.uint16)
            codes = x.view(np.uint8).reshape(self.rows, self.dim * size)
        options = {"dtype": "u1" if size == 1 and dtype != "i1" else dtype, "levels": levels}
        return (codes, self.normal(self.n_queries, self.dim)), options, 1e-5


def assert_same(answer, expected, tolerance, size=1.0):
    """Scores within the tolerance; with none, the same rows too, ties in row order."""
    (scores, rows), (scores0, rows0) = answer, expected
    assert not np.isnan(scores).any()
    np.testing.assert_array_equal(rows < 0, rows0 < 0)
    np.testing.assert_array_equal(np.isneginf(scores), rows < 0)
    if tolerance:
        np.testing.assert_allclose(scores, scores0, rtol=10 * tolerance, atol=tolerance * size)
    else:
        np.testing.assert_array_equal(scores, scores0)
        np.testing.assert_array_equal(rows, rows0)


def check(kernel, case, instructions, **extra):
    args, options, tolerance = case.arguments(kernel)
    name = {"bits": "planes", "ragged": "planes", "coded": "planes"}.get(kernel, kernel.split("-")[0])
    answer = getattr(cpu, name)(instructions, *args, **options, **case.scan, **extra)
    expected = getattr(reference, name)(*args, **options, **case.scan)
    largest = 1.0 if options.get("levels") is None else float(np.abs(options["levels"]).max())
    largest = {"i1": 128.0, "u1": max(largest, 255.0)}.get(options.get("dtype", ""), largest)
    assert_same(answer, expected, tolerance, 20 * largest * np.sqrt(case.dim))


KERNELS = ("lut4", "lut8", "planes", "bits", "ragged", "coded", "hamming", *(f"dense-{dtype}" for dtype in DTYPES))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("instructions", SETS)
def test_irregular_shapes(kernel, instructions):
    for rows in ROWS:
        for dim in DIMS:
            check(kernel, Case(rows, dim, factors=dim % 3, part=dim == 7), instructions)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 300),
    dim=st.integers(1, 130),
    n_queries=st.integers(1, 9),
    k=st.sampled_from([0, 1, 10, 1000]),
    factors=st.integers(0, 2),
    mask=st.sampled_from(["none", "half", "few", "all"]),
    duplicates=st.booleans(),
    part=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_any_input(kernel, rows, dim, n_queries, k, factors, mask, duplicates, part, threads, seed):
    for instructions in SETS:
        check(
            kernel, Case(rows, dim, n_queries, k, factors, mask, seed, duplicates, part), instructions, threads=threads
        )


@pytest.mark.parametrize("n_queries", [1, 40])
@pytest.mark.parametrize("kernel", ["lut4", "lut8", "planes", "bits"])
@pytest.mark.parametrize("instructions", SETS)
def test_rows_that_a_filter_leaves(kernel, instructions, n_queries):
    # two tiles of them and more, which a batch puts together; a third of the blocks have none
    for factors in (0, 1, 2):
        case = Case(40_000, 40, n_queries, factors=factors, mask="few", seed=factors)
        if factors == 2:
            case.scan["shift"] *= np.float16(50)  # next to which the codes matter little
        check(kernel, case, instructions)


@pytest.mark.parametrize("instructions", SETS)
def test_hamming_of_whole_words(instructions):
    for dim in (64, 128, 256, 384, 512, 768, 1024):
        for rows in (7, 8, 70, 301):
            check("hamming", Case(rows, dim, mask="half", seed=rows), instructions)


@pytest.mark.parametrize("kernel", KERNELS)
def test_threads_share_the_queries_of_a_batch(kernel):
    for factors, threads in ((0, 2), (2, 3), (2, 5)):
        case = Case(200, 40, 50, factors=factors, mask="half", part=True)
        case.scan["above"] = case.normal(50)
        check(kernel, case, SETS[-1], threads=threads)


@pytest.mark.parametrize("instructions", SETS)
def test_extreme_codes_and_tables(instructions):
    rows = 100
    case = Case(rows, 48)
    for value in (0.0, 1e30, -1e30):
        tables = np.full((3, 48, 16), value, np.float32)
        tables[:, ::5, 15] += np.float32(1e29) if value else np.float32(1)
        codes = Layout("blocks", 48, 4).pack(case.bytes(24, extreme=True))["codes"]
        answer = cpu.lut4(instructions, codes, tables, **case.scan)
        assert_same(answer, reference.lut4(codes, tables, **case.scan), 0)
    codes = case.bytes(48, extreme=True)
    for dtype in ("i1", "u1"):
        queries = np.full((3, 48), 1e10, np.float32)
        answer = cpu.dense(instructions, codes, queries, dtype=dtype, **case.scan)
        assert_same(answer, reference.dense(codes, queries, dtype=dtype, **case.scan), 1e-6, 1e15)


@pytest.mark.parametrize("instructions", SETS)
def test_many_short_tables_do_not_overflow_the_sums(instructions):
    m = 3000  # 16-bit sums of entries up to 63 would overflow
    case = Case(70, m)
    codes = Layout("blocks", m, 4).pack(np.full((70, m // 2), 255, np.uint8))["codes"]
    tables = case.normal(3, m, 16)
    assert_same(cpu.lut4(instructions, codes, tables, **case.scan), reference.lut4(codes, tables, **case.scan), 0)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("rows", (1, 33, 300))
def test_maxsim(instructions, rows):
    rng = np.random.default_rng(rows)
    queries, query_offsets = rng.standard_normal((9, 24)).astype(np.float32), np.array([0, 4, 4, 9])
    offsets = np.sort(rng.integers(0, 5 * rows, rows + 1))  # some documents are empty
    tokens = rng.standard_normal((5 * rows, 24)).astype(np.float32) - 3  # all scores below 0: a mask must not give 0
    half = pack_mask(rng.random(5 * rows) < 0.5)
    for mask, token_mask in ((None, None), (pack_mask(rng.random(rows) < 0.5), half)):
        options = {"offsets": offsets, "query_offsets": query_offsets, "dtype": "f4", "token_mask": token_mask}
        args = (tokens.view(np.uint8), queries)
        answer = cpu.maxsim(instructions, *args, **options, k=7, rows=rows, mask=mask, threads=2)
        assert_same(answer, reference.maxsim(*args, **options, k=7, rows=rows, mask=mask), 1e-5, 10)
        empty = np.flatnonzero(np.diff(offsets) == 0)
        assert not np.isin(answer[1], empty).any()


@pytest.mark.parametrize("instructions", SETS)
def test_select(instructions):
    rng = np.random.default_rng(0)
    for n in ROWS:
        scores = rng.integers(-3, 4, (4, n)).astype(np.float32)
        scores[rng.random(scores.shape) < 0.1] = -np.inf
        mask = pack_mask(rng.random(n) < 0.7)
        assert_same(cpu.select(instructions, scores, k=9, mask=mask), reference.select(scores, k=9, mask=mask), 0)
    assert (cpu.select(instructions, np.full((1, 40), np.nan, np.float32), k=3)[1] == -1).all()


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("kernel", ["dense-f4", "dense-f2", "dense-i1", "dense-e4m3", "dense-e5m2", "planes"])
def test_a_query_scores_the_same_alone_and_in_a_batch(instructions, kernel):
    case = Case(200, 100, n_queries=5)
    args, options, _ = case.arguments(kernel)
    at = 1
    name = kernel.split("-")[0]
    together = getattr(cpu, name)(instructions, *args, **options, k=9, rows=200)
    for a in range(5):
        alone = (*args[:at], args[at][a : a + 1], *args[at + 1 :])
        for part, whole in zip(
            getattr(cpu, name)(instructions, *alone, **options, k=9, rows=200), together, strict=True
        ):
            np.testing.assert_array_equal(part[0], whole[a])


def pq_scorer(n_queries, rng, spread=0):
    """Correlated 8-bit codes and tables, as a product quantizer gives: neighbours share a high nibble."""
    codebook = np.sort(rng.standard_normal((48, 256)), axis=1).astype(np.float32)
    if spread:
        codebook += rng.uniform(-0.15, 0.15, (48, 256)).astype(np.float32) * spread
    queries = rng.standard_normal((n_queries, 48)).astype(np.float32)
    return LookupScorer(np.zeros(n_queries, np.float32), queries[:, :, None] * codebook)


def test_a_margin_keeps_the_top_rows_and_exact_keeps_them_all():
    rng = np.random.default_rng(1)
    rows = 2 * kernels.MARGIN_ROWS
    block = Block.from_codes(Layout("nibbles", 48), rng.integers(0, 256, (rows, 48), dtype=np.uint8))
    scorer = pq_scorer(20, rng)
    exact = kernels.topk(scorer, block, 10, exact=True)
    assert_same(exact, scorer.topk(block, 10), 0)
    _, found = kernels.topk(scorer, block, 10)
    kept = np.mean([np.isin(a, b).mean() for a, b in zip(exact[1], found, strict=True)])
    assert kept >= 0.995


@pytest.mark.parametrize("factors", [0, 1, 2])
@pytest.mark.parametrize("n_queries", [1, 20])
@pytest.mark.parametrize("instructions", SETS)
def test_candidates_by_high_nibbles_hold_the_top_rows(instructions, n_queries, factors):
    rng = np.random.default_rng(5)
    rows = 2 * kernels.MARGIN_ROWS
    codes = rng.integers(0, 256, (rows, 48), dtype=np.uint8)
    codes[: rows // 8] //= 2  # rows that came together are alike
    columns = Layout("nibbles", 48).pack(codes)
    scan = {"k": 10, "rows": rows, "bias": rng.standard_normal(20).astype(np.float32)}
    if factors:
        scan["scale"] = rng.uniform(0.5, 1.5, padded(rows)).astype(np.float16)
    if factors == 2:
        scan["shift"] = rng.standard_normal(padded(rows)).astype(np.float16)
        scan["shift_weight"] = rng.standard_normal(20).astype(np.float32)
    scorer = pq_scorer(20, rng, 4)
    masks = [pack_mask(rng.random(rows) < share) for share in (0.5, 0.01, 0.0001)]
    parts = [{}, {"start": 5001, "stop": 30001, "threads": 2}, *({"mask": mask} for mask in masks)]
    kept = []
    for part in parts:
        for first in range(0, 20, n_queries):
            which = slice(first, first + n_queries)
            mine = {name: value[which] if name in ("bias", "shift_weight") else value for name, value in scan.items()}
            args = (columns["high"], columns["low"], scorer.tables[which])
            scores0, rows0 = cpu.lut8(instructions, *args, **mine, **part)
            scores, found = cpu.lut8(instructions, *args, **mine, **part, margin=kernels.MARGINS["lut8"])
            np.testing.assert_array_equal(found < 0, rows0 < 0)
            assert (scores <= scores0).all()
            kept += [np.isin(a, b).mean() for a, b in zip(rows0, found, strict=True)]
    assert np.mean(kept) >= 0.995


@pytest.mark.parametrize("instructions", SETS)
def test_signed_bytes_that_only_the_smallest_weights_tell_apart(instructions):
    rng = np.random.default_rng(4)
    codes = rng.integers(-128, 128, (1000, 384)).astype(np.int8)
    codes[:, 0] = 100
    query = np.full((1, 384), 1e-5, np.float32)  # a third of what one step of a 16-bit query is
    query[0, 0] = 1
    case = {"dtype": "i1", "k": 10, "rows": 1000}
    expected = reference.dense(codes.view(np.uint8), query, **case)
    got = cpu.dense(instructions, codes.view(np.uint8), query, **case)
    np.testing.assert_array_equal(got[1], expected[1])


def test_codes_that_are_not_of_separate_dimensions_are_never_chosen_by_their_high_nibbles():
    rng, layout = np.random.default_rng(8), Layout("nibbles", 48)
    block = Block.from_codes(layout, rng.integers(0, 256, (60_000, 48), dtype=np.uint8))
    tables = rng.standard_normal((4, 48, 256)).astype(np.float32)  # neighbours have nothing in common
    right = kernels.topk(LookupScorer(np.zeros(4, np.float32), tables), block, 10, exact=True)[1]
    same, other = (
        kernels.topk(LookupScorer(np.zeros(4, np.float32), tables, separate=separate), block, 10)[1]
        for separate in (False, True)
    )
    np.testing.assert_array_equal(same, right)
    assert (other != right).any()


@pytest.mark.parametrize("instructions", SETS)
def test_candidates_are_looked_for_again_where_the_sample_was_unlike_the_rows(instructions):
    rows, m = 32_768, 48
    codes = np.zeros((rows, m), np.uint8)
    codes[np.arange(rows) % 1024 < 8] = 2 << 4  # in one block of 32, as sampled: high nibbles that promise most
    best = 515 + 1000 * np.arange(30)
    codes[best] = 1 << 4 | 1  # next to them, and in truth the best
    tables = np.zeros((1, m, 256), np.float32)
    tables[:, :, 1 << 4 : 2 << 4], tables[:, :, 2 << 4 : 3 << 4] = 0.8, 1
    tables[:, :, 1 << 4 | 1], tables[:, :, 2 << 4] = 2, 0.5
    columns = Layout("nibbles", m).pack(codes)
    case = {"k": 10, "rows": rows, "margin": kernels.MARGINS["lut8"]}
    _, found = cpu.lut8(instructions, columns["high"], columns["low"], tables, **case)
    np.testing.assert_array_equal(found[0], best[:10])


@pytest.mark.parametrize("instructions", SETS)
def test_candidates_that_are_all_alike_are_taken_in_the_order_of_rows(instructions):
    rng, rows, m = np.random.default_rng(7), 60_000, 48
    columns = Layout("nibbles", m).pack(rng.integers(0, 256, (rows, m), dtype=np.uint8))
    codes, margin = (columns["high"], columns["low"]), kernels.MARGINS["lut8"]
    _, found = cpu.lut8(instructions, *codes, np.zeros((3, m, 256), np.float32), k=10, rows=rows, margin=margin)
    np.testing.assert_array_equal(found, np.tile(np.arange(10), (3, 1)))
    # next to a row that counts for so much, all others lie on the lowest levels
    scale = np.ones(padded(rows), np.float16)
    scale[0] = 60_000
    tables = np.abs(np.repeat(rng.standard_normal((3, m, 16)), 16, axis=2)).astype(np.float32)
    case = {"k": 10, "rows": rows, "scale": scale}
    right = cpu.lut8(instructions, *codes, tables, **case)[1]
    found = cpu.lut8(instructions, *codes, tables, **case, margin=margin)[1]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(right, found, strict=True)]) > 0.8


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("instructions", SETS)
def test_positive_scales_do_not_hide_rows(instructions, sign):
    rng = np.random.default_rng(6)
    codes = to_blocks(rng.integers(0, 16, (4096, 24), dtype=np.uint8))
    tables = (rng.random((5, 24, 16)) + sign * 2).astype(np.float32)  # all scores of one sign
    scale = rng.uniform(0.25, 4, 4096).astype(np.float16)
    case = {"k": 10, "rows": 4096, "scale": scale, "bias": rng.standard_normal(5).astype(np.float32)}
    assert_same(cpu.lut4(instructions, codes, tables, **case), reference.lut4(codes, tables, **case), 0)


@pytest.mark.parametrize("factors", [0, 1, 2])
@pytest.mark.parametrize("instructions", SETS)
def test_a_query_of_whole_numbers_rules_out_no_row_of_the_top_k(instructions, factors):
    case = Case(3000, 100, n_queries=1, factors=factors, seed=5)
    codes = np.full((3000, 100), 127, np.int8)
    codes[:, 0] = 100
    codes[:100, 1], codes[100:2000, 1] = 100, 80  # just ruled out; what comes after them is not
    codes[2000:, 1] = case.rng.integers(90, 102, 1000)
    query = np.ones((1, 100), np.float32)  # half a step of the whole query, which leaves it out
    query[0, :2] = 2 * 32639, 20
    expected = reference.dense(codes.view(np.uint8), query, dtype="i1", **case.scan)  # sums of floats without rounding
    got = cpu.dense(instructions, codes.view(np.uint8), query, dtype="i1", **case.scan)
    assert_same(got, expected, 0)


PLANES = {
    "even": (Layout("planes", 96, 4, 2), PlanesScorer, np.array([16]), {}),
    "short": (Layout("planes", 100, 3, 1), PlanesScorer, np.array([8]), {}),
    # how many parts of the first plane have their sums averaged in bytes: 4, 8, and none of so many
    "400": (Layout("planes", 400, 2, 1), PlanesScorer, np.array([4]), {}),
    "1000": (Layout("planes", 1000, 2, 1), PlanesScorer, np.array([4]), {}),
    "1600": (Layout("planes", 1600, 2, 1), PlanesScorer, np.array([4]), {}),
    "ragged": (
        Layout("planes", 100, 3, 1, widths=(100, 61, 40)),
        RaggedPlanesScorer,
        np.array([2, 4, 8]),
        {"widths": (100, 61, 40)},
    ),
}


@pytest.mark.parametrize(
    ("name", "n_queries"), [*((name, 20) for name in PLANES), ("even", 1), ("short", 1), ("ragged", 1)]
)
@pytest.mark.parametrize("instructions", SETS)
def test_estimates_by_planes_keep_the_top_rows(instructions, name, n_queries, monkeypatch):
    monkeypatch.setenv("RAGQ_KERNEL", instructions)
    layout, form, sizes, options = PLANES[name]
    rng = np.random.default_rng(3)
    rows = kernels.MARGIN_ROWS * (1 if layout.count > 100 else 2)
    codes = rng.integers(0, 256, (rows, layout.code_size), dtype=np.uint8)
    factors = rng.uniform(0.5, 1.5, (len(codes), layout.factors)).astype(np.float16)
    codes[:, layout.width :] = factors.view(np.uint8)
    levels = np.concatenate([np.sort(rng.standard_normal(size)) for size in sizes]).astype(np.float32)  # far from even
    bias = np.zeros(20, np.float32)
    weight = {"shift_weight": rng.standard_normal(20).astype(np.float32)} if layout.factors == 2 else {}
    queries = rng.standard_normal((20, layout.count)).astype(np.float32)
    block, kept = Block.from_codes(layout, codes), []
    for first in range(0, 20, n_queries):
        part = slice(first, first + n_queries)
        mine = {key: value[part] for key, value in weight.items()}
        scorer = form(bias[part], queries[part], levels, factors=layout.factors, **mine, **options)
        exact = kernels.topk(scorer, block, 10, exact=True)
        scores, rows = kernels.topk(scorer, block, 10)
        kept += [np.isin(a, b).mean() for a, b in zip(exact[1], rows, strict=True)]
        for query in range(len(rows)):  # what is returned has its exact score
            known = dict(zip(exact[1][query], exact[0][query], strict=True))
            for row, score in zip(rows[query], scores[query], strict=True):
                assert abs(known.get(row, score) - score) <= 1e-4 * (1 + abs(score))
    assert np.mean(kept) >= 0.99  # 2 of 200 may be missing


def scorers(rng, n_queries=4, dim=100):
    """One scorer and layout of each form that a kernel takes."""
    bias = rng.standard_normal(n_queries).astype(np.float32)
    queries = rng.standard_normal((n_queries, dim)).astype(np.float32)
    factors = {"factors": 2, "shift_weight": rng.standard_normal(n_queries).astype(np.float32)}
    signs = np.packbits(queries > 0, axis=1, bitorder="little")
    tables = rng.standard_normal((n_queries, dim, 256)).astype(np.float32)
    yield DenseScorer(bias, queries, "i1", **factors), Layout("rows", dim, 8, 2)
    yield LookupScorer(bias, tables[:, :, :16], **factors), Layout("blocks", dim, 4, 2)
    yield LookupScorer(bias, tables), Layout("nibbles", dim)
    yield PlanesScorer(bias, queries, np.array([-3, -1, 1, 4], np.float32), factors=1), Layout("planes", dim, 2, 1)
    yield HammingScorer(bias, signs, np.ones(n_queries, np.float32), dim), Layout("planes", dim, 1)
    yield HammingScorer(bias, signs, np.ones(n_queries, np.float32), dim), Layout("rows", len(signs[0]))


def random_block(layout, rows, rng):
    codes = rng.integers(0, 256, (rows, layout.code_size), dtype=np.uint8)
    if layout.factors:
        factors = rng.standard_normal((rows, layout.factors)).astype(np.float16)
        codes[:, layout.width :] = factors.view(np.uint8).reshape(rows, -1)
    return Block.from_codes(layout, codes)


def test_topk_is_the_scorers_own():
    rng = np.random.default_rng(2)
    for scorer, layout in scorers(rng):
        block = random_block(layout, 333, rng)
        mask = pack_mask(rng.random(333) < 0.5)
        assert_same(kernels.topk(scorer, block, 12, mask, threads=2), scorer.topk(block, 12, mask), 1e-5, 1e3)
        _, rows = kernels.topk(scorer, block, 12, start=100, stop=140)
        assert ((rows >= 100) & (rows < 140)).all()


def test_columns_may_be_memory_mapped_and_read_only(tmp_path):
    rng = np.random.default_rng(3)
    for scorer, layout in scorers(rng):
        block = random_block(layout, 100, rng)
        columns = {}
        for name, column in block.columns.items():
            np.save(tmp_path / f"{name}.npy", column)
            columns[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
        mapped = kernels.topk(scorer, Block(layout, columns, 100), 10)
        assert_same(mapped, kernels.topk(scorer, block, 10), 0)


def test_the_environment_forces_an_implementation(monkeypatch):
    rng = np.random.default_rng(4)
    scorer, layout = next(scorers(rng))
    block = random_block(layout, 50, rng)
    for name in ("reference", *SETS):
        monkeypatch.setenv("RAGQ_KERNEL", name)
        assert {kernel["used"] for kernel in kernels.report().values()} == {name}
        assert_same(kernels.topk(scorer, block, 5), scorer.topk(block, 5), 1e-5, 1e3)
    monkeypatch.setenv("RAGQ_KERNEL", "sse9")
    with pytest.raises(InvalidArgumentError, match=r"RAGQ_KERNEL must be one of reference, scalar.*Got 'sse9'"):
        kernels.topk(scorer, block, 5)
    monkeypatch.delenv("RAGQ_KERNEL")
    assert kernels.report()["lut8"]["used"] == SETS[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros((10, 48), np.uint8)}, "at least 64 rows"),
        ({"codes": np.zeros((64, 47), np.uint8)}, "48 bytes a row"),
        ({"codes": np.zeros((64, 48), np.int8)}, "must be uint8"),
        ({"k": -1}, "'k' must be at least 0"),
        ({"stop": 61}, r"within 0 \.\. 60"),
        ({"start": -1}, r"within 0 \.\. 60"),
        ({"shift": np.zeros(64, np.float16)}, "needs 'scale'"),
        ({"scale": np.zeros(64, np.float32)}, "must be float16"),
    ],
)
def test_wrong_arguments_never_reach_the_loops(change, message):
    arguments = {"codes": np.zeros((64, 48), np.uint8), "k": 3, "rows": 60} | change
    codes = arguments.pop("codes")
    with pytest.raises(InvalidArgumentError, match=message):
        cpu.lut4("scalar", codes, np.zeros((1, 96, 16), np.float32), **arguments)


def test_threads_of_python_get_the_same_answers_as_one():
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(5)
    scorer, layout = list(scorers(rng))[2]
    block = random_block(layout, 5000, rng)
    expected = kernels.topk(scorer, block, 10)
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda _: kernels.topk(scorer, block, 10, threads=2), range(32)):
            assert_same(answer, expected, 0)


FORK = """
import os, numpy as np
from ragq.compressors.scorers import LookupScorer
from ragq.layouts import Block, Layout
from ragq.retrievers import kernels

rng = np.random.default_rng(0)
block = Block.from_codes(Layout("blocks", 96, 4), rng.integers(0, 256, (20000, 48), dtype=np.uint8))
scorer = LookupScorer(np.zeros(4, "f4"), rng.standard_normal((4, 96, 16)).astype("f4"))
before = kernels.topk(scorer, block, 10, threads=2)
child = os.fork()
if child == 0:
    after = kernels.topk(scorer, block, 10, threads=2)
    os._exit(0 if (after[1] == before[1]).all() else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_child_forked_after_a_search_can_search():
    environment = {name: value for name, value in os.environ.items() if name != "RAGQ_KERNEL"}
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60, env=environment)
