"""The Ray engine: Ray Data reads, embeds, encodes and writes with a pool of actors; the build itself only commits.

The unit of work is one shard, and its file names and embedding batches are those of the local engine, so that the index
is the same. A worker that dies costs the shard that it was writing, which another one writes again under the same
names; what it left half-written no manifest will name.

The index, the source and ready embeddings must be where every worker can read and write them: a shared file system, or
an object store.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragq import errors
from ragq.checks import check_int
from ragq.compressors import Compressor
from ragq.embedders import DEFAULT_MODEL
from ragq.errors import RagqError, StorageError
from ragq.manifest import ShardEntry, read_shard
from ragq.pipelines.engines.cluster import ATTEMPTS, Cluster
from ragq.pipelines.engines.local import LocalEngine
from ragq.pipelines.engines.work import Job, Worker
from ragq.pipelines.feeds import Feed, ReadyFeed, TextFeed
from ragq.pipelines.readers import Counts, Reader
from ragq.pipelines.readers.iterables import IterableReader
from ragq.pipelines.spool import Spool, cuts_of
from ragq.remote import discard_scratch, reference, send_scratch
from ragq.transaction import BUILD

if TYPE_CHECKING:
    from ragq.pipelines.build import Build

__all__ = ["RayEngine"]

ASK_SECONDS = 1.0


class RayEngine:
    """See `ragq.pipelines.engines.Engine`.

    Parameters
    ----------
    address : str, optional
        Of a Ray cluster; without one, and without ``RAY_ADDRESS``, Ray is started on this machine.
    workers : int, optional
        Actors of the pool; by default one a GPU of the cluster, or one a processor.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        self.address = address
        self._asked = None if workers is None else check_int(workers, "workers", 1)
        self._cluster: Cluster | None = None

    @property
    def cluster(self) -> Cluster:
        """The connection; made when it is first needed."""
        if self._cluster is None:
            self._cluster = Cluster(self.address)
        return self._cluster

    @property
    def workers(self) -> int:
        """Actors of the pool."""
        return self._asked or self.cluster.workers

    def job(self, build: Build, feed: Feed | None = None) -> Job:
        """Return what workers must know."""
        place, prefix = reference(build.transaction.folder), build.transaction.prefix
        job = Job(place, str(Path.cwd()), prefix=prefix, normalize=build.normalize)
        if isinstance(feed, ReadyFeed):
            return replace(job, ready=build.ready)
        assert build.embedder is not None
        model = DEFAULT_MODEL if build.model is None else build.model
        fingerprint = build.embedder.fingerprint
        job = replace(job, model=model, model_options=build.model_options, fingerprint=fingerprint)
        if isinstance(feed, TextFeed):
            pieces, cuts = tuple((name, rows) for name, rows in feed.spool.pieces), tuple(feed.cuts)
            job = replace(job, pieces=pieces, cuts=cuts)
            if len(feed.sampled):
                job = replace(job, sampled=feed.sampled, vectors=np.asarray(feed.vectors))
        return job

    def spool(self, build: Build, reader: Reader, tokens: int | None, shard_rows: int) -> None:
        parts = [reader] if isinstance(reader, IterableReader) else reader.parts()
        if len(parts) < 2:  # what is in this process, or in one file, is read here: the model is loaded already
            LocalEngine().spool(build, reader, tokens, shard_rows)
            for name, _ in Spool.open(build.transaction.folder).pieces:
                send_scratch(build.transaction.folder, f"{BUILD}/{name}")
            return
        names = [f"passages-{build.transaction.prefix}-{i:05d}.arrow" for i in range(len(parts))]
        job = replace(self.job(build), tokens=tokens, overlap=build.recipe.chunk_overlap)
        counts: list[NDArray[np.int64]] = []
        for data in self._in_order(job, "read", list(zip(names, parts, strict=True))):
            told = json.loads(data)
            counts.append(np.asarray(told["passages"], np.int64))
            reader.take_counts(Counts(told["read"], Counter(told["skipped"])), told["notes"])
            build.progress("read", reader.counts.read, None)
        reader.check_found()
        pieces = [(name, int(rows.sum())) for name, rows in zip(names, counts, strict=True)]
        Spool(build.transaction.folder, pieces, cuts_of(counts, shard_rows)).save()

    def sample(self, build: Build, feed: Feed, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if not isinstance(feed, TextFeed) or not len(rows):
            return feed.sample(rows, build.progress)

        def embedded(batches: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.float32]]:
            for data in self._in_order(self.job(build, feed), "embed", batches):
                yield np.frombuffer(data, np.float32).reshape(-1, feed.dim)

        return feed.sample(rows, build.progress, embedded)

    def shards(
        self, build: Build, feed: Feed, compressor: Compressor, spans: Sequence[tuple[int, int]], first: int
    ) -> Iterator[ShardEntry]:
        if not spans:
            return
        job = replace(self.job(build, feed), spec=compressor.spec, state=dict(compressor.state))
        counter, start = self.cluster.counter(), spans[0][0]
        items = [(number, *span) for number, span in enumerate(spans, first)]
        build.progress("index", start, feed.rows)
        stopped = threading.Event()

        def tell() -> None:
            while not stopped.wait(ASK_SECONDS):
                build.progress("index", start + self.cluster.read_counter(counter), feed.rows)

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            for text in self._in_order(job, "shard", items, counter):
                yield read_shard(json.loads(text))
        finally:
            stopped.set()
            teller.join()
        build.progress("index", feed.rows, feed.rows)
        if isinstance(feed, TextFeed):
            discard_scratch(build.transaction.folder, [f"{BUILD}/{name}" for name, _ in feed.spool.pieces])

    def _in_order(self, job: Job, what: str, items: Sequence[Any], counter: Any = None) -> Iterator[bytes]:
        """Yield the results of items in their order, each as soon as those before it are there."""
        if not items:
            return
        waiting: dict[int, bytes] = {}
        turn = 0
        counter = counter or self.cluster.counter()
        shared = self.cluster.share((job, items))
        for number, result in self.cluster.map(RemoteWorker, ([shared], what, counter), len(items), self.workers):
            waiting[number] = result
            while turn in waiting:
                yield waiting.pop(turn)
                turn += 1

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


