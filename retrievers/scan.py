"""The exhaustive retriever: every block of every shard, by the fastest kernel that fits the scorer.

Blocks are scanned one after the other, each by all threads, since a block is large next to what a thread costs; a pool
that outlives the call would not survive a fork. Row numbers of the answer run over the concatenation of the blocks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors.scorers import Scorer
from ragq.errors import InvalidArgumentError
from ragq.layouts import Block
from ragq.retrievers import kernels
from ragq.select import merge_topk, topk

__all__ = ["default_threads", "scan"]

Bitset = NDArray[np.uint8]


def default_threads() -> int:
    """Return how many threads a scan uses when the caller does not say: one a processor that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def scan(
    scorer: Scorer,
    blocks: Sequence[Block],
    k: int,
    masks: Sequence[Bitset | None] | None = None,
    threads: int | None = None,
    *,
    exact: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the best `k` rows of all blocks for each query.

    Parameters
    ----------
    scorer : Scorer
        The prepared queries.
    blocks : sequence of Block
        Codes in kernel layout, usually memory-mapped; scanned in place.
    k : int
    masks : sequence of (ndarray of uint8 or None), optional
        A row bitset a block (see `ragq.select.pack_mask`), 1 = may be returned; None lets all rows through.
    threads : int, optional
        Threads of each block's scan; by default one a processor.
    exact : bool
        Score every row that could still enter the top k, also where the kernel's error bound says that it practically
        cannot; see `ragq.retrievers.kernels.topk`.

    Returns
    -------
    scores : ndarray of float32, shape (n_queries, k)
        Descending, padded with -inf.
    rows : ndarray of int64, shape (n_queries, k)
        Row numbers over the concatenation of the blocks, padded with -1; equal scores in row order.

    Raises
    ------
    InvalidArgumentError
        A negative `k`, or not one mask a block.
    """
    check_int(k, "k", 0)
    threads = default_threads() if threads is None else check_int(threads, "threads", 1)
    if masks is None:
        masks = [None] * len(blocks)
    elif len(masks) != len(blocks):
        raise InvalidArgumentError(f"'masks' must have one entry a block. Got {len(masks)} for {len(blocks)} blocks.")
    best = topk(np.empty((scorer.n_queries, 0), np.float32), k)
    first = 0
    for block, mask in zip(blocks, masks, strict=True):
        above = best[0][:, -1] if k else None  # what a row of a later block has to beat
        scores, rows = kernels.topk(scorer, block, k, mask, threads=threads, exact=exact, above=above)
        best = merge_topk([best, (scores, np.where(rows >= 0, rows + first, -1))], k)
        first += block.rows
    return best
