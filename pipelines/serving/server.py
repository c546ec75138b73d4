"""`serve`: bind, start the replicas, answer until interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ragq.checks import check_int
from ragq.embedders import Embedder
from ragq.errors import InvalidArgumentError, StorageError, missing_extra
from ragq.pipelines.models import embedder_of
from ragq.pipelines.serving.app import make_app
from ragq.pipelines.serving.limits import Limits
from ragq.pipelines.serving.service import Service
from ragq.pipelines.serving.workers import LocalWorker, RayWorker, Worker
from ragq.remote import locate, reference
from ragq.retrievers.scan import default_threads
from ragq.snapshot import Snapshot

__all__ = ["ENGINES", "serve"]

ENGINES = ("local", "ray")
SHORTEST_TOKEN = 16
LOADABLE = ("sentence-transformers", "multi-vector")  # kinds of models that are found by their name
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
STOP_SECONDS = 10


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, token: str | None, force: bool) -> None:
    """Raise `InvalidArgumentError` on a token that can be guessed, or a public address without one."""
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or token != token.strip()):
        raise InvalidArgumentError(f"A token must have {SHORTEST_TOKEN} ASCII characters or more, without blanks.")
    if not is_loopback(host) and token is None and not force:
        raise InvalidArgumentError(
            f"Without a token, everybody who reaches {host} could read the whole index. "
            "Give --token-file or RAGQ_TOKEN, bind to 127.0.0.1, or force it with --force."
        )


def embedder_loader(folder: Path, model: Any, options: dict[str, Any]) -> Callable[[Snapshot], Embedder | None]:
    """Return what loads the model of a generation; one that has none is served for ready embeddings."""

    def load(snapshot: Snapshot) -> Embedder | None:
        known = snapshot.manifest.embedder
        if model is None and (known is None or known.get("kind") not in LOADABLE):
            return None
        return embedder_of(folder, snapshot.manifest, model, options)

    return load


def serve(
    path: str | Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    threads: int | None = None,
    host: str = "127.0.0.1",
    port: int = 8717,
    token: str | None = None,
    allow_hosts: tuple[str, ...] = (),
    force: bool = False,
    reload_seconds: float = 1.0,
    model: Any = None,
    address: str | None = None,
    limits: Limits | None = None,
    started: Callable[[str], None] = lambda url: None,
    **model_options: Any,
) -> None:
    """Serve an index over HTTP until SIGINT or SIGTERM.

    Parameters
    ----------
    path : str or Path
        The index folder.
    engine : {'local', 'ray'}
        Where the replicas live: processes of this machine, or Ray actors.
    workers : int, optional
        Replicas; by default one a processor.
    threads : int, optional
        Threads of a replica's scan; by default all processors, shared out.
    host, port
        Where to listen; port 0 takes a free one.
    token : str, optional
        What clients must send as ``Authorization: Bearer …``.
    allow_hosts : sequence of str
        More names that clients may call this server by.
    force : bool
        Listen on a public address without a token.
    reload_seconds : float
        How often to look for a new generation.
    model : optional
        What embeds queries, when it is not to be loaded by the name that the index holds.
    address : str, optional
        Of the Ray cluster.
    limits : Limits, optional
    started : callable
        Called with the URL when the server answers.
    **model_options
        See `ragq.embedders.load_embedder`.

    Raises
    ------
    InvalidArgumentError
        There is no index, a public address without a token, or a wrong argument.
    StorageError
        The address is in use or not this machine's.
    """
    try:
        import uvicorn  # noqa: F401
    except ImportError:
        raise missing_extra("uvicorn", "serve") from None
    if engine not in ENGINES:
        raise InvalidArgumentError(f"'engine' must be one of {', '.join(ENGINES)}. Got {engine!r}.")
    check_exposure(host, token, force)
    folder, limits = locate(path), limits or Limits()
    found = reference(folder)
    place = found if isinstance(found, str) else str(folder.resolve())
    count = default_threads() if workers is None else check_int(workers, "workers", 1, 1024)
    each = max(1, default_threads() // count) if threads is None else check_int(threads, "threads", 1)
    more_files(limits.connections)

    def start_worker() -> Worker:
        if engine == "ray":
            return RayWorker(place, each, address)
        return LocalWorker(place, each)

    service = Service(folder, start_worker, count, embedder_loader(folder, model, model_options), limits)
    hosts = None if not is_loopback(host) and not allow_hosts else LOOPBACK | {host, *map(str.lower, allow_hosts)}
    app = make_app(service, token=token, hosts=hosts, reload_seconds=reload_seconds)
    with listening(host, port) as listener:
        asyncio.run(run(service, make_server(app, limits), listener, started))


def make_server(app: Any, limits: Limits) -> Any:
    """Return a `uvicorn.Server` for an application, with its patience bounded."""
    import uvicorn

    from ragq.pipelines.serving.protocol import patient_protocol

    config = uvicorn.Config(
        app,
        http=patient_protocol(limits),
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=32 << 10,
    )
    return uvicorn.Server(config)


async def run(service: Service, server: Any, listener: socket.socket, started: Callable[[str], None]) -> None:
    """Start the replicas, then answer until the server is told to exit."""
    await service.start()
    try:
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        announcing = asyncio.create_task(announce(server, started, url))
        await server.serve(sockets=[listener])
        announcing.cancel()
    finally:
        await service.stop()


async def announce(server: Any, started: Callable[[str], None], url: str) -> None:
    """Call `started` when the server answers."""
    while not server.started:
        await asyncio.sleep(0.01)
    started(url)


@contextlib.contextmanager
def listening(host: str, port: int) -> Any:
    """Bind a socket, or say why it cannot be."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except (OSError, OverflowError) as error:
        raise StorageError(f"Cannot listen on {host}:{port}: {error}. Choose another with --host or --port.") from None
    with listener:
        yield listener


def more_files(connections: int) -> None:
    """Raise the limit of open files to what so many connections may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard > 0 else wanted, hard))


def token_from(file: Path | None) -> str | None:
    """Return the token in a file or the environment variable ``RAGQ_TOKEN``; command lines are seen by everybody."""
    if file is None:
        return os.environ.get("RAGQ_TOKEN") or None
    try:
        return file.read_text().strip()
    except OSError as error:
        raise StorageError(f"Cannot read {file}: {error.strerror}.") from None


logging.getLogger("ragq.serve").addHandler(logging.NullHandler())
