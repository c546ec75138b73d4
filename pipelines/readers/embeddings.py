"""Embeddings that exist already, by blocks of float32 rows: `.npy` files, list columns of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from ragq.errors import InvalidArgumentError
from ragq.pipelines.readers import arrow
from ragq.pipelines.readers.base import check_id
from ragq.pipelines.readers.ids import TABLES, open_ids, split_column
from ragq.pipelines.readers.npy import NpyFile
from ragq.types import Document

__all__ = ["Embeddings", "open_embeddings"]

_BLOCK = 8192
Floats = NDArray[np.float32]


class _Rows(Protocol):
    def rows(self, start: int, stop: int) -> NDArray[Any]: ...


class Embeddings:
    """Ready embeddings; memory holds the rows that are asked for, never the file.

    Attributes
    ----------
    name : str
        The file, for messages.
    shape : tuple of int
        (rows, dim).
    dtype : numpy.dtype
        As stored: float16, float32 or float64. What comes out is float32 and not checked for NaN.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        stored: _Rows,
        ids: Callable[[], Iterator[str]] | None = None,
    ) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._stored = stored
        self._ids = ids

    @property
    def dim(self) -> int:
        """Dimensions of a row."""
        return self.shape[1]

    @property
    def has_ids(self) -> bool:
        """Whether ids came with the rows."""
        return self._ids is not None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def rows(self, start: int, stop: int) -> Floats:
        """Return rows `start` to `stop` (or the end) as float32; quick when it goes on where the last call ended."""
        block = self._stored.rows(start, min(stop, len(self)))
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the caller refuses
            return np.ascontiguousarray(block, dtype=np.float32)

    def batches(self, size: int = _BLOCK, start: int = 0) -> Iterator[Floats]:
        """Yield float32 rows, `size` at a time, from row `start` on."""
        for first in range(start, len(self), size):
            yield self.rows(first, first + size)

    def take(self, rows: ArrayLike) -> Floats:
        """Return chosen rows, float32 of shape (len(rows), dim); `rows` ascends. One pass over the file."""
        chosen = np.asarray(rows, np.int64)
        taken = np.empty((len(chosen), self.dim), np.float32)
        blocks = chosen // _BLOCK
        for block in np.unique(blocks):
            inside = blocks == block
            first = int(block) * _BLOCK
            taken[inside] = self.rows(first, first + _BLOCK)[chosen[inside] - first]
        return taken

    def ids(self, skip: int = 0) -> Iterator[str]:
        """Yield the ids that came with the rows, from row `skip` on."""
        if self._ids is None:
            raise InvalidArgumentError(f"{self.name} comes without ids. Give them, one a row: --ids, or ids=….")
        return islice(self._ids(), skip, None)

    def documents(self, skip: int = 0, documents: Iterable[Document] | None = None) -> Iterator[Document]:
        """Yield the documents of the rows from row `skip` on.

        Parameters
        ----------
        skip : int
            First row.
        documents : iterable of Document, optional
            The documents from number `skip` on. Without them, a document is its id alone.

        Raises
        ------
        InvalidArgumentError
            An id that came with the rows is not the one of its document.
        """
        if documents is None:
            for row, name in enumerate(self.ids(skip), skip):
                check_id(name, f"Row {row} of {self.name}")
                yield Document(name, "")
            return
        names = self.ids(skip) if self.has_ids else None
        for row, document in enumerate(documents, skip):
            name = document.id if names is None else next(names, document.id)
            if name != document.id:
                raise InvalidArgumentError(
                    f"Row {row} of {self.name} has the id {name!r}, but the document there is {document.id!r}."
                )
            yield document


