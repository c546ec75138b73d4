"""JSON lines: one object a line, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from ragq.errors import InvalidArgumentError

__all__ = ["estimate", "open_bytes", "records"]

_COUNTED_BYTES = 64 * 2**20  # larger files are estimated from this much of their beginning
_BLOCK = 2**20


def open_bytes(path: Path) -> IO[bytes]:
    """Open a plain or gzipped file for reading."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def records(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield (line number from 1, object) of each line that is not blank; None in place of one that is not UTF-8.

    Raises
    ------
    InvalidArgumentError
        A line is not a JSON object; the message has path and line.
    """
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.isspace():
                continue
            try:
                record = json.loads(line.decode(), parse_constant=_not_json)
            except UnicodeDecodeError:
                yield number, None
                continue
            except (ValueError, RecursionError) as error:
                raise InvalidArgumentError(f"{path}:{number}: not valid JSON: {error}.") from error
            if not isinstance(record, dict):
                raise InvalidArgumentError(f"{path}:{number}: must be a JSON object. Got {type(record).__name__}.")
            yield number, record


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def estimate(path: Path) -> int | None:
    """Return the number of lines; an estimate for a large file, None for a gzipped one."""
    if path.suffix == ".gz":
        return None
    size, seen, lines, last = path.stat().st_size, 0, 0, b"\n"
    with path.open("rb") as stream:
        while seen < _COUNTED_BYTES and (block := stream.read(_BLOCK)):
            seen += len(block)
            lines += block.count(b"\n")
            last = block[-1:]
    if seen >= size:
        return lines + (last != b"\n")
    return round(lines * size / seen)
