"""The pieces of a build that any process can do: read a part of the source, embed a batch, write a shard."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import Compressor, from_spec
from ragq.embedders import Embedder, load_embedder, same_model
from ragq.errors import IncompatibleIndexError
from ragq.layouts import Layout
from ragq.manifest import ShardEntry
from ragq.pipelines.feeds import Feed, ReadyFeed, TextFeed
from ragq.pipelines.fitting import encode
from ragq.pipelines.readers import Counts, Reader, open_embeddings, read
from ragq.pipelines.spool import Spool, write_piece
from ragq.remote import locate, send_files, send_scratch
from ragq.shards import ShardWriter
from ragq.transaction import BUILD

__all__ = ["Job", "Worker", "write_shard"]

Told = Callable[[int], None]


def write_shard(
    writer: ShardWriter, feed: Feed, compressor: Compressor, span: tuple[int, int], normalize: bool, told: Told
) -> ShardEntry:
    """Fill a shard with the passages of a span, and finish it.

    Parameters
    ----------
    told : callable
        ``told(rows)`` after each batch, with the rows that the shard has.
    """
    with writer:
        for passages, x in feed.read(*span):
            writer.add(passages, encode(compressor, x, normalize))
            told(writer.rows)
        return writer.finish()


@dataclass(frozen=True)
class Job:
    """What a worker must know of a build; it can be sent to another machine.

    Attributes
    ----------
    place : str or Path
        The index, as `ragq.remote.locate` takes it; all workers must reach it.
    folder : str
        The working directory, which relative paths begin at.
    model, model_options
        As `load_embedder` takes them; None when nothing is embedded.
    fingerprint : dict or None
        Of the model that the build began with: a worker that finds another one under its name refuses.
    tokens, overlap : int or None
        How to cut documents.
    pieces, cuts
        Of the `Spool`, when a model embeds.
    sampled, vectors
        Passages whose embeddings are known.
    ready : (embeddings, ids, source, int), optional
        In place of a model: ready embeddings, as `open_embeddings` takes them and their ids, their documents, and the
        rows of a shard.
    prefix : str
        What the names of shards begin with.
    spec, state, normalize
        The fitted compressor.
    """

    place: str | Path
    folder: str = "."
    model: Any = None
    model_options: dict[str, Any] = field(default_factory=dict)
    fingerprint: dict[str, Any] | None = None
    tokens: int | None = None
    overlap: int | None = None
    pieces: tuple[tuple[str, int], ...] = ()
    cuts: tuple[int, ...] = ()
    sampled: NDArray[np.int64] | None = None
    vectors: NDArray[np.float32] | None = None
    ready: tuple[Any, Any, Any, int] | None = None
    prefix: str = ""
    spec: str = ""
    state: dict[str, NDArray[Any]] = field(default_factory=dict)
    normalize: bool = False


class Worker:
    """Does the pieces of a `Job`; what it needs for them is loaded once.

    Parameters
    ----------
    job : Job
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        if Path(job.folder).is_dir():
            os.chdir(job.folder)
        self.folder = locate(job.place)
        self.embedder = self._embedder() if job.fingerprint else None
        self.feed = self._feed()
        if job.spec:
            self.compressor = from_spec(job.spec).load_state(dict(job.state))

    def _embedder(self) -> Embedder:
        embedder = load_embedder(self.job.model, **self.job.model_options)
        difference = same_model(self.job.fingerprint or {}, embedder.fingerprint)
        if difference:
            raise IncompatibleIndexError(f"A worker has another model than the build began with: {difference}.")
        return embedder

    def _feed(self) -> Feed | None:
        job = self.job
        if job.ready is not None:
            embeddings, ids, source, rows = job.ready
            reader = None if source is None else read(source, aligned=True)
            return ReadyFeed(open_embeddings(embeddings, ids), reader, rows)
        if not job.pieces or self.embedder is None:
            return None
        feed = TextFeed(Spool(self.folder, job.pieces, list(job.cuts)), self.embedder, self.folder / BUILD)
        if job.sampled is not None and job.vectors is not None:
            feed.know(job.sampled, job.vectors)
        return feed

    def read(self, name: str, reader: Reader) -> tuple[NDArray[np.int64], Counts, list[str]]:
        """Write what a reader reads, cut, to a scratch file; return passages a document, and the reader's counts."""
        from ragq.pipelines.chunking import Splitter

        assert self.embedder is not None
        splitter = Splitter(self.embedder, self.job.tokens, self.job.overlap)
        (self.folder / BUILD).mkdir(parents=True, exist_ok=True)
        path = self.folder / BUILD / name
        counts = write_piece(path, (splitter.split(document) for document in reader.part()))
        send_scratch(self.folder, f"{BUILD}/{name}")
        return counts, reader.counts, reader.notes

    def embed(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of a batch of passages, given by their numbers."""
        assert isinstance(self.feed, TextFeed)
        return next(self.feed.embed_batches([rows]))

    def shard(self, number: int, start: int, stop: int, told: Told) -> ShardEntry:
        """Write a shard, and send it to where the index is."""
        assert self.feed is not None
        layout: Layout = self.compressor.layout
        writer = ShardWriter(self.folder, f"{self.job.prefix}-{number:05d}", layout)
        entry = write_shard(writer, self.feed, self.compressor, (start, stop), self.job.normalize, told)
        send_files(self.folder, entry.files)
        return entry
