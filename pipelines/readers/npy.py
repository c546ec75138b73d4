"""`.npy` files read by blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.errors import InvalidArgumentError

__all__ = ["NpyFile"]


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
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            reason = (str(error).splitlines() or ["not an .npy file"])[0]
            raise InvalidArgumentError(f"{path} cannot be read as .npy: {reason}") from error
        if not isinstance(mapped, np.memmap):
            raise InvalidArgumentError(f"{path} cannot be read as .npy: it is an archive of arrays. Save one as .npy.")
        self.shape: tuple[int, ...] = mapped.shape
        self.dtype: np.dtype[Any] = mapped.dtype
        self._offset = int(mapped.offset)
        self._in_rows = bool(mapped.flags.c_contiguous)

    def blocks(self, size: int, start: int) -> Iterator[NDArray[Any]]:
        """Yield blocks of `size` rows from row `start` on; the last may be shorter."""
        n, tail = self.shape[0], self.shape[1:]
        if not self._in_rows:  # columns first: no block of rows lies together
            mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
            yield from (np.array(mapped[i : i + size]) for i in range(start, n, size))
            return
        width = int(np.prod(tail, dtype=np.int64))
        with self.path.open("rb") as stream:
            stream.seek(self._offset + start * width * self.dtype.itemsize)
            for i in range(start, n, size):
                rows = min(size, n - i)
                values = np.fromfile(stream, self.dtype, rows * width)
                if values.size < rows * width:
                    raise InvalidArgumentError(f"{self.path} ends in row {i + values.size // max(width, 1)} of {n}.")
                yield values.reshape(rows, *tail)
