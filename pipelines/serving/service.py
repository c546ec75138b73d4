"""`Service`: what the HTTP routes call. It embeds, batches, scans and fetches within one generation a request."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_embeddings, check_int
from ragq.embedders import Embedder
from ragq.errors import InvalidArgumentError, RagqError
from ragq.pipelines.describe import describe
from ragq.pipelines.serving.batching import Batcher
from ragq.pipelines.serving.fleet import Fleet, Generation
from ragq.pipelines.serving.limits import BusyError, Limits, UnavailableError, check_filter
from ragq.pipelines.serving.metrics import Metrics
from ragq.pipelines.serving.replica import Group, kept_filters
from ragq.pipelines.serving.workers import Worker
from ragq.pipelines.token_view import open_view
from ragq.retrievers.structures.base import Probe
from ragq.snapshot import Snapshot

__all__ = ["Service"]

Floats = NDArray[np.float32]
Hits = list[dict[str, Any]]


@dataclass(frozen=True)
class Question:
    """One query that waits for its scan."""

    x: Floats  # of shape (dim,), or (tokens, dim)
    k: int
    where: str | None
    probe: Probe
    generation: Generation

    @property
    def group(self) -> tuple[Any, ...]:
        """Questions of one group are scanned together: same generation, filter and probe, and `k` of one size."""
        return self.generation.token, self.where, self.probe, max(16, 1 << (self.k - 1).bit_length())


class Service:
    """An index that is served.

    Parameters
    ----------
    folder : Path
        The index folder.
    start_worker : callable
        Starts one replica.
    workers : int
        How many.
    load_embedder : callable
        Returns what embeds queries for a generation, or None when they come embedded.
    limits : Limits
    """

    def __init__(
        self,
        folder: Path,
        start_worker: Callable[[], Worker],
        workers: int,
        load_embedder: Callable[[Snapshot], Embedder | None],
        limits: Limits,
    ) -> None:
        self.limits, self.metrics = limits, Metrics()
        self._load_embedder = load_embedder
        self.fleet = Fleet(folder, start_worker, workers, self.metrics, self._open)
        self._embedders: list[tuple[Any, Embedder | None]] = []
        self._prepared: OrderedDict[tuple[int, str], None] = OrderedDict()  # filters that the replicas have evaluated
        self._preparing = 0
        self._embedding = ThreadPoolExecutor(1, "ragq-embed")
        self._scans: Batcher[Question, tuple[list[int], list[float], Hits]] = Batcher(
            self._scan, limits.batch, limits.waiting, slots=2
        )
        self._texts: Batcher[tuple[str, Embedder], Floats] = Batcher(self._embed, limits.batch, limits.waiting)

    def _open(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return what is told of a generation, after loading what embeds for it."""
        known = snapshot.manifest.embedder
        if not self._embedders or self._embedders[-1][0] != known:
            self._embedders = [(known, self._load_embedder(snapshot))]
        view = open_view(snapshot)
        facts = describe(snapshot, view.compressor, view.shard_rows)
        facts.pop("path")
        facts.pop("embedder")  # its prompts and folders are the server's own
        return facts | {"name": snapshot.folder.name, "model": Path(str(facts["model"])).name if known else None}

    @property
    def waiting(self) -> int:
        """Queries that wait for their turn."""
        return self._scans.waiting + self._texts.waiting

    async def start(self) -> None:
        """Start the replicas and open the index."""
        await self.fleet.start()

    async def stop(self) -> None:
        """End the replicas."""
        await self.fleet.stop()
        self._embedding.shutdown(wait=False, cancel_futures=True)

    # requests

    async def search(
        self,
        queries: Sequence[str] | None,
        embeddings: Sequence[Sequence[Any]] | None,
        k: int,
        where: dict[str, Any] | None,
        probe: Probe,
    ) -> tuple[int, float, list[Hits]]:
        """Return the generation that answered, seconds, and the hits of each query."""
        started = time.perf_counter()
        check_int(k, "k", 1, self.limits.k)
        given = queries if embeddings is None else embeddings
        if given is None or (queries is not None and embeddings is not None):
            raise InvalidArgumentError("Give either text or embeddings to search for.")
        if len(given) > self.limits.queries:
            raise InvalidArgumentError(f"A request may hold {self.limits.queries} queries. Got {len(given)}.")
        if where is not None:
            check_filter(where, self.limits.conditions)
        async with asyncio.timeout(self.limits.answer_seconds), self.fleet.use() as generation:
            x = await self._vectors(generation, queries, embeddings)
            key = None
            if where:
                key = json.dumps(where, sort_keys=True)
                await self._prepare(generation, key)
            answers = await self._scans([Question(row, k, key, probe, generation) for row in x])
            number = generation.manifest.generation
        hits = [
            [hit | {"score": score} for hit, score in zip(found, scores, strict=True)] for _, scores, found in answers
        ]
        return number, time.perf_counter() - started, hits

    async def _prepare(self, generation: Generation, where: str) -> None:
        """Let the replicas evaluate a filter, unless they did; what is known waits for no new one."""
        known = (generation.token, where)
        if known not in self._prepared:
            if self._preparing >= self.limits.filters:
                raise BusyError(f"{self._preparing} filters wait already. Try again in a moment.")
            self._preparing += 1
            try:
                await self.fleet.prepare(generation, where)
            finally:
                self._preparing -= 1
        self._prepared[known] = None
        self._prepared.move_to_end(known)
        while len(self._prepared) > kept_filters(sum(shard.rows for shard in generation.manifest.shards)):
            self._prepared.popitem(last=False)

    async def get(self, ids: Sequence[str]) -> tuple[int, list[dict[str, Any]]]:
        """Return the generation that answered, and documents by id."""
        if len(ids) > self.limits.ids or any(len(name) > self.limits.text for name in ids):
            raise InvalidArgumentError(f"A request may hold {self.limits.ids} ids of {self.limits.text} characters.")
        async with asyncio.timeout(self.limits.answer_seconds), self.fleet.use() as generation:
            return generation.manifest.generation, await self.fleet.get(generation, ids, self.limits.answer)

    async def info(self) -> dict[str, Any]:
        """Return what the index is."""
        async with self.fleet.use() as generation:
            embeds = self._embedders[-1][1] is not None
            return generation.facts | {"embeds_text": embeds, "replicas": len(generation.shares)}

    def _vector(self, given: Sequence[Any], dim: int, many: bool) -> Floats:
        """Return an embedding, of shape (dim,), or (tokens, dim) for a multi-vector index."""
        rows = given if many else [given]
        if many and len(rows) > self.limits.tokens:
            raise InvalidArgumentError(f"A query may have {self.limits.tokens} vectors. Got {len(rows)}.")
        if any(not isinstance(row, list) or len(row) != dim for row in rows):
            shape = f"a list of lists of {dim} numbers" if many else f"a list of {dim} numbers"
            raise InvalidArgumentError(f"An embedding of this index must be {shape}.")
        if any(isinstance(value, list) for row in rows for value in row):
            raise InvalidArgumentError(f"An embedding of this index must be a list of {dim} numbers.")
        x = check_embeddings(np.asarray(rows, np.float64).reshape(-1, dim), dim, name="embedding")
        return x if many else x[0]

    async def _vectors(
        self,
        generation: Generation,
        queries: Sequence[str] | None,
        embeddings: Sequence[Sequence[Any]] | None,
    ) -> list[Floats]:
        dim = generation.manifest.dim
        if embeddings is not None:
            many = generation.manifest.multi_vector is not None
            return [self._vector(row, dim, many) for row in embeddings]
        assert queries is not None
        embedder = self._embedders[-1][1]
        if embedder is None:
            raise InvalidArgumentError(
                "This server has no model: the index was made from ready embeddings. Send those."
            )
        if any(len(text) > self.limits.text for text in queries):
            raise InvalidArgumentError(f"A query may have {self.limits.text} characters. Got more.")
        return await self._texts([(text, embedder) for text in queries])

    # batches

    async def _embed(self, items: list[tuple[str, Embedder]]) -> list[Floats | Exception]:
        """Embed texts of several requests in one forward pass."""
        embedder = items[-1][1]
        loop = asyncio.get_running_loop()
        x = await loop.run_in_executor(self._embedding, embedder.encode_queries, [text for text, _ in items])
        return [np.asarray(x[i], np.float32) for i in range(len(x))]

    async def _scan(self, questions: list[Question]) -> list[tuple[list[int], list[float], Hits] | Exception]:
        """Scan for the questions of several requests at once, and fetch their hits."""
        by_group: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for i, question in enumerate(questions):
            by_group[question.group].append(i)
        by_generation: dict[int, list[list[int]]] = defaultdict(list)
        for members in by_group.values():
            by_generation[questions[members[0]].generation.token].append(members)
        answers: list[Any] = [None] * len(questions)
        started = time.perf_counter()
        for parts in by_generation.values():
            generation = questions[parts[0][0]].generation
            groups = []
            for members in parts:
                first = questions[members[0]]
                k = max(questions[i].k for i in members)
                x: Any = [questions[i].x for i in members]
                if generation.manifest.multi_vector is None:
                    x = np.stack(x)
                groups.append(Group(x, k, first.where, first.probe))
            found = await self.fleet.scan(generation, groups)
            for members, result in zip(parts, found, strict=True):
                for place, i in enumerate(members):
                    answers[i] = result if isinstance(result, RagqError) else best(result, place, questions[i].k)
            self.metrics.observe("ragq_batch_queries", sum(map(len, parts)))
        self.metrics.observe("ragq_scan_seconds", time.perf_counter() - started)
        await self._fetch(questions, answers)
        return answers

    async def _fetch(self, questions: list[Question], answers: list[Any]) -> None:
        """Put the fields of their hits to the answers: all at once, or one by one when that is too much."""
        good = [i for i, answer in enumerate(answers) if not isinstance(answer, Exception)]
        by_generation: dict[int, list[int]] = defaultdict(list)
        for i in good:
            by_generation[questions[i].generation.token].append(i)
        for members in by_generation.values():
            try:
                await self._fetch_some(questions, answers, members)
            except InvalidArgumentError:
                for i in members:
                    try:
                        await self._fetch_some(questions, answers, [i])
                    except RagqError as error:
                        answers[i] = error

    async def _fetch_some(self, questions: list[Question], answers: list[Any], members: list[int]) -> None:
        generation = questions[members[0]].generation
        rows = np.asarray([row for i in members for row in answers[i][0]], np.int64)
        hits = await self.fleet.fetch(generation, rows, self.limits.answer)
        for i in members:
            found, scores, *_ = answers[i]
            answers[i] = (found, scores, [hits[row] for row in found])


def best(found: tuple[Floats, NDArray[np.int64]], place: int, k: int) -> tuple[list[int], list[float]]:
    """Return the rows and scores of one query of a scan, at most `k`, padding left out."""
    scores, rows = found[0][place, :k], found[1][place, :k]
    return rows[rows >= 0].tolist(), scores[rows >= 0].tolist()


def timed_out() -> UnavailableError:
    """Return the error for an answer that takes too long."""
    return UnavailableError("The answer took too long. Ask for less, or try again.")
