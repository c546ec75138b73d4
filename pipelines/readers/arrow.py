"""Parquet and Arrow files, read by batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ragq.errors import InvalidArgumentError
from ragq.pipelines.readers.base import plain_json

__all__ = ["batches", "estimate", "is_vector", "records", "rows_of", "schema"]

_BATCH = 1024


def schema(path: Path) -> pa.Schema:
    """Return the schema of a Parquet or Arrow file."""
    with _readable(path):
        if path.suffix == ".parquet":
            found = pq.read_schema(path)
        else:
            with pa.OSFile(str(path)) as file:
                found = _ipc(file).schema
        _ = found.names  # decoded when they are asked for
        return found


def estimate(path: Path) -> int:
    """Return the number of rows; exact."""
    with _readable(path):
        if path.suffix == ".parquet":
            return int(pq.read_metadata(path).num_rows)
        return sum(batch.num_rows for batch in batches(path))


def batches(path: Path, columns: Sequence[str] | None = None, size: int = _BATCH) -> Iterator[pa.RecordBatch]:
    """Yield record batches of at most `size` rows, with memory for one batch and one row group's pages."""
    with _readable(path):
        if path.suffix == ".parquet":
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=size, columns=columns):
                    batch.validate(full=True)
                    yield batch
            return
        # Read, not mapped: the pages of a mapped file would count as memory of this process.
        with pa.OSFile(str(path)) as stream:
            reader = _ipc(stream)
            whole = (
                (reader.get_batch(i) for i in range(reader.num_record_batches))
                if isinstance(reader, pa.RecordBatchFileReader)
                else reader
            )
            for batch in whole:
                batch.validate(full=True)  # offsets that lead out of the file's buffers, text that is no UTF-8
                chosen = batch.select(list(columns)) if columns is not None else batch
                for start in range(0, batch.num_rows, size):
                    yield chosen.slice(start, size)


def _ipc(file: pa.NativeFile) -> Any:
    try:
        return pa.ipc.open_file(file)
    except pa.ArrowInvalid:  # the streaming form has no footer
        file.seek(0)
        return pa.ipc.open_stream(file)


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 0, row) of a file; columns of vectors are left out."""
    found = schema(path)
    row = 0
    for batch in batches(path, [field.name for field in found if not is_vector(field.type)]):
        for record in rows_of(batch, str(path), row):
            yield row, record
            row += 1


def rows_of(batch: pa.RecordBatch, source: str, start: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch as JSON objects; `start` is the number of its first row in `source`."""
    names = [field.name for field in batch.schema if not is_vector(field.type)]
    for row, record in enumerate(batch.select(names).to_pylist(), start):
        yield {name: plain_json(value, f"{source}:{row}: '{name}'", columnar=True) for name, value in record.items()}


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column holds embeddings, which are no metadata."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_floating(kind.value_type)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or ["unreadable"])[0]
        kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
        raise InvalidArgumentError(f"{path} cannot be read as {kind}: {reason[:200]}") from error
