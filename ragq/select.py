"""Top-k selection with one tie rule everywhere: higher score first, then the row that was inserted first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["live_rows", "merge_topk", "pack_mask", "topk", "unpack_mask"]


def pack_mask(rows: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack booleans into a row bitset: bit `i % 8` of byte `i // 8` is row `i`, 1 = may be returned."""
    return np.packbits(rows, bitorder="little")


def unpack_mask(mask: NDArray[np.uint8], n: int) -> NDArray[np.bool_]:
    """Unpack a row bitset of `n` rows."""
    return np.unpackbits(mask, count=n, bitorder="little").astype(bool)


def live_rows(mask: NDArray[np.uint8] | None, n: int) -> int:
    """Count the rows that a bitset lets through; `None` lets all `n` through."""
    if mask is None:
        return n
    whole, rest = divmod(n, 8)
    count = int(np.bitwise_count(mask[:whole]).sum())
    return count + (int(mask[whole]) & (1 << rest) - 1).bit_count() if rest else count


def topk(
    scores: NDArray[np.float32], k: int, mask: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the `k` best rows of each query.

    Parameters
    ----------
    scores : ndarray of float32, shape (q, n)
        Higher is better; a row that scores -inf is never returned.
    k : int
        How many; fewer rows are returned when fewer qualify.
    mask : ndarray of uint8, optional
        Row bitset (see `pack_mask`).

    Returns
    -------
    scores : ndarray of float32, shape (q, k)
        Descending, padded with -inf.
    rows : ndarray of int64, shape (q, k)
        Row numbers, padded with -1; equal scores in row order.
    """
    q, n = scores.shape
    best = np.full((q, k), -np.inf, np.float32)
    rows = np.full((q, k), -1, np.int64)
    if n == 0 or k == 0:
        return best, rows
    if mask is not None:
        scores = np.where(unpack_mask(mask, n), scores, np.float32(-np.inf))
    for i, row in enumerate(scores):
        if k < n:  # every row that ties with the k-th must compete, or the tie rule would depend on the partition
            kth = np.partition(row, n - k)[n - k]
            candidates = np.flatnonzero(row >= kth)
        else:
            candidates = np.arange(n)
        order = candidates[np.argsort(-row[candidates], kind="stable")[:k]]
        order = order[row[order] > -np.inf]
        best[i, : order.size], rows[i, : order.size] = row[order], order
    return best, rows


def merge_topk(
    parts: list[tuple[NDArray[np.float32], NDArray[np.int64]]], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Merge the top-k of parts given in insertion order, their rows already numbered over the whole.

    Ties keep the order of the parts, and within a part its own order: the same rule as `topk`.
    """
    scores = np.concatenate([s for s, _ in parts], axis=1)
    rows = np.concatenate([r for _, r in parts], axis=1)
    best, position = topk(scores, k)
    merged = np.take_along_axis(rows, np.maximum(position, 0), axis=1)
    return best, np.where(position >= 0, merged, -1)