def open_embeddings(spec: Any, ids: Any = None, *, dim: int | None = None) -> Embeddings:
    """Open ready embeddings without loading them.

    Parameters
    ----------
    spec : str, Path or array
        ``x.npy`` of shape (n, dim); ``x.parquet:column`` or ``x.parquet column`` (or Arrow) with a list or
        fixed-size-list column of floats, whose name may be left out when it is the only one; or an array.
    ids : str, Path or sequence, optional
        One id a row: a text file with one a line, an ``.npy`` of strings, ``x.parquet:column``, the ``_id`` or ``id``
        of a ``.jsonl`` file, or a list.
    dim : int, optional
        The dimension that is needed.

    Raises
    ------
    InvalidArgumentError
        No such file, another shape, dtype or dimension, or another number of ids than rows.
    """
    if isinstance(spec, Embeddings):
        found = spec
    elif isinstance(spec, (str, Path)):
        path, column = split_column(str(spec))
        if path.suffix == ".npy":
            file = NpyFile(path)
            found = _checked(str(path), file.shape, file.dtype, file)
        elif path.suffix in TABLES:
            found = _open_table(path, column)
        else:
            more = " Save its array as .npy." if path.suffix == ".npz" else ""
            raise InvalidArgumentError(f"Embeddings must be .npy, .parquet or .arrow. Got {str(spec)!r}.{more}")
    else:
        array = np.asarray(spec)
        found = _checked("the array given", array.shape, array.dtype, _Array(array))
    if found.dim == 0 or (dim is not None and found.dim != dim):
        raise InvalidArgumentError(f"{found.name} must have {dim or 'at least 1'} dimensions. Got {found.dim}.")
    if ids is not None:
        count, found._ids = open_ids(ids)
        if count != len(found):
            raise InvalidArgumentError(f"{found.name} has {len(found):,} rows, but there are {count:,} ids.")
    return found


def _checked(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], stored: _Rows) -> Embeddings:
    if len(shape) != 2:
        raise InvalidArgumentError(f"{name} must have shape (n, dim). Got shape {shape}.")
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise InvalidArgumentError(f"{name} must hold float16, float32 or float64. Got {dtype}.")
    return Embeddings(name, (shape[0], shape[1]), dtype, stored)


class _Array:
    """Rows of an array in memory."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        return self._array[start:stop]


class _Column:
    """Rows of a list column of a table, read in order; a step back starts from the beginning."""

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column = path, column
        self.name = f"{path}:{column}"
        self.count = arrow.estimate(path)
        self.dim = 0
        self._rewind()
        if self.count:
            self.dim = self._next_block().shape[1]
            self._rewind()

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        if start < self._position:
            self._rewind()
        self._take(start - self._position)
        return self._take(stop - start)

    def _rewind(self) -> None:
        self._position = self._read = 0
        self._held: NDArray[Any] | None = None
        self._stream = arrow.batches(self.path, [self.column], _BLOCK)

    def _take(self, count: int) -> NDArray[Any]:
        """Return the next `count` rows."""
        parts = []
        self._position += count
        while count:
            block = self._held if self._held is not None and len(self._held) else self._next_block()
            parts.append(block[:count])
            self._held = block[count:]
            count -= len(parts[-1])
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def _next_block(self) -> NDArray[Any]:
        batch = next(self._stream, None)
        if batch is None:
            raise InvalidArgumentError(f"{self.name} ends in row {self._read:,} of {self.count:,}.")
        values, lengths = batch.column(0).flatten(), batch.column(0).value_lengths()
        width = self.dim or lengths[0].as_py() or 0
        whole = not (batch.column(0).null_count or values.null_count)
        wrong = np.flatnonzero(lengths.to_numpy(zero_copy_only=False) != width)
        if len(wrong) or not whole:
            where = f"Row {self._read + int(wrong[0])} of {self.name}" if len(wrong) else self.name
            raise InvalidArgumentError(f"{where} must hold {width} numbers in every row, without nulls.")
        self._read += batch.num_rows
        block: NDArray[Any] = values.to_numpy(zero_copy_only=False)
        return block.reshape(batch.num_rows, width)


def _open_table(path: Path, column: str | None) -> Embeddings:
    schema = arrow.schema(path)
    vectors = [field.name for field in schema if arrow.is_vector(field.type)]
    if column is None and len(vectors) == 1:
        column = vectors[0]
    if column is None or column not in vectors:
        raise InvalidArgumentError(
            f"{path} needs the name of a column of lists of floats, {path}:column. "
            f"Got {column!r}; it has {', '.join(map(repr, vectors)) or 'none'}."
        )
    stored = _Column(path, column)
    kind: pa.DataType = schema.field(column).type
    return _checked(stored.name, (stored.count, stored.dim), np.dtype(kind.value_type.to_pandas_dtype()), stored)
