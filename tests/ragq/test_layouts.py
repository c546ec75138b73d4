"""Packing loses nothing, and every column is as wide and as long as the layout says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragq.errors import InvalidArgumentError
from ragq.layouts import BLOCK_ROWS, ROW_PADDING, Block, Layout, from_blocks, to_blocks

LAYOUTS = st.builds(
    lambda kind, count, bits, factors: Layout(kind, count, {"planes": bits, "blocks": 4}.get(kind, 8), factors),
    st.sampled_from(["rows", "blocks", "nibbles", "planes"]),
    st.integers(1, 70),
    st.integers(1, 8),
    st.integers(0, 2),
)


@settings(max_examples=100, deadline=None)
@given(layout=LAYOUTS, rows=st.integers(0, 200), seed=st.integers(0, 99))
def test_round_trip(layout, rows, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, layout.code_size), dtype=np.uint8)
    block = Block.from_codes(layout, codes)
    for name, width in layout.columns.items():
        column = block.columns[name]
        assert column.dtype == np.uint8 and column.flags.c_contiguous
        assert column.shape == (-(-rows // ROW_PADDING) * ROW_PADDING, width)
    np.testing.assert_array_equal(block.codes(), codes)
    start, stop = sorted(int(i) for i in rng.integers(0, rows + 1, 2))
    np.testing.assert_array_equal(block.codes(start, stop), codes[start:stop])
    assert Layout.parse(str(layout)) == layout


def test_blocks_put_a_pair_of_codes_of_32_rows_side_by_side():
    nibbles = np.random.default_rng(0).integers(0, 16, (64, 5), dtype=np.uint8)
    blocks = to_blocks(nibbles).reshape(2, 3, BLOCK_ROWS)
    assert blocks[1, 1, 7] == nibbles[39, 2] | nibbles[39, 3] << 4
    assert blocks[1, 2, 7] == nibbles[39, 4]
    np.testing.assert_array_equal(from_blocks(to_blocks(nibbles), 5), nibbles)


def test_the_high_nibbles_are_a_4_bit_code_of_their_own():
    codes = np.random.default_rng(0).integers(0, 256, (64, 6), dtype=np.uint8)
    high = Layout("nibbles", 6).pack(codes)["high"]
    np.testing.assert_array_equal(from_blocks(high, 6), codes >> 4)


@pytest.mark.parametrize("text", ["", "rows", "heap:3x8+0", "rows:-1x8+0", "rows:3x8+0 "])
def test_unknown_layouts_are_refused(text):
    with pytest.raises(InvalidArgumentError, match="Unknown code layout"):
        Layout.parse(text)


@pytest.mark.parametrize("text", ["rows:6x8+1", "blocks:7x4+0", "nibbles:5x8+2", "planes:9x3+1", "rows:6x8+0~5"])
def test_columns_start_at_a_cache_line(text: str) -> None:
    layout = Layout.parse(text)
    for n in (1, 64, 999):
        for column in layout.pack(np.zeros((n, layout.code_size), np.uint8)).values():
            assert column.ctypes.data % 64 == 0 and column.flags.c_contiguous
