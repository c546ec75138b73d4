"""CSV and TSV with a header line, plain or gzipped."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragq.errors import InvalidArgumentError
from ragq.pipelines.readers.jsonl import estimate, open_bytes

__all__ = ["estimate", "records"]

_MAX_FIELD = 2**30
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+([eE][-+]?[0-9]{1,2})?")
_STRINGS = ("id", "_id", "text", "title")


def records(path: Path, strings: tuple[str, ...] = ()) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield (line number, row) of each row; None in place of one that is not UTF-8.

    A value that is written as JSON writes a number becomes one, so that filters can compare it; an empty value becomes
    None. The columns id, text and title, and those named in `strings`, stay strings.

    Raises
    ------
    InvalidArgumentError
        No header, a repeated column, or a row with another number of columns; the message has path and line.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))  # the default of 128 KiB is less than a long text
    kept = {*_STRINGS, *strings}
    with open_bytes(path) as stream:
        # An undecodable byte becomes a lone surrogate, which marks its row and leaves the others alone.
        lines = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        first = lines.readline()
        delimiter = _delimiter(path, first)
        header = next(csv.reader([first], delimiter=delimiter), [])
        if not first.strip() or len(set(header)) != len(header):
            raise InvalidArgumentError(
                f"{path}:1: the first line must name the columns, each once. Got {first.strip()!r}."
            )
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise InvalidArgumentError(f"{path}:{rows.line_num + 1}: not valid CSV: {error}.") from error
            if row is None:
                return
            line = rows.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                raise InvalidArgumentError(f"{path}:{line}: must have {len(header)} columns. Got {len(row)}.")
            if any(not value.isascii() and _undecodable(value) for value in row):
                yield line, None
                continue
            pairs = zip(header, row, strict=True)
            yield line, {name: (value or None) if name in kept else _value(value) for name, value in pairs}


def _delimiter(path: Path, header: str) -> str:
    if ".tsv" in path.suffixes:
        return "\t"
    return ";" if "," not in header and ";" in header else ","


def _undecodable(value: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in value)


def _value(text: str) -> str | int | float | None:
    if not text:
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    return text
