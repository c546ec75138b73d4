"""Rows of the docs files as documents again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragq.buffers import arrow_indices
from ragq.errors import InvalidArgumentError
from ragq.snapshot import Snapshot
from ragq.types import Document

__all__ = ["COLUMNS", "check_ids", "fetch", "join_passages"]

COLUMNS = ["id", "passage", "title", "text", "metadata", "start", "source"]


def check_ids(ids: str | Iterable[str]) -> list[str]:
    """Return document ids as a list, one id as a list of one."""
    wanted = [ids] if isinstance(ids, str) else list(ids)
    for given in wanted:
        if not isinstance(given, str):
            raise InvalidArgumentError(f"An id must be a string. Got {given!r}.")
    return wanted


def fetch(snapshot: Snapshot, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Return some columns of rows of the whole, in the order of `rows`."""
    parts, positions = [], []
    for number, where, local in snapshot.locate(rows):
        parts.append(snapshot.shards[number].docs(local, columns))
        positions.append(where)
    back = np.empty(len(rows), np.int64)
    back[np.concatenate(positions)] = np.arange(len(rows))
    return pa.concat_tables(parts).take(arrow_indices(back))


def join_passages(rows: list[dict[str, Any]]) -> Document:
    """Put a document together from its passages, which may overlap."""
    text = ""
    for row in rows:
        text = text[: row["start"]].ljust(row["start"]) + row["text"]
    first = rows[0]
    return Document(first["id"], text, first["title"], json.loads(first["metadata"]), first["source"])
