"""A server in a thread of the test, and a client that needs nothing but sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ragq.embedders import Embedder, load_embedder
from ragq.pipelines.serving.app import make_app
from ragq.pipelines.serving.limits import Limits
from ragq.pipelines.serving.replica import Replica
from ragq.pipelines.serving.server import LOOPBACK, listening, make_server, run
from ragq.pipelines.serving.service import Service
from ragq.pipelines.serving.workers import LocalWorker, Worker
from tests.indexes import words_model

JSON = {"Content-Type": "application/json"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.body)


class Client:
    """Requests to one server, a connection each."""

    def __init__(self, url: str, service: Service) -> None:
        self.url, self.service = url, service
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self.address = (parts.hostname, parts.port)

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30
    ) -> Answer:
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        try:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            connection.request(method, path, data, (JSON if body is not None else {}) | (headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self("POST", path, body, headers)

    def metrics(self) -> dict[str, float]:
        """The server's counters, by name with labels."""
        lines = self("GET", "/metrics").body.decode().splitlines()
        return {(p := line.rpartition(" "))[0]: float(p[2]) for line in lines if not line.startswith("#")}


class Direct:
    """A replica in this process, without lanes."""

    def __init__(self, path: str) -> None:
        self.replica = Replica(path, 1)

    async def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.replica, method)(*arguments)

    def stop(self) -> None:
        pass


@contextmanager
def serving(
    path: Path,
    *,
    workers: int = 2,
    token: str | None = None,
    limits: Limits | None = None,
    start_worker: Callable[[], Worker] | None = None,
    embedder: Callable[[Any], Embedder | None] = lambda _: load_embedder(words_model),
    reload_seconds: float = 0.05,
    patience: float = 60,
) -> Iterator[Client]:
    """Serve an index until the end of the block."""
    limits = limits or Limits()
    service = Service(path, start_worker or (lambda: LocalWorker(str(path), 1)), workers, embedder, limits)
    server = make_server(make_app(service, token=token, hosts=LOOPBACK, reload_seconds=reload_seconds), limits)
    ready, urls, failures = threading.Event(), [], []

    def started(url: str) -> None:
        urls.append(url)
        ready.set()

    def main() -> None:
        try:
            with listening("127.0.0.1", 0) as listener:
                asyncio.run(run(service, server, listener, started))
        except Exception as error:
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=main)
    thread.start()
    try:
        assert ready.wait(patience)
        if failures:
            raise failures[0]
        yield Client(urls[0], service)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
