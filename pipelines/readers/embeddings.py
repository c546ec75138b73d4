"""Embeddings that exist already, as a stream of float32 rows: `.npy` files, list columns of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragq.errors import InvalidArgumentError
from ragq.pipelines.readers import arrow, jsonl
from ragq.pipelines.readers.npy import NpyFile
from ragq.types import Document

__all__ = ["Embeddings", "aligned_batches", "check_rows", "open_embeddings"]

_TABLES = (".parquet", ".arrow", ".feather")
Floats = NDArray[np.float32]


class Embeddings:
    """Rows of ready embeddings; memory holds one batch.

    Attributes
    ----------
    name : str
        The file, for messages.
    shape : tuple of int
        (rows, dim).
    dtype : numpy.dtype
        As stored: float16, float32 or float64.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        blocks: Callable[[int, int], Iterator[NDArray[Any]]],
        ids: Callable[[], Iterator[str]] | None = None,
    ) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._blocks = blocks
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

    def ids(self, start: int = 0) -> Iterator[str]:
        """Yield the ids that came with the rows, from row `start` on."""
        if self._ids is None:
            raise InvalidArgumentError(f"{self.name} has no ids. Give them: ids=….")
        return islice(self._ids(), start, None)

    def batches(self, size: int = 4096, start: int = 0, *, check: bool = True) -> Iterator[Floats]:
        """Yield float32 rows, `size` at a time, from row `start` on.

        Parameters
        ----------
        size : int
            Rows of a batch; only the last has fewer.
        start : int
            First row.
        check : bool
            Refuse NaN and infinity, with the id (or number) of the row. False where the caller names rows better.
        """
        names = self.ids(start) if check and self.has_ids else None
        for block in self._blocks(size, start):
            rows = _float32(block)
            if check:
                check_rows(rows, list(islice(names, len(rows))) if names else range(start, start + len(rows)))
            start += len(rows)
            yield rows


def check_rows(rows: Floats, ids: Sequence[Any]) -> Floats:
    """Return `rows` when all of them are finite.

    Raises
    ------
    InvalidArgumentError
        A row holds NaN or infinity; the message has its entry of `ids`.
    """
    finite = np.isfinite(rows.sum(axis=1, dtype=np.float64))  # a float64 sum of finite float32 cannot overflow
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InvalidArgumentError(f"Embeddings must be finite. Row {ids[row]!r} holds NaN or infinity.")
    return rows


