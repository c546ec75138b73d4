"""What a server accepts, and the errors with which it refuses the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragq.errors import InvalidArgumentError, RagqError
from ragq.filters import check_where

__all__ = ["BusyError", "Limits", "UnavailableError", "check_filter"]

DEEPEST_FILTER = 8


class BusyError(RagqError):
    """More queries wait than the server takes: HTTP 429."""


class UnavailableError(RagqError):
    """A replica is missing, or the answer took too long: HTTP 503."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one server; a request beyond them is refused before it costs anything.

    Attributes
    ----------
    body : int
        Bytes of a request's body.
    k : int
        Hits a query.
    queries : int
        Queries of one batch request.
    text : int
        Characters of a query or an id.
    tokens : int
        Vectors of a query of a multi-vector index.
    ids : int
        Ids of one get.
    conditions : int
        Conditions of a filter, and values of its lists, together.
    answer : int
        Bytes of text in one answer.
    waiting : int
        Queries that may wait for their turn; more get 429.
    filters : int
        Requests that may wait for the evaluation of a filter; more get 429.
    batch : int
        Queries that are scanned together.
    connections : int
        Open connections; more get 503.
    header_seconds, body_seconds, answer_seconds, write_seconds : float
        Time for a client to send its headers, its body, for the server to answer, and for a client to take the answer.
    """

    body: int = 2 << 20
    k: int = 1000
    queries: int = 256
    text: int = 20_000
    tokens: int = 1024
    ids: int = 1000
    conditions: int = 256
    answer: int = 64 << 20
    waiting: int = 1024
    filters: int = 64
    batch: int = 64
    connections: int = 1024
    header_seconds: float = 5.0
    body_seconds: float = 10.0
    answer_seconds: float = 30.0
    write_seconds: float = 20.0


def check_filter(where: Mapping[str, Any], most: int) -> None:
    """Raise `InvalidArgumentError` when a filter is not well formed, too deep, or holds more than `most` conditions."""
    check_where(where)
    left = most

    def visit(value: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise InvalidArgumentError(f"'where' may hold {most} conditions and values. Got more.")
        if depth > 2 * DEEPEST_FILTER:
            raise InvalidArgumentError(f"'where' may hold filters within filters {DEEPEST_FILTER} deep. Got more.")
        if isinstance(value, (Mapping, list)):
            for part in value.values() if isinstance(value, Mapping) else value:
                visit(part, depth + 1)

    visit(where, 0)
