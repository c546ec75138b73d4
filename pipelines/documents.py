"""Rows of the docs files as documents again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragq.buffers import arrow_indices
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.snapshot import Snapshot
from ragq.types import Document

__all__ = ["COLUMNS", "check_ids", "fetch", "join_passages", "metadata_of"]

LARGEST_GAP = 1 << 24  # characters of blanks between two passages
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


def metadata_of(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the metadata of a row; raise `CorruptIndexError` when it is not a JSON object."""
    try:
        metadata = json.loads(row["metadata"])
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise CorruptIndexError(f"{folder} holds metadata of {row['id'][:100]!r} that is not a JSON object.")
    return metadata


def join_passages(rows: list[dict[str, Any]], folder: Path) -> Document:
    """Put a document together from its passages, which may overlap; `folder` is for messages.

    Raises
    ------
    CorruptIndexError
        A passage lies before its document or far behind its end, or the metadata is not a JSON object.
    """
    text = ""
    for row in rows:
        if not 0 <= row["start"] <= len(text) + LARGEST_GAP:
            raise CorruptIndexError(f"{folder} holds a passage of {row['id'][:100]!r} outside of its document.")
        text = text[: row["start"]].ljust(row["start"]) + row["text"]
    first = rows[0]
    return Document(first["id"], text, first["title"], metadata_of(first, folder), first["source"])
