"""Ids that come apart from their embeddings: a text file, `.npy`, JSON lines, a column of a table, or a list."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np

from ragq.errors import InvalidArgumentError
from ragq.pipelines.readers import arrow, jsonl
from ragq.pipelines.readers.npy import NpyFile

__all__ = ["TABLES", "open_ids", "split_column"]

TABLES = (".parquet", ".arrow", ".feather")


def split_column(spec: str) -> tuple[Path, str | None]:
    """Split ``x.parquet:column`` or ``x.parquet column``; a path that exists is never split."""
    path, column = spec, None
    if not Path(spec).exists():
        for suffix in TABLES:
            for separator in (":", " "):
                head, found, tail = spec.partition(suffix + separator)
                if found and Path(head + suffix).exists():
                    path, column = head + suffix, tail.strip()
    result = Path(path).expanduser()
    if not result.is_file():
        raise InvalidArgumentError(f"No such file: {spec!r}.")
    return result, column


def open_ids(spec: Any) -> tuple[int, Callable[[], Iterator[str]]]:
    """Return (count, a function that starts a stream of ids) of what `open_embeddings` takes as ids."""
    if not isinstance(spec, (str, Path)):
        known: Any = spec if isinstance(spec, Sized) else list(spec)
        return len(known), lambda: (_id(value, f"ids[{i}]") for i, value in enumerate(known))
    path, column = split_column(str(spec))
    if path.suffix == ".npy":
        file = NpyFile(path)
        if len(file.shape) != 1 or file.dtype.kind not in "Uiu":
            raise InvalidArgumentError(f"{path} must be a list of strings. Got shape {file.shape} of {file.dtype}.")
        return file.shape[0], lambda: _npy_ids(file)
    if path.suffix in TABLES:
        return _table_ids(path, column)
    if path.suffix in (".jsonl", ".ndjson"):
        return sum(1 for line in _lines(path) if line.strip()), lambda: _jsonl_ids(path)
    return sum(1 for _ in _lines(path)), lambda: _text_ids(path)


def _id(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    raise InvalidArgumentError(f"{where}: an id must be a string. Got {type(value).__name__}.")


def _npy_ids(file: NpyFile) -> Iterator[str]:
    for start in range(0, file.shape[0], 4096):
        block = file.rows(start, start + 4096)
        if block.dtype.kind == "U" and block.dtype.itemsize:
            letters = block.astype(block.dtype.newbyteorder("=")).view(np.uint32)
            if (letters > sys.maxunicode).any():
                raise InvalidArgumentError(f"{file.path} holds text that is not Unicode.")
        for value in block.tolist():
            yield _id(value, str(file.path))


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from stream


def _text_ids(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        try:
            yield line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"{path}:{number}: not UTF-8.") from error


def _jsonl_ids(path: Path) -> Iterator[str]:
    for number, record in jsonl.records(path):
        value = None if record is None else record.get("_id", record.get("id"))
        yield _id(value, f"{path}:{number}")


def _table_ids(path: Path, column: str | None) -> tuple[int, Callable[[], Iterator[str]]]:
    names = arrow.schema(path).names
    chosen = column or next((name for name in ("_id", "id") if name in names), names[0] if len(names) == 1 else None)
    if chosen is None or chosen not in names:
        raise InvalidArgumentError(
            f"{path} needs the name of a column of ids, {path}:column. It has {', '.join(names)}."
        )

    def stream() -> Iterator[str]:
        for batch in arrow.batches(path, [chosen]):
            yield from (_id(value, f"{path}:{chosen}") for value in batch.column(0).to_pylist())

    return arrow.estimate(path), stream
