"""The HTTP API: routes to `Service`, errors to status codes, and the search page."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ragq
from ragq.errors import InvalidArgumentError, RagqError, missing_extra
from ragq.pipelines.serving.guard import Guard
from ragq.pipelines.serving.limits import BusyError, UnavailableError
from ragq.pipelines.serving.schemas import (
    BatchRequest,
    BatchResponse,
    Failure,
    GetRequest,
    GetResponse,
    Options,
    SearchRequest,
    SearchResponse,
)
from ragq.pipelines.serving.service import Service, timed_out
from ragq.retrievers.structures.base import Probe

__all__ = ["make_app", "page"]

logger = logging.getLogger("ragq.serve")
PAGE = Path(__file__).with_name("page.html")
FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "A wrong argument."},
    401: {"model": Failure, "description": "No token, or a wrong one."},
    408: {"model": Failure, "description": "The request came too slowly."},
    413: {"model": Failure, "description": "The request is too large."},
    415: {"model": Failure, "description": "The request is no JSON."},
    422: {"model": Failure, "description": "A field that is missing, unknown or of another type."},
    429: {"model": Failure, "description": "Too many queries wait; Retry-After says when to come back."},
    503: {"model": Failure, "description": "A replica is missing, or the answer took too long."},
}


def page() -> tuple[bytes, str]:
    """Return the search page, and the policy that lets it run its own script and style and talk to this server only."""
    body = PAGE.read_bytes()

    def digest(tag: bytes) -> str:
        inner = re.search(rb"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
        assert inner is not None
        return "'sha256-" + base64.b64encode(hashlib.sha256(inner[1]).digest()).decode() + "'"

    policy = (
        f"default-src 'none'; script-src {digest(b'script')}; style-src {digest(b'style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return body, policy


def finite(value: Any) -> Any:
    """Return a JSON value with null in place of NaN and infinity."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_app(
    service: Service, *, token: str | None = None, hosts: set[str] | None = None, reload_seconds: float = 1.0
) -> Guard:
    """Return the application of a service.

    Parameters
    ----------
    service : Service
        Started and stopped with the application.
    token, hosts
        See `Guard`.
    reload_seconds : float
        How often to look for a new generation.

    Raises
    ------
    MissingExtraError
        The extra ``serve`` is not installed.
    """
    try:
        from fastapi import FastAPI
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import Response
    except ImportError:
        raise missing_extra("fastapi", "serve") from None

    def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
        try:
            body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError:  # metadata with NaN, which is Python's JSON and nobody else's
            body = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"))
        return Response(body.encode("utf-8", "backslashreplace"), status, headers, "application/json")

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        watcher = asyncio.create_task(service.fleet.watch(reload_seconds))
        yield
        watcher.cancel()

    app = FastAPI(
        title="ragq",
        version=ragq.__version__,
        description="Search of one index.",
        docs_url=None,  # they would load scripts of another host
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lead to whatever host the client named
        lifespan=lifespan,
    )

    async def refused(_: Any, error: Exception) -> Any:
        if isinstance(error, InvalidArgumentError):
            return reply({"detail": str(error)}, 400)
        if isinstance(error, BusyError):
            return reply({"detail": str(error)}, 429, {"Retry-After": "1"})
        if isinstance(error, TimeoutError):
            error = timed_out()
        if isinstance(error, UnavailableError):
            return reply({"detail": str(error)}, 503, {"Retry-After": "1"})
        logger.error("a request failed: %s", error)  # with paths, which are nobody else's business
        return reply({"detail": "The index cannot be read; the server's log says why."}, 500)

    async def malformed(_: Any, error: Any) -> Any:
        places = [(".".join(map(str, e["loc"][1:])) or "body", e["msg"]) for e in error.errors()[:3]]
        return reply({"detail": "; ".join(f"{place}: {message}" for place, message in places)}, 422)

    app.add_exception_handler(RagqError, refused)
    app.add_exception_handler(TimeoutError, refused)
    app.add_exception_handler(RequestValidationError, malformed)

    def probe(body: Options) -> Probe:
        return Probe(body.nprobe, body.ef_search, body.exact, body.candidates)

    @app.post("/v1/search", response_model=SearchResponse, responses=FAILURES, summary="Search with one question")
    async def search(body: SearchRequest) -> Any:
        queries = None if body.query is None else [body.query]
        embeddings = None if body.embedding is None else [body.embedding]
        generation, seconds, hits = await service.search(queries, embeddings, body.k, body.where, probe(body))
        return reply({"generation": generation, "seconds": round(seconds, 6), "hits": hits[0]})

    @app.post("/v1/search/batch", response_model=BatchResponse, responses=FAILURES, summary="Search with several")
    async def search_batch(body: BatchRequest) -> Any:
        answer = await service.search(body.queries, body.embeddings, body.k, body.where, probe(body))
        return reply({"generation": answer[0], "seconds": round(answer[1], 6), "results": answer[2]})

    @app.post("/v1/get", response_model=GetResponse, responses=FAILURES, summary="Documents by id")
    async def get(body: GetRequest) -> Any:
        generation, documents = await service.get(body.ids)
        return reply({"generation": generation, "documents": documents})

    @app.get("/v1/info", summary="What the index is")
    async def info() -> Any:
        return reply(await service.info())

    @app.get("/health", summary="200 when every replica answers, else 503")
    async def health() -> Any:
        ready = service.fleet.ready
        return reply({"status": "ok" if ready else "unavailable"}, 200 if ready else 503)

    @app.get("/metrics", summary="Prometheus")
    async def metrics() -> Any:
        service.metrics.set("ragq_waiting_queries", service.waiting)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    content, policy = page()

    @app.get("/", include_in_schema=False)
    async def index() -> Any:
        return Response(content, headers={"Content-Security-Policy": policy}, media_type="text/html; charset=utf-8")

    return Guard(app, service.limits, service.metrics, token, hosts)
