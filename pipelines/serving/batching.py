"""Batches of what comes while earlier batches run: nothing waits on purpose, and a busy server scans for many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from ragq.pipelines.serving.limits import BusyError

__all__ = ["Batcher"]

A = TypeVar("A")
B = TypeVar("B")


class Batcher(Generic[A, B]):
    """Run items in batches, first come, first served.

    Parameters
    ----------
    run : callable
        ``await run(items)`` returns an answer, or an error, for each.
    most : int
        Items of a batch.
    waiting : int
        Items that may wait; more raise `BusyError`.
    slots : int
        Batches that run at the same time.
    """

    def __init__(
        self, run: Callable[[list[A]], Awaitable[Sequence[B | Exception]]], most: int, waiting: int, slots: int = 1
    ) -> None:
        self._run, self._most, self._limit, self._slots = run, most, waiting, slots
        self._queue: deque[tuple[A, asyncio.Future[B]]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def waiting(self) -> int:
        """Items that wait for their turn."""
        return len(self._queue)

    async def __call__(self, items: Sequence[A]) -> list[B]:
        """Return the answers to some items; a long list takes turns with what others ask, a batch at a time."""
        answers: list[B] = []
        for start in range(0, len(items), self._most):
            part = items[start : start + self._most]
            if len(self._queue) + len(part) > self._limit:
                raise BusyError(f"{len(self._queue)} queries wait already. Try again in a moment.")
            loop = asyncio.get_running_loop()
            futures: list[asyncio.Future[B]] = [loop.create_future() for _ in part]
            self._queue.extend(zip(part, futures, strict=True))
            self._start()
            answers += await asyncio.gather(*futures)
        return answers

    def _start(self) -> None:
        while self._queue and len(self._tasks) < self._slots:
            batch: list[tuple[A, asyncio.Future[B]]] = []
            while self._queue and len(batch) < self._most:
                item, future = self._queue.popleft()
                if not future.done():  # whoever asked may have given up
                    batch.append((item, future))
            if batch:
                task = asyncio.get_running_loop().create_task(self._answer(batch))
                self._tasks.add(task)
                task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._start()

    async def _answer(self, batch: list[tuple[A, asyncio.Future[B]]]) -> None:
        answers: Sequence[B | Exception]
        try:
            answers = await self._run([item for item, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
