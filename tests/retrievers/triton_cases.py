"""Parity of the Triton kernels with the reference, in Triton's interpreter: `test_triton.py` runs this file.

It is a process of its own, since the interpreter has to be chosen before anything imports Triton.
"""

import numpy as np
import pytest
import torch

from ragq.compressors.minifloat import E4M3
from ragq.compressors.scorers import DenseScorer, HammingScorer, LookupScorer, PlanesScorer, RaggedPlanesScorer
from ragq.errors import InvalidArgumentError
from ragq.layouts import Block, Layout
from ragq.retrievers import kernels
from ragq.retrievers import scan as cpu_scan
from ragq.retrievers.device import DeviceScan
from ragq.retrievers.kernels import reference, triton_scan
from ragq.select import pack_mask, topk

Q = 3
rng = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 32 rows in two programs, so that few rows already cross tiles and programs."""
    choose = triton_scan.choose_tile

    def small(form, value, n_queries, rows, k):
        tile = choose(form, value, n_queries, rows, k)
        return tile | {"N": max(32, k), "Q": 16 if form in ("dense", "planes") else 4}

    monkeypatch.setattr(triton_scan, "choose_tile", small)
    monkeypatch.setattr(triton_scan, "PROGRAMS", 2)


def floats(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def find(scorer, block, k, mask=None, **scan):
    """The answer of `triton_scan.topk` as arrays."""
    return tuple(
        part.numpy() for part in triton_scan.topk(scorer, triton_scan.move_block(block, "cpu"), k, mask, **scan)
    )


def codes_of(layout, rows, body=None):
    """Random row codes with factors that are numbers; the first two rows are at the ends of the range."""
    codes = rng.integers(0, 256, (rows, layout.code_size), dtype=np.uint8)
    codes[:1], codes[1:2] = 0, 255
    if body is not None:
        codes[:, : layout.width] = np.ascontiguousarray(body).view(np.uint8)
    for i in range(layout.factors):
        at = layout.width + 2 * i
        codes[:, at : at + 2] = floats(rows).astype(np.float16).view(np.uint8).reshape(rows, 2)
    return codes


def case(kernel, dim, factors):
    """A scorer and the layout of its codes."""
    bias, extra = floats(Q), {"factors": factors} | ({"shift_weight": floats(Q)} if factors == 2 else {})
    width = -(-dim // 8)
    if kernel.startswith("hamming"):
        bits = np.packbits(rng.random((Q, dim)) < 0.5, axis=1, bitorder="little")
        layout = Layout("rows", width, 8, factors) if kernel == "hamming" else Layout("planes", dim, 1, factors)
        return HammingScorer(bias, bits, floats(Q), dim, **extra), layout
    if kernel == "lut4":
        return LookupScorer(bias, floats(Q, dim, 16), **extra), Layout("blocks", dim, 4, factors)
    if kernel == "lut8":
        return LookupScorer(bias, floats(Q, dim, 256), **extra), Layout("nibbles", dim, 8, factors)
    if kernel.startswith("planes"):
        bits = 3
        levels = np.sort(floats(2**bits)) if kernel == "planes" else np.linspace(-0.9, 1.4, 2**bits, dtype=np.float32)
        return PlanesScorer(bias, floats(Q, dim), levels, **extra), Layout("planes", dim, bits, factors)
    dtype = {"dense_i8": "i1", "dense_f16": "f2", "dense_bf16": "bf2", "dense_f32": "f4"}.get(kernel, "u1")
    levels = {"dense_f8": E4M3.levels / 4, "dense_levels": floats(256)}.get(kernel)
    size = {"f4": 4, "f2": 2, "bf2": 2}.get(dtype, 1)
    return DenseScorer(bias, floats(Q, dim), dtype, levels=levels, **extra), Layout("rows", dim * size, 8, factors)


def body_of(scorer, layout, rows):
    """Codes that are finite numbers, for the float types; None where any byte will do."""
    if not isinstance(scorer, DenseScorer) or scorer.dtype in ("u1", "i1"):
        return None
    values = floats(rows, scorer.queries.shape[1])
    if scorer.dtype == "bf2":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(f"<{scorer.dtype}")


def block_of(scorer, layout, rows):
    return Block.from_codes(layout, codes_of(layout, rows, body_of(scorer, layout, rows)))


def assert_same(got, expected):
    """Equal rows and scores, but where two scores are closer than float32 sums of another order can tell apart."""
    (scores, rows), (right, right_rows) = got, expected
    assert scores.shape == right.shape and rows.dtype == np.int64 and scores.dtype == np.float32
    finite = np.isfinite(right)
    assert np.array_equal(np.isfinite(scores), finite)
    assert np.array_equal(rows >= 0, finite)
    tolerance = 2e-6 * np.abs(right[finite]).max(initial=1)
    assert np.allclose(scores[finite], right[finite], rtol=0, atol=tolerance)
    close = np.zeros_like(finite)
    close[:, 1:] |= np.abs(np.diff(np.where(finite, right, 0))) <= 2 * tolerance
    close[:, :-1] |= close[:, 1:]
    assert np.array_equal(rows[~close], right_rows[~close])


KERNELS = ["hamming", "hamming blocked", "lut4", "lut8", "planes", "planes even",
           "dense_i8", "dense_f8", "dense_f16", "dense_bf16", "dense_f32", "dense_levels"]  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("rows", "dim", "factors", "masked"), [(1, 7, 2, False), (40, 19, 1, True)])
def test_every_form_gives_the_rows_and_scores_of_the_reference(kernel, rows, dim, factors, masked):
    scorer, layout = case(kernel, dim, factors)
    block = block_of(scorer, layout, rows)
    mask = pack_mask(rng.random(rows) < 0.6) if masked else None
    assert_same(find(scorer, block, 4, mask), scorer.topk(block, 4, mask))


def test_queries_beyond_a_tile_have_programs_of_their_own(monkeypatch):
    choose = triton_scan.choose_tile
    monkeypatch.setattr(triton_scan, "choose_tile", lambda *size: choose(*size) | {"Q": 2})
    scorer, layout = case("lut8", 3, 2)
    block = block_of(scorer, layout, 20)
    assert_same(find(scorer, block, 4), scorer.topk(block, 4))


@pytest.mark.parametrize("kernel", ["hamming", "lut4", "lut8", "planes", "dense_i8"])
def test_the_environment_variable_chooses_these_kernels_for_arrays(kernel, monkeypatch):
    scorer, layout = case(kernel, 9, 2)
    block = block_of(scorer, layout, 5)
    monkeypatch.setenv("RAGQ_KERNEL", "triton")
    assert_same(kernels.topk(scorer, block, 2, threads=2), scorer.topk(block, 2))


def test_select_takes_the_best_of_scores_that_are_there():
    scores = np.float32([[1, 3, 3, -np.inf, 2], [0, 0, 0, 0, 0]])
    for mask in (None, pack_mask(np.array([1, 0, 1, 1, 1], bool))):
        got, rows = triton_scan.select(scores, k=6, mask=mask)
        right, expected = topk(scores, 6, mask)
        assert np.array_equal(got, right) and np.array_equal(rows, expected)


def test_equal_scores_come_in_row_order_across_tiles_and_programs():
    bits = np.zeros((1, 1), np.uint8)
    scorer = HammingScorer(np.zeros(1, np.float32), bits, np.ones(1, np.float32), 2)
    codes = (np.arange(100, dtype=np.uint8) % 33 != 0).astype(np.uint8)[:, None]
    block = Block.from_codes(Layout("rows", 1), codes)
    scores, rows = find(scorer, block, 7)
    assert rows.tolist() == [[0, 33, 66, 99, 1, 2, 3]]
    assert scores.tolist() == [[2, 2, 2, 2, 0, 0, 0]]


def test_few_rows_no_rows_and_no_allowed_rows_are_padded():
    scorer, layout = case("lut4", 5, 0)
    block = block_of(scorer, layout, 3)
    assert_same(find(scorer, block, 6), scorer.topk(block, 6))
    for answer in (
        find(scorer, block_of(scorer, layout, 0), 2),
        find(scorer, block, 2, pack_mask(np.zeros(3, bool))),
        find(scorer, block, 2, start=3),
    ):
        assert np.array_equal(answer[1], np.full((Q, 2), -1))
        assert np.array_equal(answer[0], np.full((Q, 2), -np.inf, np.float32))


def test_k_above_what_registers_hold_is_sorted_from_all_scores():
    scorer, layout = case("lut4", 5, 1)
    block = block_of(scorer, layout, 150)
    mask = pack_mask(np.arange(150) != 7)
    assert_same(find(scorer, block, 140, mask), scorer.topk(block, 140, mask))


def test_a_range_of_rows_answers_with_the_rows_numbers_in_the_block():
    scorer, layout = case("lut8", 6, 1)
    block = block_of(scorer, layout, 100)
    mask = np.zeros(100, bool)
    mask[37:90] = True
    assert_same(find(scorer, block, 5, start=37, stop=90), scorer.topk(block, 5, pack_mask(mask)))


def test_columns_of_more_than_two_gigabytes_are_addressed_in_64_bits(tmp_path, monkeypatch):
    choose = triton_scan.choose_tile
    monkeypatch.setattr(triton_scan, "choose_tile", lambda *size: choose(*size) | {"STEP": 1024})
    dim, tail = 4096, 20
    rows = 2**31 // dim + tail
    file = np.memmap(tmp_path / "codes", np.int8, "w+", shape=(rows, dim))  # sparse: only the tail is written
    file[-tail:] = rng.integers(-128, 128, (tail, dim))
    scorer = DenseScorer(floats(Q), floats(Q, dim), "i1")
    block = Block(Layout("rows", dim), {"codes": torch.from_numpy(file.view(np.uint8))}, rows)
    scores, found = triton_scan.topk(scorer, block, 3, start=rows - tail)
    right, expected = scorer.topk(Block.from_codes(Layout("rows", dim), np.array(file[-tail:]).view(np.uint8)), 3)
    assert_same((scores.numpy(), found.numpy()), (right, expected + rows - tail))


def test_tensors_go_in_and_out_without_a_copy():
    scorer, layout = case("dense_i8", 20, 1)
    block = block_of(scorer, layout, 40)
    moved = triton_scan.move_block(block, "cpu")
    assert triton_scan.move_block(moved, "cpu").columns["codes"] is moved.columns["codes"]
    assert triton_scan.to_tensor(moved.columns["factor0"], torch.device("cpu")) is moved.columns["factor0"]
    scores, rows = triton_scan.topk(scorer, moved, 3)
    assert isinstance(scores, torch.Tensor) and isinstance(rows, torch.Tensor)
    assert_same((scores.numpy(), rows.numpy()), scorer.topk(block, 3))


@pytest.mark.parametrize(("dtype", "k"), [("i1", 2), ("f2", 200)])
def test_maxsim_sums_the_best_token_of_each_query_token(dtype, k):
    offsets, query_offsets = np.array([0, 3, 3, 36, 37, 39]), np.array([0, 2, 3])
    scorer, layout = case("dense_i8" if dtype == "i1" else "dense_f16", 12, 0)
    codes = block_of(scorer, layout, 39).columns["codes"]
    tokens = rng.random(39) < 0.8
    tokens[36] = False  # the only token of document 3
    scan = {
        "dtype": dtype, "offsets": offsets, "query_offsets": query_offsets, "k": k, "rows": 5, "bias": floats(2),
        "token_mask": pack_mask(tokens), "mask": pack_mask(np.arange(5) != 4), "scale": np.float16([1, 2, 3, 4, 5]),
    }  # fmt: skip
    assert_same(triton_scan.maxsim(codes, scorer.queries, **scan), reference.maxsim(codes, scorer.queries, **scan))


def test_a_device_scan_answers_as_the_cpu_scan_does():
    scorer, layout = case("planes", 24, 1)
    blocks = [block_of(scorer, layout, rows) for rows in (33, 0, 20)]
    masks = [pack_mask(rng.random(33) < 0.5), None, None]
    scores, rows = DeviceScan(blocks).to("cpu").search(scorer, 5, masks)
    assert_same((scores.numpy(), rows.numpy()), cpu_scan.scan(scorer, blocks, 5, masks, exact=True))
    with pytest.raises(InvalidArgumentError, match=r"Call .to"):
        DeviceScan(blocks).search(scorer, 5)


def test_a_layout_without_a_kernel_is_refused_by_name():
    scorer, _ = case("dense_i8", 8, 0)
    block = Block.from_codes(Layout("planes", 8, 2), codes_of(Layout("planes", 8, 2), 4))
    with pytest.raises(InvalidArgumentError, match=r"No Triton kernel scans DenseScorer over the layout 'planes:8x2"):
        find(scorer, block, 2)
    ragged = RaggedPlanesScorer(floats(Q), floats(Q, 8), floats(6), (8, 4))
    layout = Layout("planes", 8, 2, widths=(8, 4))
    with pytest.raises(InvalidArgumentError, match="RaggedPlanesScorer"):
        find(ragged, Block.from_codes(layout, codes_of(layout, 4)), 2)
