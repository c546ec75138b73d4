"""NumPy and Arrow views of the same memory, without a copy.

`pyarrow.array` and `to_numpy` look for pandas and import it, a third of a second that a search must not wait for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["arrow_indices", "numpy_values"]


def arrow_indices(rows: NDArray[np.int64]) -> pa.Array:
    """Return row numbers as an Arrow array, for ``take``."""
    values = np.ascontiguousarray(rows, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def numpy_values(column: pa.Array, dtype: str) -> NDArray[Any]:
    """Return a column of numbers without nulls as a read-only array of `dtype`, which is its own."""
    size = np.dtype(dtype).itemsize
    return np.frombuffer(column.buffers()[1] or b"", dtype, len(column), column.offset * size)
