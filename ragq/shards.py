"""Shards: immutable triples of Arrow files (codes, docs, ids), written once and then only read.

``shards/<id>.codes.arrow``
    One record batch, uncompressed, a column a `Layout` column, ``fixed_size_binary`` of its width (fp16 factors are
    2 bytes), rows padded to 64; the first buffer starts at a multiple of 64 bytes. Scanned in place.
``shards/<id>.docs.arrow``
    One row a passage, zstd, batches of `BATCH_ROWS`: `DOCS_SCHEMA`.
``shards/<id>.ids.arrow``
    One row a document, sorted by hash: the xxh3-64 of the document id, and its first row. 12 bytes a document; a
    match is compared with the id itself, in the docs file.
``deletes/<id>.<generation>.arrow``
    One uint8 column: the bitset of deleted rows.

A multi-vector index has more of them, see `ragq.token_shards`.

The readers here trust nothing in these files: sizes, types, counts and offsets are checked before use.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from ragq.buffers import arrow_indices, numpy_values
from ragq.errors import CorruptIndexError, InvalidArgumentError, StorageError
from ragq.layouts import Block, Layout, padded
from ragq.manifest import Deletes, FileEntry, ShardEntry, TokensEntry
from ragq.remote import present
from ragq.select import pack_mask, unpack_mask
from ragq.storage import HashingFile, durable_write, file_digest, storage_errors
from ragq.types import Passage

__all__ = [
    "BATCH_ROWS",
    "DOCS_SCHEMA",
    "Shard",
    "ShardWriter",
    "docs_batch",
    "entry",
    "hash_ids",
    "read_block",
    "reading",
    "single_batch",
    "verify_file",
    "write_batch",
    "write_block",
    "write_deletes",
]

BATCH_ROWS = 1024
ALIGNMENT = 64
DOCS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # the document's
        ("passage", pa.int32()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("metadata", pa.string()),  # a JSON object
        ("source", pa.string()),
        ("start", pa.int64()),  # character offset of `text` in the document's text
    ]
)
IDS_SCHEMA = pa.schema([("hash", pa.uint64()), ("row", pa.uint32())])
DELETES_SCHEMA = pa.schema([("bits", pa.uint8())])


def hash_ids(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Hash document ids with xxh3-64; ids that are no Unicode text have a hash too, but no document has such an id."""
    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) for text in ids), np.uint64)


def codes_batch(schema: pa.Schema, columns: dict[str, NDArray[np.uint8]]) -> pa.RecordBatch:
    """Return the columns of a `Layout` as a record batch, without a copy."""
    arrays = [
        pa.FixedSizeBinaryArray.from_buffers(f.type, len(columns[f.name]), [None, pa.py_buffer(columns[f.name])])
        for f in schema
    ]
    return pa.record_batch(arrays, schema=schema)


@cache
def codes_schema(layout: Layout) -> pa.Schema:
    """Return the schema of a codes file, its metadata padded so that the first buffer is 64-byte aligned."""
    fields = [(name, pa.binary(width)) for name, width in layout.columns.items()]
    for padding in range(0, 8 * ALIGNMENT, 8):
        schema = pa.schema(fields, metadata={"ragq.layout": str(layout), "ragq.padding": " " * padding})
        sink = pa.BufferOutputStream()
        zeros = {name: np.zeros((ALIGNMENT, width), np.uint8) for name, width in layout.columns.items()}
        batch = codes_batch(schema, zeros)
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(batch)
        file = sink.getvalue()
        first = pa.ipc.open_file(file).get_batch(0).column(0).buffers()[1].address
        if (first - file.address) % ALIGNMENT == 0:
            return schema
    raise AssertionError("Arrow's alignment changed")


def entry(name: str, file: HashingFile) -> FileEntry:
    """Describe a file that was just written."""
    return FileEntry(name, file.size, file.digest)