def _float32(block: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused by `check_rows`
        return np.ascontiguousarray(block, dtype=np.float32)


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
    if isinstance(spec, (str, Path)):
        path, column = _split(str(spec))
        if path.suffix == ".npy":
            found = _open_npy(path)
        elif path.suffix in _TABLES:
            found = _open_table(path, column)
        else:
            more = " Save its array as .npy." if path.suffix == ".npz" else ""
            raise InvalidArgumentError(f"Embeddings must be .npy, .parquet or .arrow. Got {str(spec)!r}.{more}")
    else:
        found = _open_array(np.asarray(spec))
    if found.dim == 0 or (dim is not None and found.dim != dim):
        raise InvalidArgumentError(f"{found.name} must have {dim or 'at least 1'} dimensions. Got {found.dim}.")
    if ids is not None:
        count, found._ids = _open_ids(ids)
        if count != len(found):
            raise InvalidArgumentError(f"{found.name} has {len(found):,} rows, but there are {count:,} ids.")
    return found


def aligned_batches(
    embeddings: Embeddings, documents: Iterable[Document] | None = None, *, size: int = 4096, start: int = 0
) -> Iterator[tuple[list[Document], Floats]]:
    """Yield (documents, rows) side by side: row i belongs to document i.

    Parameters
    ----------
    embeddings : Embeddings
        The rows; ids that came with them must be those of the documents, in the same order.
    documents : iterable of Document, optional
        From document `start` on (a reader with ``aligned=True, skip=start``). Without it, a document is its id alone.
    size : int
        Documents of a batch.
    start : int
        First row.

    Raises
    ------
    InvalidArgumentError
        The numbers differ, an id differs, or a row is not finite (its id is named).
    """
    ids: Iterator[str | None] = embeddings.ids(start) if embeddings.has_ids else iter(())
    if documents is None:
        documents = (Document(str(name), "") for name in embeddings.ids(start))
    stream = iter(documents)
    row = start
    for rows in embeddings.batches(size, start, check=False):
        batch = list(islice(stream, len(rows)))
        if len(batch) < len(rows):
            raise _other_number(embeddings, f"{row + len(batch):,} documents")
        for document, name in zip_longest(batch, islice(ids, len(batch))):
            if name is not None and name != document.id:
                raise InvalidArgumentError(
                    f"Row {row} of {embeddings.name} has the id {name!r}, but the document there is {document.id!r}."
                )
        check_rows(rows, [document.id for document in batch])
        row += len(rows)
        yield batch, rows
    if next(stream, None) is not None:
        raise _other_number(embeddings, "more documents")


def _other_number(embeddings: Embeddings, words: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{embeddings.name} has {len(embeddings):,} rows, but there are {words}.")


def _split(spec: str) -> tuple[Path, str | None]:
    """Split ``x.parquet:column`` or ``x.parquet column``; a path that exists is never split."""
    path, column = spec, None
    if not Path(spec).exists():
        for suffix in _TABLES:
            for separator in (":", " "):
                head, found, tail = spec.partition(suffix + separator)
                if found and Path(head + suffix).exists():
                    path, column = head + suffix, tail.strip()
    result = Path(path).expanduser()
    if not result.is_file():
        raise InvalidArgumentError(f"No such file: {spec!r}.")
    return result, column


def _open_array(array: NDArray[Any], name: str = "the array given") -> Embeddings:
    _check_shape(name, array.shape, array.dtype)
    blocks = lambda size, start: (array[i : i + size] for i in range(start, len(array), size))  # noqa: E731
    return Embeddings(name, (array.shape[0], array.shape[1]), array.dtype, blocks)


def _open_npy(path: Path) -> Embeddings:
    file = NpyFile(path)
    _check_shape(str(path), file.shape, file.dtype)
    return Embeddings(str(path), (file.shape[0], file.shape[1]), file.dtype, file.blocks)


def _check_shape(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != 2:
        raise InvalidArgumentError(f"{name} must have shape (n, dim). Got shape {shape}.")
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise InvalidArgumentError(f"{name} must hold float16, float32 or float64. Got {dtype}.")


def _open_table(path: Path, column: str | None) -> Embeddings:
    schema = arrow.schema(path)
    vectors = [field.name for field in schema if _is_list(field.type) and pa.types.is_floating(field.type.value_type)]
    if column is None and len(vectors) == 1:
        column = vectors[0]
    if column not in vectors:
        raise InvalidArgumentError(
            f"{path} needs the name of a column of lists of floats, {path}:column. "
            f"Got {column!r}; it has {', '.join(map(repr, vectors)) or 'none'}."
        )
    kind = schema.field(column).type
    rows = arrow.estimate(path)
    name = f"{path}:{column}"
    first = next(arrow.batches(path, [column], 1), None)
    dim = 0 if first is None or not rows else _matrix(first.column(0), name, 0).shape[1]

    def blocks(size: int, start: int) -> Iterator[NDArray[Any]]:
        row = 0
        for batch in arrow.batches(path, [column], size):
            if row + batch.num_rows > start:
                values = batch.column(0).slice(max(0, start - row))
                yield _matrix(values, name, max(row, start), dim)
            row += batch.num_rows

    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    return Embeddings(name, (rows, dim), dtype, lambda size, start: _regroup(blocks(size, start), size))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _matrix(column: pa.Array, name: str, row: int, dim: int | None = None) -> NDArray[Any]:
    """Return a list column as an array of shape (rows, dim); `row` is the number of its first row."""
    values = column.flatten()
    lengths = column.value_lengths()
    width = lengths[0].as_py() if dim is None else dim
    wrong: Any = [] if column.null_count else np.flatnonzero(lengths.to_numpy(zero_copy_only=False) != width)
    if column.null_count or values.null_count or len(wrong):
        where = f"Row {row + int(wrong[0])} of {name}" if len(wrong) else name
        raise InvalidArgumentError(f"{where} must hold {width} numbers in every row, without nulls.")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), width)


def _regroup(blocks: Iterator[NDArray[Any]], size: int) -> Iterator[NDArray[Any]]:
    """Yield the rows of blocks of any length as blocks of exactly `size`; the last may be shorter."""
    held: list[NDArray[Any]] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        if count >= size:
            rows = held[0] if len(held) == 1 else np.concatenate(held)
            whole = count - count % size
            yield from (rows[i : i + size] for i in range(0, whole, size))
            held, count = [rows[whole:]], count - whole
    if count:
        yield held[0] if len(held) == 1 else np.concatenate(held)


def _open_ids(spec: Any) -> tuple[int, Callable[[], Iterator[str]]]:
    """Return (count, a function that starts a stream of ids) of what `open_embeddings` takes as ids."""
    if not isinstance(spec, (str, Path)):
        known: Any = spec if isinstance(spec, Sized) else list(spec)
        return len(known), lambda: (_id(value, f"ids[{i}]") for i, value in enumerate(known))
    path, column = _split(str(spec))
    if path.suffix == ".npy":
        file = NpyFile(path)
        if len(file.shape) != 1 or file.dtype.kind not in "Uiu":
            raise InvalidArgumentError(f"{path} must be a list of strings. Got shape {file.shape} of {file.dtype}.")
        blocks = lambda: chain.from_iterable(block.tolist() for block in file.blocks(4096, 0))  # noqa: E731
        return file.shape[0], lambda: (_id(value, str(path)) for value in blocks())
    if path.suffix in _TABLES:
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
    if chosen not in names:
        raise InvalidArgumentError(
            f"{path} needs the name of a column of ids, {path}:column. It has {', '.join(names)}."
        )

    def stream() -> Iterator[str]:
        for batch in arrow.batches(path, [chosen]):
            yield from (_id(value, f"{path}:{chosen}") for value in batch.column(0).to_pylist())

    return arrow.estimate(path), stream
