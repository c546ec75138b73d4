"""`Source`: the rows that a structure is built from, in their own order or in one that their ids settle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import Compressor
from ragq.retrievers.structures.base import Floats
from ragq.retrievers.structures.chosen import codes_at
from ragq.shards import Shard

__all__ = ["Source"]

Codes = NDArray[np.uint8]
Rows = NDArray[np.int64]

CHUNK_ROWS = 16_384
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # odd, so that the passages of a document have hashes of their own
DELETED = np.uint64(1 << 63)


class Source:
    """Codes and decoded embeddings, a chunk at a time.

    What a structure draws at random (samples, the order of insertion) it draws by the hashes of ids: the same passages
    then give the same structure, wherever among the shards they lie, and a compacted index one as good as a new one.

    Parameters
    ----------
    shards : sequence of Shard
    compressor : Compressor
    """

    def __init__(self, shards: Sequence[Shard], compressor: Compressor) -> None:
        self.shards, self.compressor = shards, compressor
        self.starts = np.concatenate([[0], np.cumsum([shard.rows for shard in shards])]).astype(np.int64)

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.starts[-1])

    def codes(self) -> Iterator[tuple[int, Codes]]:
        """Yield the number of the first row of each chunk with its row codes."""
        for first, shard in zip(self.starts, self.shards, strict=False):
            for start in range(0, shard.rows, CHUNK_ROWS):
                yield int(first) + start, shard.block.codes(start, min(start + CHUNK_ROWS, shard.rows))

    def shuffled(self, seed: int) -> Iterator[tuple[int, Rows, Floats]]:
        """Yield the place in `order` at which each chunk begins, its rows and their decoded embeddings."""
        order = self.order(seed)
        for start in range(0, self.rows, CHUNK_ROWS):
            rows = order[start : start + CHUNK_ROWS]
            yield start, rows, self.decoded(rows)

    def sample(self, n: int, seed: int, of: Callable[[Floats], Floats] = lambda x: x) -> Floats:
        """Return `of` the decoded embeddings of the first `n` rows of `order`."""
        chosen = self.order(seed)[:n]
        parts = [chosen[start : start + CHUNK_ROWS] for start in range(0, len(chosen), CHUNK_ROWS)]
        return np.concatenate([of(self.decoded(part)) for part in parts])

    def decoded(self, rows: Rows) -> Floats:
        """Return the decoded embeddings of some rows, (len(rows), dim)."""
        codes = np.empty((len(rows), self.compressor.code_size), np.uint8)
        owner = np.searchsorted(self.starts, rows, "right") - 1
        for i in np.unique(owner):
            own = owner == i
            codes[own] = codes_at(self.shards[i].block, rows[own] - self.starts[i])
        return self.compressor.decode(codes)

    def order(self, seed: int) -> Rows:
        """Return all rows in an order that only `seed` and the ids of passages settle; deleted ones come last."""
        factor = np.random.default_rng(seed).integers(1 << 64, dtype=np.uint64) | np.uint64(1)
        parts = []
        for shard in self.shards:
            hashes, first = shard.ids
            by_row = np.argsort(first)
            starts, counts = shard.documents[:-1], np.diff(shard.documents)
            numbers = np.arange(shard.rows) - np.repeat(starts, counts)
            key = (np.repeat(hashes[by_row], counts) + numbers.astype(np.uint64) * GOLDEN) * factor >> np.uint64(1)
            parts.append(key if shard.deleted is None else key | np.where(shard.deleted, DELETED, np.uint64(0)))
        return np.argsort(np.concatenate(parts), kind="stable")
