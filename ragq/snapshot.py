"""What a reader sees: one generation of an index, unchanged for as long as it is held."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.layouts import Block, Layout
from ragq.manifest import MANIFEST, MAXIMUM_BYTES, FileEntry, Manifest
from ragq.remote import address, forget, open_manifest, prefetch, present
from ragq.shards import hash_ids, verify_file
from ragq.storage import file_digest, storage_errors
from ragq.token_shards import open_shard

__all__ = ["Snapshot"]

MAXIMUM_STATE_BYTES = 4 << 30


class Snapshot:
    """One generation of an index on a local disk, held by a lease until `close`.

    Parameters
    ----------
    folder : Path
        The index folder.
    name : str
        Of the manifest; an older one, in ``retired/``, can be opened while somebody else holds it.

    Raises
    ------
    InvalidArgumentError
        There is no index at `folder`.
    CorruptIndexError, IncompatibleIndexError
        There is one, but it cannot be read.
    """

    def __init__(self, folder: Path, name: str = MANIFEST) -> None:
        self.folder = folder
        path = folder / name
        with storage_errors(path, "read"):
            try:
                self._lease = open_manifest(folder, name)
            except (FileNotFoundError, NotADirectoryError):
                raise InvalidArgumentError(self._absent()) from None
        try:
            with storage_errors(path, "read"):
                self.manifest = Manifest.load(path, self._lease.read(MAXIMUM_BYTES + 1))
            try:
                self.layout = Layout.parse(self.manifest.layout)
            except InvalidArgumentError as error:
                raise CorruptIndexError(f"{path} is damaged: {error}") from None
            self.shards = [open_shard(folder, entry, self.manifest) for entry in self.manifest.shards]
            self._close = weakref.finalize(self, self._lease.close)
        except BaseException:
            self._lease.close()
            raise

    @property
    def is_newest(self) -> bool:
        """Whether the manifest on the disk is still the file that this snapshot was made from; costs one `stat`."""
        try:
            return os.path.samestat((self.folder / MANIFEST).stat(), os.fstat(self._lease.fileno()))
        except (OSError, ValueError):  # gone, or closed
            return False

    def text(self) -> bytes:
        """Return the bytes of the manifest."""
        self._lease.seek(0)
        return self._lease.read(MAXIMUM_BYTES + 1)

    def _absent(self) -> str:
        name = address(self.folder)
        if (self.folder / "build").exists():
            return f"The index at {name} is not finished. Go on with: ragq index SOURCE -o {name} --resume"
        if not self.folder.exists() or name != str(self.folder):
            return f"There is no index at {name}. Make one with: ragq index SOURCE -o {name}"
        return f"{name} is not an index: it has no {MANIFEST}. To index what it holds: ragq index {name}"

    def blocks(self) -> list[Block]:
        """Return the codes of every shard; those of an object store are fetched several at a time."""
        prefetch(self.folder, (shard.entry.codes for shard in self.shards))
        return [shard.block for shard in self.shards]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First row of each shard in the numbering over all shards, and the total at the end."""
        return np.concatenate([[0], np.cumsum([shard.rows for shard in self.shards])]).astype(np.int64)

    def locate(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Group rows of the whole by shard: (shard number, positions in `rows`, rows within the shard)."""
        owner = np.searchsorted(self.starts, rows, "right") - 1
        for number in np.unique(owner):
            positions = np.flatnonzero(owner == number)
            yield int(number), positions, rows[positions] - self.starts[number]

    def find(self, ids: Iterable[str]) -> list[NDArray[np.int64]]:
        """Look live documents up: for each id its rows over the whole, empty when it is not there."""
        ids = list(ids)
        hashes = hash_ids(ids)
        found: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(hashes)
        for start, shard in zip(self.starts, self.shards, strict=False):
            which, rows = shard.find(hashes)
            if shard.deleted is not None:
                which, rows = which[~shard.deleted[rows]], rows[~shard.deleted[rows]]
            for i, row, known in zip(which, rows, shard.ids_at(rows), strict=True):
                if known == ids[i]:
                    stop = shard.documents[np.searchsorted(shard.documents, row) + 1]
                    found[i] = np.arange(start + row, start + stop)
        return found

    def state(self) -> dict[str, NDArray[Any]]:
        """Read the compressor's fitted arrays, after comparing the file with its checksum."""
        file = self.manifest.compressor
        path = self._whole(file)
        with storage_errors(path, "read"):
            try:
                return dict(safetensors.numpy.load(path.read_bytes()))
            except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
                raise CorruptIndexError(f"{path} cannot be read: {error}") from None

    def _whole(self, file: FileEntry) -> Path:
        path = present(self.folder, file)
        with storage_errors(path, "read"):
            if not path.exists():
                raise CorruptIndexError(f"{path} is missing.")
            size = path.stat().st_size
        if size != file.size or size > MAXIMUM_STATE_BYTES or file_digest(path) != file.xxh3:
            raise CorruptIndexError(f"{path} was altered: its size or checksum is not the manifest's.")
        return path

    def verify(self) -> int:
        """Compare every file with its checksum and read every document; return the bytes that were read.

        Raises
        ------
        CorruptIndexError
            Names the first file that is missing or altered.
        """
        forget(self.folder, self.manifest.files)
        self._whole(self.manifest.compressor)
        for file in self.manifest.structure.files.values() if self.manifest.structure else ():
            verify_file(self.folder, file)
        for shard in self.shards:
            shard.verify()
            shard.touch()
            for _batch in shard.docs_batches(["id", "metadata"]):
                pass
        return sum(file.size for file in self.manifest.files)

    def close(self) -> None:
        """Give the lease back; harmless when called twice, and done when nobody holds the snapshot any more."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
