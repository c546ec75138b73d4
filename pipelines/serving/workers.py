"""Where replicas live: processes of this machine, or Ray actors. Calls go in lanes that do not wait for each other.

Lanes
-----
``scan``
    Searches; nothing else may hold them up.
``fetch``
    Texts of hits, documents by id.
``filter``
    Opening generations and evaluating filters, which can take seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Protocol

from ragq.errors import RagqError
from ragq.pipelines.engines.cluster import connect
from ragq.pipelines.serving.limits import UnavailableError
from ragq.pipelines.serving.replica import Replica

__all__ = ["LANES", "LocalWorker", "RayWorker", "Worker", "WorkerDiedError"]

CONNECTING = threading.Lock()  # workers start side by side, and a process connects to Ray once
LANES = {"scan": "scan", "fetch": "fetch", "find": "fetch", "open": "filter", "release": "filter", "prepare": "filter"}


class WorkerDiedError(UnavailableError):
    """The process of a replica has ended."""


class Worker(Protocol):
    """A replica somewhere else."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the replica in its lane; raise `WorkerDiedError` when there is nobody any more."""

    def stop(self) -> None:
        """End the replica."""


def serve_lane(replica: Replica, connection: Connection) -> None:
    """Answer the calls of one lane until the front hangs up."""
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, getattr(replica, method)(*arguments))
        except RagqError as error:
            answer = (False, error)
        except Exception as error:
            answer = (False, RagqError(f"{type(error).__name__}: {error}"))
        with contextlib.suppress(OSError):
            connection.send(answer)


def serve_replica(folder: str, threads: int | None, connections: list[Connection]) -> None:
    """Be a replica: the main function of its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the front, which hangs up
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    replica = Replica(folder, threads)
    lanes = [threading.Thread(target=serve_lane, args=(replica, connection)) for connection in connections]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()


class LocalWorker:
    """A replica in a process of this machine.

    Parameters
    ----------
    folder : str
        The index folder.
    threads : int, optional
        Threads of a scan.
    """

    def __init__(self, folder: str, threads: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        names = sorted(set(LANES.values()))
        pairs = [context.Pipe() for _ in names]
        self._connections = {name: ours for name, (ours, _) in zip(names, pairs, strict=True)}
        self._pools = {name: ThreadPoolExecutor(1, f"ragq-{name}") for name in names}
        self._process = context.Process(
            target=serve_replica, args=(folder, threads, [theirs for _, theirs in pairs]), daemon=True
        )
        self._process.start()
        for _, theirs in pairs:
            theirs.close()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def _ask(self, lane: str, method: str, arguments: tuple[Any, ...]) -> Any:
        connection = self._connections[lane]
        try:
            connection.send((method, arguments))
            done, answer = connection.recv()
        except (EOFError, OSError):
            raise WorkerDiedError("A replica has ended; it is being started again. Try again in a moment.") from None
        if not done:
            raise answer
        return answer

    async def call(self, method: str, *arguments: Any) -> Any:
        lane = LANES[method]
        return await asyncio.get_running_loop().run_in_executor(self._pools[lane], self._ask, lane, method, arguments)

    def stop(self) -> None:
        self._process.terminate()  # it only reads
        self._process.join(5)
        for lane, connection in self._connections.items():
            connection.close()
            self._pools[lane].shutdown(wait=False, cancel_futures=True)


class RayWorker:
    """A replica in a Ray actor.

    Parameters
    ----------
    folder : str
        The index folder, under the same path on every node.
    threads : int, optional
        Threads of a scan.
    address : str, optional
        Of the cluster; by default a local one is started.
    """

    def __init__(self, folder: str, threads: int | None = None, address: str | None = None) -> None:
        with CONNECTING:
            self._ray = ray = connect(address)[0]
        actor = ray.remote(num_cpus=0, max_concurrency=len(set(LANES.values())) + 1)(Replica)
        self._actor = actor.remote(folder, threads)

    async def call(self, method: str, *arguments: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except errors.RayActorError:
            raise WorkerDiedError("A replica has ended; it is being started again. Try again in a moment.") from None
        except errors.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, RagqError) else RagqError(f"{type(cause).__name__}: {cause}") from None

    def stop(self) -> None:
        self._ray.kill(self._actor)
