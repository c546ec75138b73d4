"""The local engine: everything in this process, one shard after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import Compressor
from ragq.manifest import ShardEntry
from ragq.pipelines.engines.work import write_shard
from ragq.pipelines.feeds import Feed
from ragq.pipelines.readers import Reader
from ragq.pipelines.spool import Spool, cuts_of, write_piece

if TYPE_CHECKING:
    from ragq.pipelines.build import Build

__all__ = ["LocalEngine"]


class LocalEngine:
    """See `ragq.pipelines.engines.Engine`."""

    def spool(self, build: Build, reader: Reader, tokens: int | None, shard_rows: int) -> None:
        from ragq.pipelines.chunking import Splitter

        assert build.embedder is not None
        splitter = Splitter(build.embedder, tokens, build.recipe.chunk_overlap)
        documents = (splitter.split(document) for document in reader)
        name, scratch = f"passages-{build.transaction.prefix}.arrow", build.scratch.folder
        counts = write_piece(scratch / name, documents, build.progress)
        Spool(build.transaction.folder, [(name, int(counts.sum()))], cuts_of([counts], shard_rows)).save()

    def sample(self, build: Build, feed: Feed, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return feed.sample(rows, build.progress)

    def shards(
        self, build: Build, feed: Feed, compressor: Compressor, spans: Sequence[tuple[int, int]], first: int
    ) -> Iterator[ShardEntry]:
        for start, stop in spans:
            build.progress("index", start, feed.rows)
            writer = build.transaction.new_shard()
            told = lambda rows, start=start: build.progress("index", start + rows, feed.rows)  # noqa: E731
            yield write_shard(writer, feed, compressor, (start, stop), build.normalize, told)

    def close(self) -> None:
        pass