class ShardWriter:
    """Write one shard: passages and codes in, batch by batch; nothing is visible before `finish`.

    Text goes to the disk as it comes; codes stay in memory until the end, so that a shard's memory is its codes.

    Parameters
    ----------
    folder : Path
        The index folder.
    shard_id : str
    layout : Layout
        Of the codes.
    """

    def __init__(self, folder: Path, shard_id: str, layout: Layout) -> None:
        self.id, self.layout, self.folder = shard_id, layout, folder
        self.rows = 0
        self.nbytes = 0  # of codes, which are held until the end
        self._codes: list[Any] = []
        self._ids: list[str] = []
        self._first: list[int] = []
        self._waiting: list[Passage] = []
        with storage_errors(folder, "write to"):
            (folder / "shards").mkdir(exist_ok=True)
        self._stack = contextlib.ExitStack()
        self._docs = self._stack.enter_context(durable_write(self._path("docs")))
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._arrow = self._stack.enter_context(pa.ipc.new_file(self._docs, DOCS_SCHEMA, options=options))

    def _name(self, kind: str) -> str:
        return f"shards/{self.id}.{kind}.arrow"

    def _path(self, kind: str) -> Path:
        return self.folder / self._name(kind)

    def add(self, passages: Sequence[Passage], codes: Any) -> None:
        """Append passages and their row codes `(n, code_size)`; a document's passages follow each other."""
        for passage in passages:
            if passage.number == 0:
                self._ids.append(passage.document_id)
                self._first.append(self.rows)
            self.rows += 1
        self._codes.append(codes)
        self.nbytes += codes.nbytes
        self._waiting.extend(passages)
        while len(self._waiting) >= BATCH_ROWS:
            self._write_docs(self._waiting[:BATCH_ROWS])
            del self._waiting[:BATCH_ROWS]

    def _write_docs(self, passages: list[Passage]) -> None:
        with storage_errors(self._path("docs"), "write"):
            self._arrow.write_batch(docs_batch(passages))

    def finish(self) -> ShardEntry:
        """Make the three files durable and return what the manifest needs."""
        if self._waiting:
            self._write_docs(self._waiting)
        self._arrow.close()
        self._stack.close()
        docs = entry(self._name("docs"), self._docs)
        codes_file, tokens = self._write_codes()
        ids_file = write_batch(self.folder, self._name("ids"), self._ids_batch())
        return ShardEntry(self.id, self.rows, len(self._ids), codes_file, docs, ids_file, tokens=tokens)

    def _write_codes(self) -> tuple[FileEntry, TokensEntry | None]:
        codes = np.concatenate(self._codes) if self._codes else np.empty((0, self.layout.code_size), np.uint8)
        self._codes.clear()
        return write_block(self.folder, self._name("codes"), self.layout, codes), None

    def _ids_batch(self) -> pa.RecordBatch:
        hashes, first = hash_ids(self._ids), np.asarray(self._first, np.uint32)
        order = np.argsort(hashes, kind="stable")  # equal hashes stay in row order
        return pa.record_batch([pa.array(hashes[order]), pa.array(first[order])], schema=IDS_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)  # on an error the temporary file goes


def docs_batch(passages: Sequence[Passage]) -> pa.RecordBatch:
    """Return passages as a record batch of `DOCS_SCHEMA`."""
    columns = {
        "id": [p.document_id for p in passages],
        "passage": [p.number for p in passages],
        "title": [p.title for p in passages],
        "text": [p.text for p in passages],
        "metadata": [
            json.dumps(dict(p.metadata), ensure_ascii=False, separators=(",", ":")) if p.metadata else "{}"
            for p in passages
        ],
        "source": [p.source for p in passages],
        "start": [p.start for p in passages],
    }
    try:
        return pa.record_batch([pa.array(columns[f.name], f.type) for f in DOCS_SCHEMA], schema=DOCS_SCHEMA)
    except UnicodeEncodeError as error:  # a lone surrogate, as in "\ud800"
        part = error.object[max(0, error.start - 40) : error.end]
        raise InvalidArgumentError(f"Text must be Unicode without lone surrogates. Got {part!a}.") from None


def write_deletes(
    folder: Path, shard: ShardEntry, generation: int | str, deleted: NDArray[np.bool_], documents: int
) -> Deletes:
    """Write the delete bitset of a shard for a generation.

    Parameters
    ----------
    generation : int or str
        What tells the file from that of other generations.
    deleted : ndarray of bool, shape (rows,)
        Every row that is deleted, earlier deletes included.
    documents : int
        How many documents they are.
    """
    name = f"deletes/{shard.id}.{generation}.arrow"
    with storage_errors(folder, "write to"):
        (folder / "deletes").mkdir(exist_ok=True)
    batch = pa.record_batch([pa.array(pack_mask(deleted))], schema=DELETES_SCHEMA)
    return Deletes(write_batch(folder, name, batch), int(deleted.sum()), documents)


