"""Codes sorted into lists, and the scan of some of them: each query has lists of its own.

Look-up-table codes are scanned by one C++ call for all queries, which goes through the lists where they lie. Every
other form of scorer takes `one_by_one`, which copies a query's lists side by side and scans them as a block; it is also
the reference of the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.scorers import LookupScorer, Scorer
from ragq.layouts import BLOCK_ROWS, Block
from ragq.retrievers import kernels
from ragq.retrievers.kernels import cpu
from ragq.retrievers.structures.base import Floats, Found, Prepared
from ragq.select import pack_mask

__all__ = ["NO_ROW", "Lists", "one_by_one", "scan_lists"]

NO_ROW = np.uint32(0xFFFFFFFF)  # at the places that fill a list up
IN_PLACE = 4  # lists are scanned where they lie when they hold more than this part of the places
TIES = 8  # rows beyond k that are looked at, since places do not lie in row order
TABLES = {"blocks": 16, "nibbles": 256}  # entries of a table, by the layout of the codes


@dataclass(frozen=True)
class Lists:
    """Codes sorted into lists.

    Attributes
    ----------
    block : Block
        The codes, one a place.
    rows : ndarray of uint32, shape (places,)
        Row of each place; `NO_ROW` where there is none.
    offsets : ndarray of int64, shape (nlist + 1,)
        Where the lists begin, multiples of 32.
    """

    block: Block
    rows: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    @property
    def nlist(self) -> int:
        """Lists."""
        return len(self.offsets) - 1

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """The places that hold a row, ascending."""
        return np.flatnonzero(self.rows != NO_ROW)

    def bits(self, allowed: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return the bitset of places whose row is allowed."""
        places = np.zeros(len(self.rows), bool)
        places[self.places] = allowed[self.rows[self.places]]
        return pack_mask(places)

    def lists_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the list of each of some rows."""
        place = np.empty(len(self.places), np.int64)
        place[self.rows[self.places]] = self.places
        return np.searchsorted(self.offsets, place[rows], "right") - 1

    def blocks(self, lists: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the 32-row blocks of some lists, in their order: the best first, for a high bar."""
        first = self.offsets[lists] // BLOCK_ROWS
        counts = self.offsets[lists + 1] // BLOCK_ROWS - first
        return np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())

    def copied(self, blocks: NDArray[np.int64]) -> Block:
        """Return some 32-row blocks side by side: copying them costs less than passing over all the others."""
        even = blocks if len(blocks) % 2 == 0 else np.append(blocks, blocks[-1])  # columns are padded to 64 rows
        columns = {
            name: column.reshape(-1, BLOCK_ROWS * column.shape[1])[even].reshape(-1, column.shape[1])
            for name, column in self.block.columns.items()
        }
        return Block(self.block.layout, columns, len(blocks) * BLOCK_ROWS)


def scan_lists(
    prepared: Prepared,
    lists: Lists,
    k: int,
    probed: NDArray[np.int64],
    bits: NDArray[np.uint8],
    threads: int,
    candidates: bool = False,
) -> Found:
    """Return the best `k` rows of some lists for each query.

    Parameters
    ----------
    prepared : Prepared
    lists : Lists
    k : int
    probed : ndarray of int64, shape (n_queries, nprobe)
        The lists of each query, the most promising first.
    bits : ndarray of uint8
        Bitset of the places that may be returned, see `Lists.bits`.
    threads : int
    candidates : bool
        The caller scores the rows by finer codes: any order will do, and tables may be rounded.

    Returns
    -------
    scores : ndarray of float32, shape (n_queries, k)
        Descending, padded with -inf.
    rows : ndarray of int64, shape (n_queries, k)
        Rows (not places), padded with -1; equal scores in row order.
    """
    scorer, block = prepared.all, lists.block
    tables = TABLES.get(block.layout.kind)
    native = kernels.implementation() in kernels.SETS
    if not (native and isinstance(scorer, LookupScorer) and scorer.tables.shape[2] == tables):
        return one_by_one(prepared, lists, k, probed, bits, threads)
    return cpu.lut_lists(
        kernels.implementation(),
        [block.columns[name] for name in ("codes", "high", "low") if name in block.columns],
        scorer.tables,
        lists.offsets,
        lists.rows,
        probed,
        exact=block.rows < kernels.MARGIN_ROWS,
        candidates=candidates,
        **kernels.factors_of(scorer, block),
        k=k,
        rows=block.rows,
        bias=scorer.bias,
        mask=bits,
        threads=threads,
    )


def one_by_one(
    prepared: Prepared, lists: Lists, k: int, probed: NDArray[np.int64], bits: NDArray[np.uint8], threads: int
) -> Found:
    """Do `scan_lists` a query after the other, by the kernels of whole blocks."""
    scores = np.full((len(probed), k), -np.inf, np.float32)
    rows = np.full((len(probed), k), -1, np.int64)
    for i, chosen in enumerate(probed):
        best = one_query(prepared.one(i), lists, k, chosen, bits, threads)
        scores[i, : len(best[0])], rows[i, : len(best[1])] = best
    return scores, rows


def one_query(
    scorer: Scorer, lists: Lists, k: int, chosen: NDArray[np.int64], bits: NDArray[np.uint8], threads: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the best rows of some lists for one query, without padding."""
    total = lists.block.rows // BLOCK_ROWS
    blocks = lists.blocks(chosen)
    if len(blocks) > total // IN_PLACE:
        inside = np.zeros(total, bool)
        inside[blocks] = True
        blocks, part = np.arange(total), lists.block
        bits = np.where(inside[:, None], bits.reshape(-1, BLOCK_ROWS // 8), np.uint8(0)).ravel()
    else:
        part, bits = lists.copied(blocks), bits.reshape(-1, BLOCK_ROWS // 8)[blocks].ravel()
    n = k + TIES
    while True:
        scores, found = (result[0] for result in kernels.topk(scorer, part, n, bits, threads=threads))
        scores, found = scores[found >= 0], found[found >= 0]
        if len(scores) < n or scores[k - 1] > scores[-1]:
            break
        n *= 4  # as many rows as that score the same: the lowest of them are wanted
    rows = lists.rows[blocks[found // BLOCK_ROWS] * BLOCK_ROWS + found % BLOCK_ROWS].astype(np.int64)
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]
