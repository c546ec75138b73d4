"""What stands before the application: hosts, the token, sizes and patience. Plain ASGI."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ragq.pipelines.serving.limits import Limits
from ragq.pipelines.serving.metrics import Metrics

__all__ = ["Guard"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = {"/", "/health", "/openapi.json"}  # they show nothing of the index
KNOWN = OPEN | {"/v1/search", "/v1/search/batch", "/v1/get", "/v1/info", "/metrics"}
DRAIN_SECONDS = 1.0
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Refused(Exception):  # noqa: N818 - it never leaves this module
    """A request that goes no further."""

    def __init__(self, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class Guard:
    """Refuse what is too large, too slow or not allowed, before the application sees it; count what passes.

    Parameters
    ----------
    app : ASGI application
    limits : Limits
    metrics : Metrics
    token : str, optional
        What ``Authorization: Bearer …`` must carry; compared in constant time.
    hosts : set of str, optional
        Names that the ``Host`` header may carry, without the port, so that a page of another site cannot reach a
        server on this machine through a name of its own; None allows all.
    """

    def __init__(
        self, app: App, limits: Limits, metrics: Metrics, token: str | None = None, hosts: set[str] | None = None
    ) -> None:
        self.app, self.limits, self.metrics, self.hosts = app, limits, metrics, hosts
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            headers = dict(scope["headers"])
            try:
                self._check(scope["path"], headers)
                body = await self._body(headers, receive)
            except Refused as refusal:
                await drained(receive)
                await refuse(answer, refusal)
                return
            await self.app(scope, replay(body, receive), answer)
        finally:
            path = scope["path"] if scope["path"] in KNOWN else "other"
            self.metrics.add("ragq_requests_total", path=path, status=str(status))
            self.metrics.observe("ragq_request_seconds", time.perf_counter() - started, path=path)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Raise `Refused` on a foreign host, a missing token, or a body that is announced too large."""
        if self.hosts is not None and host_name(headers.get(b"host", b"")) not in self.hosts:
            raise Refused(421, "This server does not answer to that host name. Allow it with --allow-host.")
        if self._token is not None and path not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                raise Refused(401, "Send the token: Authorization: Bearer …", (b"www-authenticate", b"Bearer"))
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 15 or int(length) > self.limits.body:
            raise Refused(413, f"A request may have {self.limits.body} bytes.")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Return the body; raise `Refused` when it is too large or comes too slowly."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "The client has gone.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.limits.body:
                        raise Refused(413, f"A request may have {self.limits.body} bytes.")
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise Refused(408, f"A request must arrive within {self.limits.body_seconds:g} s.") from None
        if size and headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise Refused(415, "Send JSON, with Content-Type: application/json.")  # no form of another site does
        return b"".join(parts)


def host_name(host: bytes) -> str:
    """Return the name in a ``Host`` header, without the port and brackets."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands out a body that was read already."""
    read = False

    async def again() -> Message:
        nonlocal read
        if not read:
            read = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def drained(receive: Receive) -> None:
    """Read what a refused client is still sending, for a moment: it would else not read why it was refused."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return


async def refuse(send: Send, refusal: Refused) -> None:
    """Send a refusal, and end the connection."""
    body = json.dumps({"detail": refusal.detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *refusal.headers,
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
