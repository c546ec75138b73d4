"""How an index changes: write new files, then replace the manifest in one rename.

A crash before the rename leaves the old generation, a crash after it the new one; files that no manifest names are
removed by the next writer. Replaced manifests wait in ``retired/`` as hard links, and keep their files alive while a
reader holds a lease on them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ragq.errors import RagqError
from ragq.manifest import MANIFEST, Manifest, ShardEntry, read_shard
from ragq.remote import address, sender
from ragq.shards import Shard, ShardWriter, hash_ids, write_deletes
from ragq.snapshot import Snapshot
from ragq.storage import TEMPORARY, WriterLock, is_leased, storage_errors, write_bytes
from ragq.token_shards import new_writer, open_shard

__all__ = ["BUILD", "JOURNAL", "Transaction"]

RETIRED = "retired"
BUILD = "build"  # the scratch folder of an unfinished `ragq index`
JOURNAL = "progress.json"  # in it: what is finished
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
    timeout : float
        Seconds to wait for another writer.

    Raises
    ------
    IndexLockedError, StorageError
        Another writer has the index, or it cannot be written to.

    Notes
    -----
    In an object store other machines' writers are not locked out: see `ragq.remote` for what `commit` does there.
    """

    def __init__(self, folder: Path, base: Manifest | None = None, timeout: float = 0) -> None:
        self.folder = folder
        self._lock = WriterLock(folder, timeout, address(folder))
        try:
            self._sender = sender(folder)  # None for a local folder
            current = self._sender.manifest if self._sender else current_manifest(folder)
            self._mark = self._sender.mark if self._sender else ""
            self.generation = (current.generation if current else 0) + 1
            self.manifest = base if base is not None else self._require(current)
            self._new: list[ShardEntry] = []
            self._deleted: dict[str, tuple[NDArray[np.bool_], int]] = {}
            self._started = 0
            collect(folder)
        except BaseException:
            self._lock.release()
            raise

    def _require(self, current: Manifest | None) -> Manifest:
        if current is None:
            with Snapshot(self.folder) as snapshot:  # raises the error that says what is there instead
                return snapshot.manifest
        return current

    @property
    def prefix(self) -> str:
        """What the names of new files begin with; those of other generations and writers have another one."""
        return f"{self.generation:08d}{self._mark}"

    def new_shard(self) -> ShardWriter:
        """Start a shard; hand what its `finish` returns to `add`."""
        self._started += 1
        return new_writer(self.folder, f"{self.prefix}-{self._started:05d}", self.manifest)

    def add(self, entry: ShardEntry) -> None:
        """Take a finished shard into the next generation; it supersedes older documents with the same ids."""
        self._started = max(self._started, int(entry.id.rpartition("-")[2]))
        self._new.append(entry)
        if self._sender:
            self._sender.send(entry.files)

    def shard(self, entry: ShardEntry) -> Shard:
        """Open a shard of this index."""
        return open_shard(self.folder, entry, self.manifest)

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
        fresh = np.unique(first[~deleted[first]])  # an id that came twice is one document
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
                name = f"{self.generation}{self._mark}"
                entry = replace(entry, deletes=write_deletes(self.folder, entry, name, deleted, documents))
            if entry.live_rows:
                shards.append(entry)
        manifest = change(replace(self.manifest, shards=tuple(shards), generation=self.generation))
        data = manifest.dump()
        if self._sender:
            self._sender.commit(manifest, data)
        path = self.folder / MANIFEST
        with storage_errors(path, "write"):
            if path.exists():
                (self.folder / RETIRED).mkdir(exist_ok=True)
                retired = self.folder / RETIRED / f"{self.generation - 1}.json"
                retired.unlink(missing_ok=True)
                os.link(path, retired)
        write_bytes(path, data)
        self.manifest, self._new, self._deleted, self._started = manifest, [], {}, 0
        self.generation += 1
        return replaced, duplicates

    def close(self) -> None:
        """Remove what no manifest names any more, and give the lock back."""
        try:
            if self._lock.held:
                collect(self.folder)
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
    found: list[tuple[Shard, NDArray[np.int64]]] = []
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
        twins = order[twin]  # insertion order among equal hashes
        last = np.append(hashes[twins][1:] != hashes[twins][:-1], True) if len(twins) else np.zeros(0, bool)
        start = 0
        while start < len(twins):
            stop = start + IDS_AT_ONCE
            stop += int(np.argmax(last[stop - 1 :])) if stop < len(twins) else 0  # equal hashes stay together
            some = twins[start:stop]
            gone = some[replaced_by_later(shards, owner[some], rows[some])]
            found.extend((shards[s], rows[gone[owner[gone] == s]]) for s in np.unique(owner[gone]))
            start = stop
    return found


def replaced_by_later(shards: list[Shard], owner: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which documents, given by shard and row in insertion order, have the id of one that comes after them."""
    names = np.empty(len(rows), object)
    for s in np.unique(owner):
        names[owner == s] = shards[s].ids_at(rows[owner == s])
    latest = {name: i for i, name in enumerate(names)}
    return np.fromiter((latest[name] != i for i, name in enumerate(names)), bool, len(names))


def collect(folder: Path) -> None:
    """Remove files of the index folder that no manifest, no leased older one and no interrupted build needs.

    Best effort: what cannot be removed now is removed by a later writer.
    """
    with contextlib.suppress(OSError, RagqError):  # where somebody's needs cannot be told, everything stays
        manifest = current_manifest(folder)
        keep = {file.name for file in manifest.files} if manifest else set()
        keep |= leased_files(folder)
        going_on = unfinished_build(folder, manifest.generation + 1 if manifest else 1)
        for place, pattern in (
            ("shards", "*"),
            ("deletes", "*"),
            ("structures", "*"),
            ("", "compressor-*"),
            ("", f"{TEMPORARY}*"),
        ):
            if place and (folder / place).is_symlink():
                continue  # it leads out of the index
            for file in (folder / place).glob(pattern):
                if file.relative_to(folder).as_posix() not in keep | (going_on or set()):
                    file.unlink(missing_ok=True)
        if going_on is None and not (folder / BUILD).is_symlink():
            for file in (folder / BUILD).glob("*"):
                if file.name != JOURNAL:  # it stays, so that going on is refused with the reason
                    file.unlink(missing_ok=True)
        for name in ("deletes", "structures", RETIRED):
            with contextlib.suppress(OSError):
                (folder / name).rmdir()


def current_manifest(folder: Path) -> Manifest | None:
    """Read the manifest on disk, or None when there is none."""
    path = folder / MANIFEST
    with storage_errors(path, "read"):
        return Manifest.load(path, path.read_bytes()) if path.exists() else None


def leased_files(folder: Path) -> set[str]:
    """Return the files of the retired manifests that readers hold; remove the others."""
    keep: set[str] = set()
    if not (folder / RETIRED).is_symlink():
        for retired in (folder / RETIRED).glob("*.json"):
            if is_leased(retired):
                keep |= {file.name for file in Manifest.load(retired, retired.read_bytes()).files}
            else:
                retired.unlink(missing_ok=True)
    return keep


def unfinished_build(folder: Path, generation: int) -> set[str] | None:
    """Return the files that an interrupted build of a generation would go on with; None when there is no such build."""
    path = folder / BUILD / JOURNAL
    try:
        body = json.loads(path.read_bytes())
        if body["generation"] != generation:
            return None  # the index has changed since
        names = {file.name for shard in body["shards"] for file in read_shard(shard).files}
        return names | ({body["compressor"]["name"]} if "compressor" in body else set())
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        return None