class RemoteWorker:
    """A `Worker` as an actor of Ray Data.

    Parameters
    ----------
    shared : list of ray.ObjectRef
        One reference to (job, items); in a list, so that Ray hands on the reference.
    what : {'read', 'embed', 'shard'}
    counter : actor handle
        Of a `ragq.pipelines.engines.cluster.Counter`.
    """

    def __init__(self, shared: list[Any], what: str, counter: Any) -> None:
        import ray

        self.job, self.items = ray.get(shared[0])
        self.what, self.counter = what, counter
        self.begin: Callable[[int], int] = lambda number: int(ray.get(counter.begin.remote(number)))

    @cached_property
    def worker(self) -> Worker:
        """Made with the first item: an actor that fails to start is started again for ever."""
        return Worker(self.job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do one item."""
        number = int(row["number"])
        try:
            return {"number": number, "error": "", "result": self.done(number, self.items[number])}
        except RagqError as error:
            kind = next(each.__name__ for each in type(error).__mro__ if hasattr(errors, each.__name__))
            return {"number": number, "error": kind, "result": str(error).encode()}

    def done(self, number: int, item: Any) -> bytes:
        """Do one item; return what `RayEngine` reads."""
        if self.begin(number) > ATTEMPTS:
            raise StorageError(
                f"Item {number + 1} of {len(self.items)} ({self.what}) has ended its worker {ATTEMPTS} times; is there "
                "enough memory? Go on with --resume."
            )
        if self.what == "embed":
            return self.worker.embed(item).tobytes()
        if self.what == "read":
            passages, counts, notes = self.worker.read(*item)
            skipped = dict(counts.skipped)
            told = {"passages": passages.tolist(), "read": counts.read, "skipped": skipped, "notes": notes}
        else:
            place, start, stop = item
            told = asdict(self.worker.shard(place, start, stop, lambda rows: self.counter.tell.remote(number, rows)))
        return json.dumps(told).encode()
