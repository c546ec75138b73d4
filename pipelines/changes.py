"""Changes to an index that exists: adding documents and compacting shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ragq.manifest import ShardEntry
from ragq.pipelines.documents import metadata_of
from ragq.pipelines.feeds import EMBED_ROWS, ReadyFeed, check_rows
from ragq.pipelines.fitting import SHARD_BYTES, encode, is_small
from ragq.pipelines.progress import Progress
from ragq.pipelines.readers import Reader, open_embeddings, read
from ragq.pipelines.readers.tokens import open_tokens
from ragq.pipelines.token_feeds import ReadyTokenFeed, batch_passages, check_tokens
from ragq.shards import DOCS_SCHEMA, Shard, ShardWriter
from ragq.transaction import Transaction
from ragq.types import Document, Passage

if TYPE_CHECKING:
    from ragq.pipelines.index import Index

__all__ = ["Changes", "add_documents", "compact_shards"]

COPIED_BYTES = 8 << 20  # of codes that a compaction has in its hands


@dataclass(frozen=True)
class Changes:
    """What an add did.

    Attributes
    ----------
    added : int
        Documents that are now in the index because of it.
    replaced : int
        Older documents that they replaced.
    duplicates : int
        Documents of the same call that a later one with the same id replaced.
    skipped : dict of str to int
        Records that were left out, by reason.
    """

    added: int
    replaced: int
    duplicates: int
    skipped: dict[str, int]


class ShardSeries:
    """Write passages into as many shards as they fill; a document stays in one shard."""

    def __init__(self, transaction: Transaction, shard_rows: int) -> None:
        self.transaction, self.shard_rows = transaction, shard_rows
        self.entries: list[ShardEntry] = []
        self._writer: ShardWriter | None = None

    def add(self, passages: list[Passage], codes: Any) -> None:
        """Append passages with their codes."""
        start = 0
        while start < len(passages):
            if self._full and passages[start].number == 0:
                self._finish()
            if self._writer is None:
                self._writer = self.transaction.new_shard()
            room = max(1, self.shard_rows - self._writer.rows)
            stop = min(start + room, len(passages))
            while stop < len(passages) and passages[stop].number != 0:
                stop += 1
            self._writer.add(passages[start:stop], codes[start:stop])
            start = stop

    @property
    def _full(self) -> bool:
        writer = self._writer
        return writer is not None and (writer.rows >= self.shard_rows or writer.nbytes >= SHARD_BYTES)

    def _finish(self) -> None:
        assert self._writer is not None
        with self._writer:
            self.entries.append(self._writer.finish())
        self._writer = None

    def finish(self) -> list[ShardEntry]:
        """Close the last shard and return them all."""
        if self._writer is not None:
            self._finish()
        return self.entries

    def __enter__(self) -> ShardSeries:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)


def add_documents(
    index: Index,
    transaction: Transaction,
    documents: Any,
    embeddings: Any,
    *,
    chunk: bool,
    progress: Progress,
) -> Changes:
    """Do `Index.add` within a transaction."""
    if isinstance(documents, (list, tuple)) and not documents:
        return Changes(0, 0, 0, {})
    reader = read(documents, aligned=embeddings is not None)
    pairs = embed_new(index, reader, chunk) if embeddings is None else pair_ready(index, reader, embeddings)
    done = 0
    with ShardSeries(transaction, index.shard_rows) as series:
        for passages, x in pairs:
            series.add(passages, encode(index.compressor, x, index.manifest.normalize))
            done += len(passages)
            progress("index", done, None)
        entries = series.finish()
    for entry in entries:
        transaction.add(entry)
    replaced, duplicates = transaction.commit() if entries else (0, 0)
    index.refresh()
    added = sum(entry.documents for entry in entries) - duplicates
    return Changes(added, replaced, duplicates, dict(reader.counts.skipped))


def embed_new(index: Index, documents: Iterable[Document], chunk: bool) -> Iterator[tuple[list[Passage], Any]]:
    """Yield the passages of new documents with embeddings by the index's own model."""
    from ragq.pipelines.chunking import Splitter

    embedder, chunking = index.embedder, index.manifest.chunking
    limit = chunking.get("tokens") if chunk else 0
    splitter = Splitter(embedder, limit, chunking.get("overlap"))
    stream = (passage for document in documents for passage in splitter.split(document))
    tokens = index.manifest.multi_vector is not None
    size, check = (batch_passages(embedder), check_tokens) if tokens else (EMBED_ROWS, check_rows)
    while batch := list(islice(stream, size)):
        yield batch, check(embedder.encode_documents([p.embedded_text for p in batch]), batch, index.manifest.dim)


def pair_ready(index: Index, reader: Reader, embeddings: Any) -> Iterator[tuple[list[Passage], Any]]:
    """Yield new documents with the embeddings that came with them."""
    feed: ReadyFeed
    if index.manifest.multi_vector is None:
        opened = open_embeddings(embeddings, dim=index.manifest.dim)
        feed = ReadyFeed(opened, reader, max(1, len(opened)))
    else:
        ready = open_tokens(embeddings, dim=index.manifest.dim)
        feed = ReadyTokenFeed(ready, reader, max(1, len(ready)))
    yield from feed.read(0, feed.rows)


def compact_shards(index: Index, transaction: Transaction, progress: Progress) -> bool:
    """Do `Index.compact` within a transaction: rewrite runs of neighbours that have deletes or are small."""
    target = index.shard_rows
    runs: list[tuple[bool, list[ShardEntry]]] = []
    for entry in transaction.manifest.shards:
        dirty = entry.deletes is not None or is_small(entry, target)
        if dirty and runs and runs[-1][0]:
            runs[-1][1].append(entry)
        else:
            runs.append((dirty, [entry]))
    runs = [(dirty and (len(run) > 1 or run[0].deletes is not None), run) for dirty, run in runs]
    if not any(dirty for dirty, _ in runs):
        return False
    shards: list[ShardEntry] = []
    done, total = 0, sum(entry.rows for dirty, run in runs if dirty for entry in run)
    for dirty, run in runs:
        if not dirty:
            shards.extend(run)
            continue
        with ShardSeries(transaction, target) as series:
            for entry in run:
                for passages, codes in live_passages(transaction.shard(entry)):
                    series.add(passages, codes)
                    progress("compact", done := done + len(passages), total)
            shards.extend(series.finish())
    transaction.manifest = replace(transaction.manifest, shards=tuple(shards))
    transaction.commit()
    index.refresh()
    return True


def live_passages(shard: Shard) -> Iterator[tuple[list[Passage], Any]]:
    """Yield what is not deleted of a shard, with its codes."""
    start = 0
    step = max(1, COPIED_BYTES * shard.rows // max(1, shard.entry.codes.size))
    for batch in shard.docs_batches(DOCS_SCHEMA.names):
        stop = start + batch.num_rows
        kept = np.ones(batch.num_rows, bool) if shard.deleted is None else ~shard.deleted[start:stop]
        rows = [row for row, keep in zip(batch.to_pylist(), kept, strict=True) if keep]
        passages = [
            Passage(r["id"], r["passage"], r["text"], r["title"], metadata_of(r, shard.folder), r["source"], r["start"])
            for r in rows
        ]
        before = np.concatenate([[0], np.cumsum(kept)])
        for first in range(0, batch.num_rows, step):
            last = min(first + step, batch.num_rows)
            some = passages[before[first] : before[last]]
            yield some, shard.codes(start + first, start + last)[kept[first:last]]
        start = stop
