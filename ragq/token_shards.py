"""Shards of a multi-vector index: the files of `ragq.shards`, where a passage has as many codes as it has vectors.

``shards/<id>.codes.arrow``
    As of any shard, but a row a vector; those of a passage follow each other.
``shards/<id>.offsets.arrow``
    One uint32 column of (passages + 1) rows: where the vectors of each passage begin, and the end of the last.
``shards/<id>.first.arrow``
    Codes of the first stage, if there is one: a codes file of a row a passage.

Deletes, ids and documents are by passage, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragq.buffers import numpy_values
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.layouts import Block, Layout
from ragq.manifest import MANIFEST, FileEntry, Manifest, ShardEntry, TokensEntry
from ragq.shards import Shard, ShardWriter, read_block, single_batch, write_batch, write_block
from ragq.tokens import MultiVectorCodes, check_offsets
from ragq.types import Passage

__all__ = ["OFFSET_BYTES", "TokenShard", "TokenShardWriter", "new_writer", "open_shard"]

OFFSET_BYTES = 4  # a passage
OFFSETS_SCHEMA = pa.schema([("start", pa.uint32())])


class TokenShardWriter(ShardWriter):
    """Write one shard of a multi-vector index; see `ragq.shards.ShardWriter`.

    Parameters
    ----------
    folder : Path
    shard_id : str
    layout : Layout
        Of a vector's code.
    first_layout : Layout or None
        Of a first-stage code.
    """

    def __init__(self, folder: Path, shard_id: str, layout: Layout, first_layout: Layout | None) -> None:
        super().__init__(folder, shard_id, layout)
        self.first_layout = first_layout

    def add(self, passages: Sequence[Passage], codes: MultiVectorCodes) -> None:
        """Append passages and their codes; a document's passages follow each other."""
        super().add(passages, codes)

    def _write_codes(self) -> tuple[FileEntry, TokensEntry | None]:
        empty = np.empty((0, self.layout.code_size), np.uint8)
        first = None if self.first_layout is None else np.empty((0, self.first_layout.code_size), np.uint8)
        whole = MultiVectorCodes.concatenate(self._codes or [MultiVectorCodes(empty, np.zeros(1, np.int64), first)])
        self._codes.clear()
        codes_file = write_block(self.folder, self._name("codes"), self.layout, whole.codes)
        starts = pa.record_batch([pa.array(whole.offsets.astype(np.uint32))], schema=OFFSETS_SCHEMA)
        offsets_file = write_batch(self.folder, self._name("offsets"), starts)
        first_file = None
        if self.first_layout is not None and whole.first is not None:
            first_file = write_block(self.folder, self._name("first"), self.first_layout, whole.first)
        return codes_file, TokensEntry(len(whole.codes), offsets_file, first_file)


class TokenShard(Shard):
    """One shard of a multi-vector index; see `ragq.shards.Shard`.

    Parameters
    ----------
    folder : Path
    entry : ShardEntry
    layout : Layout
        Of a vector's code.
    first_layout : Layout or None
        Of a first-stage code.
    """

    def __init__(self, folder: Path, entry: ShardEntry, layout: Layout, first_layout: Layout | None) -> None:
        super().__init__(folder, entry, layout)
        self.first_layout = first_layout

    @property
    def tokens(self) -> TokensEntry:
        """What the manifest says about the vectors."""
        assert self.entry.tokens is not None  # the manifest was checked
        return self.entry.tokens

    @cached_property
    def block(self) -> Block:
        """The codes of the vectors, memory-mapped."""
        return read_block(self.folder, self.entry.codes, self.layout, self.tokens.rows)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where the vectors of each passage begin, and the end of the last, int64 of shape (rows + 1,)."""
        file = self.tokens.offsets
        batch = single_batch(self.folder, file, OFFSETS_SCHEMA, self.rows + 1)
        try:
            return check_offsets(numpy_values(batch.column(0), "<u4"), self.tokens.rows, name="start")
        except InvalidArgumentError as error:
            raise CorruptIndexError(f"{self.folder / file.name} cannot be read: {error}") from None

    @cached_property
    def first(self) -> Block | None:
        """The codes of the first stage, memory-mapped; None without one."""
        if self.tokens.first is None or self.first_layout is None:
            return None
        return read_block(self.folder, self.tokens.first, self.first_layout, self.rows)

    def codes(self, start: int, stop: int) -> MultiVectorCodes:
        """Return the codes of passages `start` to `stop`."""
        part = self.offsets[start : stop + 1]
        first = None if self.first is None else self.first.codes(start, stop)
        return MultiVectorCodes(self.block.codes(int(part[0]), int(part[-1])), part - part[0], first)

    def touch(self) -> None:
        """Open and check everything but the documents."""
        super().touch()
        _ = self.offsets, self.first


def layouts(folder: Path, manifest: Manifest) -> tuple[Layout, Layout | None]:
    """Return how the codes of an index lie, and those of its first stage."""
    stage = manifest.multi_vector
    try:
        first = Layout.parse(stage.first_layout) if stage and stage.first_layout else None
        return Layout.parse(manifest.layout), first
    except InvalidArgumentError as error:
        raise CorruptIndexError(f"{folder / MANIFEST} is damaged: {error}") from None


def open_shard(folder: Path, entry: ShardEntry, manifest: Manifest) -> Shard:
    """Open a shard of the kind of its index."""
    layout, first = layouts(folder, manifest)
    return Shard(folder, entry, layout) if manifest.multi_vector is None else TokenShard(folder, entry, layout, first)


def new_writer(folder: Path, shard_id: str, manifest: Manifest) -> ShardWriter:
    """Start a shard of the kind of its index."""
    layout, first = layouts(folder, manifest)
    if manifest.multi_vector is None:
        return ShardWriter(folder, shard_id, layout)
    return TokenShardWriter(folder, shard_id, layout, first)
