"""Kernels: the inner loops of a scan, one signature with several implementations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.scorers import Scorer
from ragq.layouts import Block

__all__ = ["topk"]


def topk(
    scorer: Scorer,
    block: Block,
    k: int,
    mask: NDArray[np.uint8] | None = None,
    *,
    threads: int = 1,
    exact: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the best `k` rows of a block for each query, by the fastest kernel for the scorer's form."""
    return scorer.topk(block, k, mask)
