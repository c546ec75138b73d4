"""Codebook use is counted as the definition says."""

from __future__ import annotations

import numpy as np
import pytest

from ragq.compressors import from_spec
from ragq.compressors.usage import codebook_use
from ragq.layouts import Block, Layout


@pytest.mark.parametrize(("layout", "bits"), [(Layout("nibbles", 3), 8), (Layout("blocks", 3, 4), 4)])
def test_uniform_codes_use_everything_and_one_code_uses_one(layout: Layout, bits: int) -> None:
    codes = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, layout.code_size))
    if bits == 4:
        codes[:, -1] &= 15  # the last byte holds one code
    even = codebook_use(Block.from_codes(layout, codes))
    assert even == {"used": 1.0, "entropy_bits": float(bits)}
    same = codebook_use(Block.from_codes(layout, np.zeros_like(codes)))
    assert same == {"used": round(1 / 2**bits, 4), "entropy_bits": 0.0}


def test_other_codes_have_no_codebook() -> None:
    x = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    codec = from_spec("INT8").fit(x)
    assert codebook_use(Block.from_codes(codec.layout, codec.encode(x))) is None