class Shard:
    """One shard of a snapshot; files are opened when they are first needed and stay mapped.

    Parameters
    ----------
    folder : Path
        The index folder.
    entry : ShardEntry
        What the manifest says about it.
    layout : Layout
        What the manifest says about its codes.
    """

    def __init__(self, folder: Path, entry: ShardEntry, layout: Layout) -> None:
        self.folder, self.entry, self.layout = folder, entry, layout
        self.fields: dict[str, list[Any]] = {}  # metadata columns that filters have read, see `ragq.filters`
        self.keys: frozenset[str] | None = None  # and the names of all of them
        self._docs_readers: dict[tuple[str, ...], pa.ipc.RecordBatchFileReader] = {}
        self._docs_lock = threading.Lock()

    @property
    def rows(self) -> int:
        """Passages, deleted ones included."""
        return self.entry.rows

    @cached_property
    def block(self) -> Block:
        """The codes, memory-mapped."""
        return read_block(self.folder, self.entry.codes, self.layout, self.rows)

    def codes(self, start: int, stop: int) -> Any:
        """Return the codes of rows `start` to `stop` as `ShardWriter.add` takes them."""
        return self.block.codes(start, stop)

    def touch(self) -> None:
        """Open and check everything but the documents."""
        _ = self.block, self.deleted, self.documents

    @cached_property
    def deleted(self) -> NDArray[np.bool_] | None:
        """Which rows are deleted, or None when none is."""
        deletes = self.entry.deletes
        if deletes is None:
            return None
        batch = single_batch(self.folder, deletes.file, DELETES_SCHEMA, -(-self.rows // 8))
        bits = numpy_values(batch.column(0), "u1")
        deleted = unpack_mask(bits, self.rows)
        if int(deleted.sum()) != deletes.rows:
            raise CorruptIndexError(
                f"{self.folder / deletes.file.name} deletes {int(deleted.sum())} rows, not {deletes.rows}."
            )
        return deleted

    @cached_property
    def live_mask(self) -> NDArray[np.uint8] | None:
        """Row bitset of what is not deleted, or None for everything."""
        return None if self.deleted is None else pack_mask(~self.deleted)

    @cached_property
    def ids(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """The documents' hashes, sorted, and their first rows: memory-mapped arrays of one entry a document."""
        batch = single_batch(self.folder, self.entry.ids, IDS_SCHEMA, self.entry.documents)
        hashes, rows = numpy_values(batch.column("hash"), "<u8"), numpy_values(batch.column("row"), "<u4")
        if (hashes[1:] < hashes[:-1]).any():
            raise CorruptIndexError(f"{self.folder / self.entry.ids.name} is not sorted.")
        return hashes, rows

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        """First row of each document in row order, and the number of rows at the end."""
        first = np.append(np.sort(self.ids[1]).astype(np.int64), self.rows)
        if first[0] != 0 or not (np.diff(first) > 0).all():
            raise CorruptIndexError(f"{self.folder / self.entry.ids.name} names rows that the shard does not have.")
        return first

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Look document hashes up.

        Parameters
        ----------
        hashes : ndarray of uint64
            As `hash_ids` makes them.

        Returns
        -------
        which, row : ndarrays of int64
            Pairs of an index into `hashes` and the first row of a document with that hash, deleted ones included. Two
            ids can share a hash: compare with `ids_at`.
        """
        known, rows = self.ids
        start = np.searchsorted(known, hashes, "left")
        count = np.searchsorted(known, hashes, "right") - start
        which = np.repeat(np.arange(len(hashes)), count)
        offset = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        found = rows[np.repeat(start, count) + offset].astype(np.int64)
        if len(found) and found.max() >= self.rows:
            raise CorruptIndexError(f"{self.folder / self.entry.ids.name} names rows that the shard does not have.")
        return which, found

    def ids_at(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the document ids of some rows."""
        return self.docs(rows, ["id"]).column(0).to_pylist() if len(rows) else []

    def docs(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Return some columns of some rows, in the order of `rows`."""
        wanted, back = np.unique(rows, return_inverse=True)
        batches = wanted // BATCH_ROWS
        parts = [
            self._docs_batch(int(b), columns).take(arrow_indices(wanted[batches == b] - b * BATCH_ROWS))
            for b in np.unique(batches)
        ]
        schema = pa.schema([DOCS_SCHEMA.field(name) for name in columns])
        return pa.Table.from_batches(parts, schema=schema).take(arrow_indices(back))

    def docs_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns of all rows, deleted ones included, a batch at a time."""
        for b in range(-(-self.rows // BATCH_ROWS)):
            yield self._docs_batch(b, columns)

    def _docs_batch(self, b: int, columns: Sequence[str]) -> pa.RecordBatch:
        path = checked(self.folder, self.entry.docs)
        with reading(path):
            with self._docs_lock:
                batch = self._docs_reader(tuple(columns)).get_batch(b)
            batch.validate(full=True)
            batch = batch.select(list(columns))
            if batch.num_rows != min(BATCH_ROWS, self.rows - b * BATCH_ROWS) or any(
                c.null_count for c in batch.columns
            ):
                raise CorruptIndexError(f"{path} does not hold the {self.rows} rows that the manifest names.")
            return batch

    def _docs_reader(self, columns: tuple[str, ...]) -> pa.ipc.RecordBatchFileReader:
        if columns not in self._docs_readers:
            path = checked(self.folder, self.entry.docs)
            included = [DOCS_SCHEMA.get_field_index(name) for name in columns]
            # a batch is small: handing its columns to a pool of threads takes longer than reading them
            options = pa.ipc.IpcReadOptions(included_fields=included, use_threads=False)
            reader = pa.ipc.open_file(pa.memory_map(str(path)), options=options)
            found = {f.name: f for f in reader.schema}
            expected = {name: DOCS_SCHEMA.field(name) for name in columns}
            if found not in (expected, {f.name: f for f in DOCS_SCHEMA}):
                raise CorruptIndexError(f"{path} has the columns {reader.schema.names}, not those of a docs file.")
            self._docs_readers[columns] = reader
        return self._docs_readers[columns]

    def verify(self) -> None:
        """Compare every file of the shard with its checksum; raise `CorruptIndexError` on the first that differs."""
        for file in self.entry.files:
            verify_file(self.folder, file)


def checked(folder: Path, file: FileEntry) -> Path:
    """Return the path of a file that is there with the size that the manifest names."""
    path = present(folder, file)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise CorruptIndexError(f"{path} is missing.") from None
    if size != file.size:
        raise CorruptIndexError(f"{path} has {size} bytes, but the manifest names {file.size}.")
    return path


def verify_file(folder: Path, file: FileEntry) -> Path:
    """Return the path of a file after comparing it with its checksum; raise `CorruptIndexError` when it differs."""
    path = checked(folder, file)
    if file_digest(path) != file.xxh3:
        raise CorruptIndexError(f"{path} was altered: its checksum is not the manifest's.")
    return path


def single_batch(folder: Path, file: FileEntry, schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """Map a file of exactly one record batch, and check that its buffers hold what the schema says."""
    path = checked(folder, file)
    with reading(path):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(schema) or reader.num_record_batches != 1:
            raise CorruptIndexError(f"{path} has the columns {reader.schema.names}, not {schema.names}.")
        batch = reader.get_batch(0)
        batch.validate()
        if batch.num_rows != rows or any(column.null_count for column in batch.columns):
            raise CorruptIndexError(f"{path} has {batch.num_rows} rows, but the manifest names {rows}.")
        return batch


def write_batch(folder: Path, name: str, batch: pa.RecordBatch) -> FileEntry:
    """Write a file of one record batch durably."""
    with durable_write(folder / name) as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return entry(name, file)


def read_block(folder: Path, file: FileEntry, layout: Layout, rows: int) -> Block:
    """Map a codes file of `rows` rows."""
    batch = single_batch(folder, file, codes_schema(layout), padded(rows))
    columns = {}
    for name, width in layout.columns.items():
        data = batch.column(name).buffers()[1]
        columns[name] = np.frombuffer(data, np.uint8, batch.num_rows * width).reshape(batch.num_rows, width)
    return Block(layout, columns, rows)


def write_block(folder: Path, name: str, layout: Layout, codes: NDArray[np.uint8]) -> FileEntry:
    """Write row codes `(n, code_size)` as a codes file."""
    return write_batch(folder, name, codes_batch(codes_schema(layout), layout.pack(codes)))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Arrow raises on a bad file into `CorruptIndexError`."""
    try:
        yield
    except (CorruptIndexError, StorageError):
        raise
    except (pa.ArrowException, ValueError, KeyError, IndexError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptIndexError(f"{path} cannot be read: {reason}") from None
