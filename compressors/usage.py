"""How well a codebook is used: a codeword that no vector has is a wasted one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ragq.layouts import Block

__all__ = ["codebook_use"]

ROWS = 65_536  # enough to see a codeword of 256 that one row in a thousand has


def codebook_use(block: Block) -> dict[str, float] | None:
    """Return how the codewords of a lookup code are used, from its first rows.

    Parameters
    ----------
    block : Block
        Codes in the layout ``nibbles`` (256 codewords) or ``blocks`` (16).

    Returns
    -------
    dict or None
        ``used``, the share of codewords that occur, and ``entropy_bits``, the mean entropy of a code, at most its bits;
        means over the sub-quantizers. None for other layouts.
    """
    layout, rows = block.layout, min(block.rows, ROWS)
    if layout.kind not in ("nibbles", "blocks") or rows == 0:
        return None
    codes: NDArray[np.uint8] = block.codes(0, rows)[:, : layout.width]
    if layout.kind == "blocks":
        codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(rows, -1)[:, : layout.count]
    size = 2**layout.bits
    counts = np.stack([np.bincount(column, minlength=size) for column in codes.T])
    share = counts / rows
    entropy = -(share * np.log2(share, out=np.zeros_like(share), where=share > 0)).sum(axis=1)
    return {"used": round(float((counts > 0).mean()), 4), "entropy_bits": round(float(entropy.mean()), 3)}
