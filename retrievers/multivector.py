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
from ragq.retrievers import kernels
from ragq.retrievers.scan import default_threads, scan
from ragq.select import merge_topk, topk, unpack_mask
from ragq.tokens import MultiVectorCodes, TokenEmbeddings, run_rows

__all__ = ["MultiVectorBlock", "search"]

Bitset = NDArray[np.uint8]
Result = tuple[NDArray[np.float32], NDArray[np.int64]]
SCAN_VECTORS = 1 << 16  # decoded at once when every document is scored


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
    vectors = compressor.prepare_queries(queries)
    if compressor.first is None:
        return _score_all(compressor, vectors, blocks, k, masks, threads)
    first = [block.first for block in blocks if block.first is not None]
    if len(first) != len(blocks):
        raise InvalidArgumentError(f"{compressor} needs first-stage codes in every block. Some blocks have none.")
    _, found = scan(compressor.first.scorer(queries), first, wide, masks, threads)
    return _score_found(compressor, vectors, blocks, k, found, threads)


def _with_vectors(block: MultiVectorBlock, mask: Bitset | None) -> Bitset | None:
    """Take the documents without vectors out of a mask."""
    counts = np.diff(block.offsets)
    if counts.all():
        return mask
    live = counts > 0
    return np.packbits(live if mask is None else live & unpack_mask(mask, block.rows), bitorder="little")


def _maxsim(
    queries: TokenEmbeddings,
    values: NDArray[np.float32],
    offsets: NDArray[np.int64],
    k: int,
    threads: int,
    mask: Bitset | None = None,
) -> Result:
    """Run the kernel over decoded vectors; a query without tokens finds nothing."""
    scores, rows = kernels.maxsim(
        values.view(np.uint8).reshape(len(values), -1),
        queries.values,
        offsets=offsets,
        query_offsets=queries.offsets,
        dtype="f4",
        k=k,
        rows=len(offsets) - 1,
        mask=mask,
        threads=threads,
    )
    empty = queries.counts == 0
    return np.where(empty[:, None], np.float32(-np.inf), scores), np.where(empty[:, None], -1, rows)


def _score_all(
    compressor: MultiVectorCompressor,
    queries: TokenEmbeddings,
    blocks: Sequence[MultiVectorBlock],
    k: int,
    masks: Sequence[Bitset | None],
    threads: int,
) -> Result:
    """Score every document, some thousand vectors at a time."""
    best, first = topk(np.empty((len(queries), 0), np.float32), k), 0
    for block, mask in zip(blocks, masks, strict=True):
        start = 0
        while start < block.rows:
            stop = int(np.searchsorted(block.offsets, block.offsets[start] + SCAN_VECTORS, "right")) - 1
            stop = min(max(stop, start + 8) // 8 * 8, block.rows) if stop < block.rows else block.rows
            part = block.offsets[start : stop + 1]
            values = compressor.token_codec.decode(block.tokens.codes(int(part[0]), int(part[-1])))
            bits = None if mask is None else mask[start // 8 : -(-stop // 8)]
            scores, rows = _maxsim(queries, values, part - part[0], k, threads, bits)
            best = merge_topk([best, (scores, np.where(rows >= 0, rows + first + start, -1))], k)
            start = stop
        first += block.rows
    return best


def _score_found(
    compressor: MultiVectorCompressor,
    queries: TokenEmbeddings,
    blocks: Sequence[MultiVectorBlock],
    k: int,
    found: NDArray[np.int64],
    threads: int,
) -> Result:
    """Score each query's candidates, given as document numbers over all blocks, -1 where there are fewer."""
    scores = np.full((len(queries), k), -np.inf, np.float32)
    best = np.full((len(queries), k), -1, np.int64)
    ends = np.cumsum([block.rows for block in blocks])
    for query, candidates in enumerate(found):
        documents = np.sort(candidates[candidates >= 0])  # in document order, which settles ties
        cuts = np.searchsorted(documents, ends)
        codes, counts, start = [], [], 0
        for block, end, stop in zip(blocks, ends, cuts, strict=True):
            rows, offsets = run_rows(block.offsets, documents[start:stop] - (end - block.rows))
            codes.append(_rows_of(block.tokens, rows))
            counts.append(np.diff(offsets))
            start = stop
        values = compressor.token_codec.decode(np.concatenate(codes))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        scores[query], order = (part[0] for part in _maxsim(queries[query : query + 1], values, offsets, k, threads))
        best[query, order >= 0] = documents[order[order >= 0]]
    return scores, best


def _rows_of(block: Block, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the row codes of some rows, ascending."""
    if block.layout.kind == "rows":
        parts = [block.columns["codes"][rows]]
        parts += [block.columns[f"factor{i}"][rows] for i in range(block.layout.factors)]
        parts += [block.columns["fine"][rows]] if block.layout.fine else []
        return np.concatenate(parts, axis=1)
    return block.codes()[rows]
