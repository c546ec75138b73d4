"""How an index changes: write new files, then replace the manifest in one rename.

A crash before the rename leaves the old generation, a crash after it the new one; files that no manifest names are
removed by the next writer. Replaced manifests wait in ``retired/`` as hard links, and keep their files alive while a
reader holds a lease on them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ragq.errors import RagqError
from ragq.layouts import Layout
from ragq.manifest import MANIFEST, Manifest, ShardEntry
from ragq.shards import Shard, ShardWriter, hash_ids, write_deletes
from ragq.snapshot import Snapshot
from ragq.storage import WriterLock, is_leased, storage_errors, write_bytes

__all__ = ["BUILD", "Transaction"]

RETIRED = "retired"
BUILD = "build"  # the scratch folder of an unfinished `ragq index`
HASHES_AT_ONCE = 1 << 21
IDS_AT_ONCE = 1 << 16


class Transaction:
    """The one writer of an index: takes the lock, collects changes, commits them as one generation.

    Parameters
    ----------
    folder : Path
        The index folder.
    base : Manifest, optional
        What to start from instead of the manifest on disk: a new index, or one that is built anew.
    keep : iterable of str
        Names of files to keep although no manifest names them, until a commit: finished shards of a build that goes on.

    timeout : float
        Seconds to wait for another writer.

    Raises
    ------
    IndexLockedError, StorageError
        Another writer has the index, or it cannot be written to.
    """

    def __init__(
        self, folder: Path, base: Manifest | None = None, keep: Iterable[str] = (), timeout: float = 0
    ) -> None:
        self.folder = folder
        self._lock = WriterLock(folder, timeout)
        try:
            current = self._current()
            self.generation = (current.generation if current else 0) + 1
            self.manifest = base if base is not None else self._require(current)
            self._new: list[ShardEntry] = []
            self._deleted: dict[str, tuple[NDArray[np.bool_], int]] = {}
            self._started = 0
            self.keep = set(keep)
            collect(folder, self.keep)
        except BaseException:
            self._lock.release()
            raise

    def _current(self) -> Manifest | None:
        path = self.folder / MANIFEST
        with storage_errors(path, "read"):
            return Manifest.load(path, path.read_bytes()) if path.exists() else None

    def _require(self, current: Manifest | None) -> Manifest:
        if current is None:
            with Snapshot(self.folder) as snapshot:  # raises the error that says what is there instead
                return snapshot.manifest
        return current

    @property
    def layout(self) -> Layout:
        """How the codes of this index lie."""
        return Layout.parse(self.manifest.layout)

    def new_shard(self) -> ShardWriter:
        """Start a shard; hand what its `finish` returns to `add`."""
        self._started += 1
        return ShardWriter(self.folder, f"{self.generation:08d}-{self._started:05d}", self.layout)

    def add(self, entry: ShardEntry) -> None:
        """Take a finished shard into the next generation; it supersedes older documents with the same ids."""
        self._started = max(self._started, int(entry.id.rpartition("-")[2]))
        self._new.append(entry)

    def shard(self, entry: ShardEntry) -> Shard:
        """Open a shard of this index."""
        return Shard(self.folder, entry, self.layout)

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents that are in the index; return how many were there."""
        wanted = list(dict.fromkeys(ids))
        return sum(self._delete_ids(self.shard(entry), wanted) for entry in self.manifest.shards)

    def delete_rows(self, entry: ShardEntry, rows: NDArray[np.bool_]) -> int:
        """Delete every document of a shard that has a passage in `rows`; return how many."""
        shard = self.shard(entry)
        first = shard.documents[:-1]
        hit = np.add.reduceat(rows, first) > 0 if len(first) else np.zeros(0, bool)
        return self._delete_documents(shard, first[hit])

    def _delete_ids(self, shard: Shard, ids: list[str]) -> int:
        which, rows = shard.find(hash_ids(ids))
        same = np.fromiter(
            (ids[i] == known for i, known in zip(which, shard.ids_at(rows), strict=True)), bool, len(rows)
        )
        return self._delete_documents(shard, rows[same])

    def _delete_documents(self, shard: Shard, first: NDArray[np.int64]) -> int:
        """Mark documents, given by their first rows, as deleted; count those that were not yet."""
        deleted, documents = self._deleted.get(shard.entry.id) or (
            np.zeros(shard.rows, bool) if shard.deleted is None else shard.deleted.copy(),
            shard.entry.deletes.documents if shard.entry.deletes else 0,
        )
        fresh = first[~deleted[first]]
        if len(fresh):
            stop = shard.documents[np.searchsorted(shard.documents, fresh) + 1]
            for a, b in zip(fresh, stop, strict=True):
                deleted[a:b] = True
            self._deleted[shard.entry.id] = (deleted, documents + len(fresh))
        return len(fresh)

    def _supersede(self) -> tuple[int, int]:
        """Delete what new shards replace: (older documents replaced, duplicates among the new ones)."""
        new = [self.shard(entry) for entry in self._new]
        duplicates = sum(self._delete_documents(shard, rows) for shard, rows in earlier_duplicates(new))
        replaced = 0
        for entry in self.manifest.shards:
            old = self.shard(entry)
            for shard in new:
                hashes, first = shard.ids
                which, _ = old.find(hashes)
                for start in range(0, len(which), IDS_AT_ONCE):
                    part = np.unique(which[start : start + IDS_AT_ONCE])
                    replaced += self._delete_ids(old, shard.ids_at(first[part].astype(np.int64)))
        return replaced, duplicates

    def commit(self, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> tuple[int, int]:
        """Make the changes visible as the next generation.

        Parameters
        ----------
        change : callable
            Last edits of the manifest that is about to be written.

        Returns
        -------
        replaced, duplicates : int
            Older documents that new ones replaced, and documents that a later one of the same run replaced.
        """
        replaced, duplicates = self._supersede()
        shards = []
        for entry in (*self.manifest.shards, *self._new):
            if entry.id in self._deleted:
                deleted, documents = self._deleted[entry.id]
                entry = replace(entry, deletes=write_deletes(self.folder, entry, self.generation, deleted, documents))
            if entry.live_rows:
                shards.append(entry)
        manifest = change(replace(self.manifest, shards=tuple(shards), generation=self.generation))
        path = self.folder / MANIFEST
        with storage_errors(path, "write"):
            if path.exists():
                (self.folder / RETIRED).mkdir(exist_ok=True)
                retired = self.folder / RETIRED / f"{self.generation - 1}.json"
                retired.unlink(missing_ok=True)
                os.link(path, retired)
        write_bytes(path, manifest.dump())
        self.manifest, self._new, self._deleted, self._started, self.keep = manifest, [], {}, 0, set()
        self.generation += 1
        return replaced, duplicates

    def close(self) -> None:
        """Remove what no manifest names any more, and give the lock back."""
        try:
            if self._lock.held:
                collect(self.folder, self.keep)
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def earlier_duplicates(shards: list[Shard]) -> list[tuple[Shard, NDArray[np.int64]]]:
    """Find documents whose id comes again later in the same shards.

    Goes through the sorted hashes of all shards in equal ranges, so that memory does not grow with the corpus.

    Returns
    -------
    list of (Shard, ndarray of int64)
        First rows of the documents of a shard that a later one replaces.
    """
    found = []
    ranges = max(1, -(-sum(shard.entry.documents for shard in shards) // HASHES_AT_ONCE))
    edges = np.asarray([(i << 64) // ranges for i in range(1, ranges)], np.uint64)
    cuts = [[0, *np.searchsorted(s.ids[0], edges).tolist(), s.entry.documents] for s in shards]
    for r in range(ranges if shards else 0):
        parts = [
            (s.ids[0][cut[r] : cut[r + 1]], s.ids[1][cut[r] : cut[r + 1]]) for s, cut in zip(shards, cuts, strict=True)
        ]
        hashes = np.concatenate([h for h, _ in parts])
        rows = np.concatenate([r for _, r in parts]).astype(np.int64)
        owner = np.repeat(np.arange(len(shards)), [len(h) for h, _ in parts])
        order = np.lexsort((rows, owner, hashes))
        ordered = hashes[order]
        twin = np.zeros(len(order), bool)
        twin[1:] = ordered[1:] == ordered[:-1]
        twin[:-1] |= twin[1:].copy()
        latest: dict[str, tuple[int, int]] = {}
        for i in order[twin]:  # in insertion order among equal hashes
            shard, row = int(owner[i]), int(rows[i])
            (known,) = shards[shard].ids_at(np.asarray([row]))
            if known in latest:
                before, earlier = latest[known]
                found.append((shards[before], np.asarray([earlier])))
            latest[known] = (shard, row)
    return found


def collect(folder: Path, keep: set[str]) -> None:
    """Remove files of the index folder that neither the manifest nor a leased older one names.

    Best effort: what cannot be removed now is removed by a later writer.
    """
    keep = set(keep)
    path = folder / MANIFEST
    if path.exists():
        keep |= {file.name for file in Manifest.load(path, path.read_bytes()).files}
    for retired in (folder / RETIRED).glob("*.json"):
        with contextlib.suppress(OSError, RagqError):
            if is_leased(retired):
                keep |= {file.name for file in Manifest.load(retired, retired.read_bytes()).files}
            else:
                retired.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if BUILD not in keep and (folder / BUILD).is_dir():
            shutil.rmtree(folder / BUILD)
        for pattern in ("shards/*", "deletes/*", "compressor-*", ".tmp-*"):
            for file in folder.glob(pattern):
                if file.relative_to(folder).as_posix() not in keep:
                    file.unlink(missing_ok=True)
        for name in ("deletes", RETIRED):
            with contextlib.suppress(OSError):
                (folder / name).rmdir()
