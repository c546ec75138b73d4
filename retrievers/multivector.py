"""Late interaction over coded tokens: candidates from a first stage, then MaxSim.

The first stage, if there is one, is scanned as any codec; the best `candidates` documents are scored by MaxSim over
their coded vectors: ``sum over the query's tokens of max over the document's vectors of <q, x>``. Without a first stage
every document is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors.multivector import MultiVectorCompressor
from ragq.errors import InvalidArgumentError
from ragq.layouts import Block
from ragq.retrievers.maxsim import QueryTokens
from ragq.retrievers.scan import default_threads, scan
from ragq.select import merge_topk, topk, unpack_mask
from ragq.tokens import MultiVectorCodes, TokenEmbeddings

__all__ = ["MultiVectorBlock", "search"]

Bitset = NDArray[np.uint8]
Result = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class MultiVectorBlock:
    """The coded documents of a shard, usually memory-mapped.

    Attributes
    ----------
    tokens : Block
        Codes of the vectors of all documents, one after the other.
    offsets : ndarray of int64, shape (n + 1,)
        Document `d` has the rows ``offsets[d]`` to ``offsets[d + 1]`` of `tokens`.
    first : Block, optional
        First-stage codes, a row a document.
    """

    tokens: Block
    offsets: NDArray[np.int64]
    first: Block | None = None

    @classmethod
    def from_codes(cls, compressor: MultiVectorCompressor, codes: MultiVectorCodes) -> MultiVectorBlock:
        """Pack codes in memory."""
        codec = compressor.first_codec
        first = None if codec is None or codes.first is None else Block.from_codes(codec.layout, codes.first)
        return cls(Block.from_codes(compressor.token_codec.layout, codes.codes), codes.offsets, first)

    @property
    def rows(self) -> int:
        """Documents."""
        return len(self.offsets) - 1


def search(
    compressor: MultiVectorCompressor,
    queries: TokenEmbeddings,
    blocks: Sequence[MultiVectorBlock],
    k: int,
    masks: Sequence[Bitset | None] | None = None,
    *,
    candidates: int = 100,
    threads: int | None = None,
) -> Result:
    """Return the best `k` documents of all blocks for each query.

    Parameters
    ----------
    compressor : MultiVectorCompressor
    queries : TokenEmbeddings
        A query without tokens finds nothing.
    blocks : sequence of MultiVectorBlock
    k : int
    masks : sequence of (ndarray of uint8 or None), optional
        A document bitset a block (see `ragq.select.pack_mask`), 1 = may be returned.
    candidates : int
        Documents that the first stage hands to MaxSim, at least `k`.
    threads : int, optional
        By default one a processor.

    Returns
    -------
    scores : ndarray of float32, shape (n_queries, k)
        MaxSim, descending, padded with -inf.
    rows : ndarray of int64, shape (n_queries, k)
        Document numbers over the concatenation of the blocks, padded with -1; equal scores in document order. A
        document without vectors is never returned.

    Raises
    ------
    InvalidArgumentError
        A negative `k`, `candidates` below 1, or not one mask a block.
    """
    check_int(k, "k", 0)
    wide = max(check_int(candidates, "candidates", 1), k)
    threads = default_threads() if threads is None else check_int(threads, "threads", 1)
    if masks is not None and len(masks) != len(blocks):
        raise InvalidArgumentError(f"'masks' must have one entry a block. Got {len(masks)} for {len(blocks)} blocks.")
    masks = [_with_vectors(block, mask) for block, mask in zip(blocks, masks or [None] * len(blocks), strict=True)]
    best = topk(np.empty((len(queries), 0), np.float32), k)
    if not len(queries) or not blocks:
        return best
    tokens = QueryTokens.prepare(compressor.token_codec, compressor.prepare_queries(queries))
    if compressor.first is None:
        return _score_all(tokens, blocks, k, masks, threads)
    first = [block.first for block in blocks if block.first is not None]
    if len(first) != len(blocks):
        raise InvalidArgumentError(f"{compressor} needs first-stage codes in every block. Some blocks have none.")
    _, found = scan(compressor.first.scorer(queries), first, wide, masks, threads)
    return _score_found(tokens, blocks, k, found, threads)


def _with_vectors(block: MultiVectorBlock, mask: Bitset | None) -> Bitset | None:
    """Take the documents without vectors out of a mask."""
    counts = np.diff(block.offsets)
    if counts.all():
        return mask
    live = counts > 0
    return np.packbits(live if mask is None else live & unpack_mask(mask, block.rows), bitorder="little")


def _score_all(
    queries: QueryTokens, blocks: Sequence[MultiVectorBlock], k: int, masks: Sequence[Bitset | None], threads: int
) -> Result:
    """Score every document."""
    best, first = topk(np.empty((queries.n_queries, 0), np.float32), k), 0
    for block, mask in zip(blocks, masks, strict=True):
        scores, rows = queries.all(block.tokens, block.offsets, k, mask, threads)
        best = merge_topk([best, (scores, np.where(rows >= 0, rows + first, -1))], k)
        first += block.rows
    return best


def _score_found(
    queries: QueryTokens, blocks: Sequence[MultiVectorBlock], k: int, found: NDArray[np.int64], threads: int
) -> Result:
    """Score each query's candidates, given as document numbers over all blocks, -1 where there are fewer."""
    candidates = np.sort(found, axis=1)  # in document order, which settles ties
    best, first = topk(np.empty((queries.n_queries, 0), np.float32), k), 0
    for block in blocks:
        here = np.where((candidates >= first) & (candidates < first + block.rows), candidates - first, -1)
        if (here >= 0).any():
            scores, rows = queries.chosen(block.tokens, block.offsets, here, k, threads)
            best = merge_topk([best, (scores, np.where(rows >= 0, rows + first, -1))], k)
        first += block.rows
    return best
