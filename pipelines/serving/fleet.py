"""The replicas of an index as one: scatter, gather by the one tie rule, take up new generations meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.errors import RagqError
from ragq.filters import no_such_field
from ragq.manifest import Manifest
from ragq.pipelines.serving.limits import UnavailableError
from ragq.pipelines.serving.metrics import Metrics
from ragq.pipelines.serving.replica import Group
from ragq.pipelines.serving.workers import Worker, WorkerDiedError
from ragq.retrievers.structures.base import Found, merge
from ragq.snapshot import Snapshot

__all__ = ["Fleet", "Generation", "cut"]

logger = logging.getLogger("ragq.serve")
RESTART_SECONDS = 1.0


@dataclass(frozen=True)
class Share:
    """The shards `first` to `stop` of a generation, which worker number `worker` holds; `row` is their first row."""

    worker: int
    first: int
    stop: int
    row: int


@dataclass
class Generation:
    """One generation that is served: the lease on it, who holds which part, and how many requests use it."""

    token: int
    snapshot: Snapshot
    shares: list[Share]
    users: int = 0
    retired: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        """Of this generation."""
        return self.snapshot.manifest

    @property
    def whole(self) -> bool:
        """Whether every worker holds all shards; then queries are shared out.

        A structure is over all of them, and so is the choice of candidates in a multi-vector index.
        """
        return self.manifest.structure is not None or self.manifest.multi_vector is not None


def cut(sizes: Sequence[int], parts: int) -> list[tuple[int, int]]:
    """Cut neighbours into at most `parts` runs of about equal sums: their (first, stop), none of them empty."""
    ends = np.cumsum(sizes)
    edges, first = [], 0
    for part in range(parts):
        goal = ends[-1] * (part + 1) / parts if len(sizes) else 0
        stop = int(np.searchsorted(ends, goal - 1e-9)) + 1 if part + 1 < parts else len(sizes)
        stop = min(stop, len(sizes))
        if stop > first:
            edges.append((first, stop))
            first = stop
    return edges


class Fleet:
    """Workers that hold the shards of an index, one generation for new requests and older ones until their last answer.

    Parameters
    ----------
    folder : Path
        The index folder.
    start : callable
        Starts one worker.
    workers : int
    metrics : Metrics
    describe : callable
        Returns what is told of a generation; called in a thread.
    """

    def __init__(
        self,
        folder: Path,
        start: Callable[[], Worker],
        workers: int,
        metrics: Metrics,
        describe: Callable[[Snapshot], dict[str, Any]],
    ) -> None:
        self.folder, self._start, self._count, self._describe = folder, start, workers, describe
        self.metrics = metrics
        self._workers: list[Worker | None] = []
        self._generations: dict[int, Generation] = {}
        self._current: Generation | None = None
        self._tokens = 0
        self._turn = 0
        self._changing = asyncio.Lock()  # one reload or restart at a time
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Start the workers and open the index; raise what opening it raises."""
        self._workers = list(await asyncio.gather(*(asyncio.to_thread(self._start) for _ in range(self._count))))
        try:
            await self.reload()
        except BaseException:
            await self.stop()
            raise
        self.metrics.set("ragq_replicas", self._count)

    async def stop(self) -> None:
        """End the workers and let the generations go."""
        for task in self._tasks:
            task.cancel()
        workers, self._workers = self._workers, [None] * self._count
        await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in workers if worker is not None))
        for generation in self._generations.values():
            generation.snapshot.close()
        self._generations, self._current = {}, None

    @property
    def ready(self) -> bool:
        """Whether every replica answers."""
        return self._current is not None and all(worker is not None for worker in self._workers)

    # generations

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[Generation]:
        """Hold the newest generation for a request."""
        generation = self._current
        if generation is None:
            raise UnavailableError("The server is starting or stopping. Try again in a moment.")
        generation.users += 1
        try:
            yield generation
        finally:
            generation.users -= 1
            if generation.retired and not generation.users:
                self._spawn(self._release(generation))

    async def reload(self) -> bool:
        """Take up a newer generation when there is one; searches go on with the old one meanwhile."""
        async with self._changing:
            if self._current is not None and self._current.snapshot.is_newest:
                return False
            snapshot = await asyncio.to_thread(Snapshot, self.folder)
            if self._current is not None and snapshot.manifest == self._current.manifest:
                snapshot.close()
                return False
            self._tokens += 1
            generation = Generation(self._tokens, snapshot, self._shares(snapshot))
            try:
                generation.facts = await asyncio.to_thread(self._describe, snapshot)
                await asyncio.gather(*(self._open(generation, share) for share in generation.shares))
            except BaseException:
                await self._release(generation)
                raise
            self._generations[generation.token] = generation
            old, self._current = self._current, generation
        self.metrics.set("ragq_generation", generation.manifest.generation)
        self.metrics.set("ragq_documents", generation.manifest.documents)
        self.metrics.set("ragq_index_bytes", sum(file.size for file in generation.manifest.files))
        if old is not None:
            self.metrics.add("ragq_reloads_total")
            logger.info("serving generation %d", generation.manifest.generation)
            old.retired = True
            if not old.users:
                await self._release(old)
        return True

    async def watch(self, seconds: float) -> None:
        """Look for new generations for ever; one that cannot be taken up is logged, and the old one goes on."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.reload()
            except (RagqError, OSError) as error:
                self.metrics.add("ragq_reload_failures_total")
                logger.warning("still serving the old generation: %s", error)

    def _shares(self, snapshot: Snapshot) -> list[Share]:
        count = len(snapshot.shards)
        if snapshot.manifest.structure is not None or snapshot.manifest.multi_vector is not None:
            return [Share(worker, 0, count, 0) for worker in range(self._count)]
        runs = cut([shard.rows for shard in snapshot.shards], self._count) or [(0, 0)]
        return [Share(worker, *run, int(snapshot.starts[run[0]])) for worker, run in enumerate(runs)]

    async def _open(self, generation: Generation, share: Share) -> None:
        await self._call(share.worker, "open", generation.token, generation.manifest, share.first, share.stop)

    async def _release(self, generation: Generation) -> None:
        self._generations.pop(generation.token, None)
        for share in generation.shares:
            with contextlib.suppress(RagqError):
                await self._call(share.worker, "release", generation.token)
        generation.snapshot.close()

    # calls

    async def _call(self, number: int, method: str, *arguments: Any) -> Any:
        worker = self._workers[number]
        if worker is None:
            raise UnavailableError("A replica is being started again. Try again in a moment.")
        try:
            return await worker.call(method, *arguments)
        except WorkerDiedError:
            if self._workers[number] is worker:
                self._workers[number] = None
                self._spawn(self._restart(number, worker))
            raise

    async def _restart(self, number: int, dead: Worker) -> None:
        """Start a worker anew and open what is served."""
        self.metrics.add("ragq_replica_restarts_total")
        self.metrics.set("ragq_replicas", sum(worker is not None for worker in self._workers))
        logger.warning("replica %d has ended and is started again", number)
        await asyncio.to_thread(dead.stop)
        while True:
            worker = None
            try:
                worker = await asyncio.to_thread(self._start)
                async with self._changing:
                    for generation in list(self._generations.values()):
                        for share in generation.shares:
                            if share.worker == number:
                                arguments = (generation.token, generation.manifest, share.first, share.stop)
                                await worker.call("open", *arguments)
                    self._workers[number] = worker
                break
            except (RagqError, OSError) as error:
                logger.warning("replica %d cannot be started: %s", number, error)
                if worker is not None:
                    await asyncio.to_thread(worker.stop)
                await asyncio.sleep(RESTART_SECONDS)
        self.metrics.set("ragq_replicas", sum(worker is not None for worker in self._workers))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # what requests ask

    async def prepare(self, generation: Generation, where: str) -> None:
        """Let the replicas evaluate a filter; raise `InvalidArgumentError` on a field that no document has."""
        calls = [self._call(share.worker, "prepare", generation.token, where) for share in generation.shares]
        answers = await asyncio.gather(*calls)
        nowhere = set.intersection(*(set(unknown) for unknown, _ in answers))
        if nowhere:
            raise no_such_field(min(nowhere), sorted({name for _, known in answers for name in known}))

    async def scan(self, generation: Generation, groups: Sequence[Group]) -> list[Found | RagqError]:
        """Search for groups of queries; rows are numbered over the whole generation."""
        if generation.whole:
            return await self._scan_shared_out(generation, groups)
        calls = [self._call(share.worker, "scan", generation.token, groups) for share in generation.shares]
        answers = await asyncio.gather(*calls)
        merged: list[Found | RagqError] = []
        for i, group in enumerate(groups):
            parts = [answer[i] for answer in answers]
            wrong = next((part for part in parts if isinstance(part, RagqError)), None)
            merged.append(wrong if wrong is not None else gather(parts, generation.shares, group.k))
        return merged

    async def _scan_shared_out(self, generation: Generation, groups: Sequence[Group]) -> list[Found | RagqError]:
        """Give each worker some queries of each group, and begin with another worker every time."""
        count = len(generation.shares)
        self._turn += 1
        shares = [generation.shares[(self._turn + i) % count] for i in range(count)]
        pieces = [split(group.x, count) for group in groups]
        calls = [
            self._call(
                share.worker,
                "scan",
                generation.token,
                [Group(piece[i], g.k, g.where, g.probe) for piece, g in zip(pieces, groups, strict=True)],
            )
            for i, share in enumerate(shares)
            if any(len(piece[i]) for piece in pieces)
        ]
        answers = await asyncio.gather(*calls)
        joined: list[Found | RagqError] = []
        for i in range(len(groups)):
            parts = [answer[i] for answer in answers]
            wrong = next((part for part in parts if isinstance(part, RagqError)), None)
            if wrong is not None:
                joined.append(wrong)
            else:
                scores, rows = (np.concatenate([part[j] for part in parts]) for j in (0, 1))
                joined.append((scores, rows))
        return joined

    async def fetch(self, generation: Generation, rows: NDArray[np.int64], most: int) -> dict[int, dict[str, Any]]:
        """Return rows of the generation as the fields of hits."""
        rows = np.unique(rows)
        shares = generation.shares
        if generation.whole:
            pieces = np.array_split(rows, len(shares))
        else:
            pieces = np.split(rows, np.searchsorted(rows, [share.row for share in shares[1:]]))
        asked = [(share, piece) for share, piece in zip(shares, pieces, strict=True) if len(piece)]
        calls = [self._call(s.worker, "fetch", generation.token, piece - s.row, most) for s, piece in asked]
        answers = await asyncio.gather(*calls)
        return {
            int(row): hit
            for (_, piece), hits in zip(asked, answers, strict=True)
            for row, hit in zip(piece, hits, strict=True)
        }

    async def get(self, generation: Generation, ids: Sequence[str], most: int) -> list[dict[str, Any]]:
        """Return documents by id, in the order of `ids`, without those that are not there."""
        shares = generation.shares[:1] if generation.whole else generation.shares
        answers = await asyncio.gather(*(self._call(s.worker, "find", generation.token, ids, most) for s in shares))
        found = {document["id"]: document for documents in answers for document in documents}
        return [found[name] for name in ids if name in found]


def split(x: Any, parts: int) -> list[Any]:
    """Cut queries, an array or a list, into neighbours of about equal number; some may be empty."""
    edges = [len(x) * i // parts for i in range(parts + 1)]
    return [x[a:b] for a, b in pairwise(edges)]


def gather(parts: Sequence[Found], shares: Sequence[Share], k: int) -> Found:
    """Merge what the parts of a generation found: higher score first, then the lower row of the whole."""
    numbered = [
        (scores, np.where(rows >= 0, rows + share.row, -1)) for (scores, rows), share in zip(parts, shares, strict=True)
    ]
    return merge(numbered, k)
