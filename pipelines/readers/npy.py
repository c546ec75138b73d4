"""`.npy` files read by blocks of rows."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.errors import InvalidArgumentError

__all__ = ["NpyFile", "readable"]

DAMAGE = (
    *(ValueError, EOFError, TypeError, OverflowError, MemoryError, KeyError, OSError, SyntaxError, TokenError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise on files that they cannot read."""


@contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into `InvalidArgumentError`."""
    try:
        yield
    except InvalidArgumentError:
        raise
    except DAMAGE as error:
        reason = (str(error).splitlines() or [f"not an {kind} file"])[0]
        raise InvalidArgumentError(f"{path} cannot be read as {kind}: {reason}") from error


class NpyFile:
    """An array in a `.npy` file: its shape and dtype, and its rows by blocks.

    Blocks are read, not mapped, so that a pass over the file takes the memory of one block: pages of a mapped file
    count as memory of the process.

    Raises
    ------
    InvalidArgumentError
        Not a `.npy` file, truncated, or one of Python objects (which only pickle could load).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with readable(path, ".npy"):
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(mapped, np.memmap):
            raise InvalidArgumentError(f"{path} cannot be read as .npy: it is an archive of arrays. Save one as .npy.")
        self.shape: tuple[int, ...] = mapped.shape
        self.dtype: np.dtype[Any] = mapped.dtype
        self._offset = int(mapped.offset)
        self._in_rows = bool(mapped.flags.c_contiguous)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start` to `stop` (or the end), read from the file."""
        n, tail = self.shape[0], self.shape[1:]
        count = max(0, min(stop, n) - start)
        if not self._in_rows:  # columns first: no block of rows lies together
            mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
            return np.array(mapped[start : start + count])
        width = int(np.prod(tail, dtype=np.int64))
        with self.path.open("rb") as stream:
            stream.seek(self._offset + start * width * self.dtype.itemsize)
            values = np.fromfile(stream, self.dtype, count * width)
        if values.size < count * width:
            raise InvalidArgumentError(f"{self.path} ends in row {start + values.size // max(width, 1)} of {n}.")
        return values.reshape(count, *tail)
