"""What `ragq verify --deep` finds: every damaged file at once, and files that are whole but do not fit together.

Checksums tell a file that was altered after it was written. Beyond them the parts of each shard are compared with each
other, so that an index that somebody made up, checksums included, is told from one that ragq wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import Compressor
from ragq.errors import CorruptIndexError, IncompatibleIndexError, RagqError, StorageError
from ragq.manifest import MANIFEST, FileEntry, ShardEntry
from ragq.pipelines.token_view import open_view
from ragq.remote import forget, locate
from ragq.shards import Shard, hash_ids, verify_file
from ragq.snapshot import Snapshot

__all__ = ["Finding", "canonical", "check_shard", "checkup", "shard_files"]

CHUNK_ROWS = 4096
LARGEST_TEXT = 1 << 40  # characters of a document


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with an index.

    Attributes
    ----------
    file : str
        Its name below the index folder.
    part : str
        What it holds: ``manifest``, ``compressor``, ``structure``, or a part of a shard: ``codes``, ``docs``, ``ids``,
        ``deletes``, ``tokens``.
    shard : str or None
        The shard that needs it.
    message : str
        One line, with the path.
    """

    file: str
    part: str
    shard: str | None
    message: str


def checkup(path: str | Path) -> list[Finding]:
    """Read all of an index and return everything that is wrong with it; nothing is changed.

    Parameters
    ----------
    path : str or Path
        The index folder.

    Returns
    -------
    list of Finding
        Empty when the index is as it was written.

    Raises
    ------
    InvalidArgumentError, IncompatibleIndexError, StorageError
        There is no index, one of another format, or it cannot be read at all.
    """
    folder = locate(path)
    try:
        snapshot = Snapshot(folder)
    except CorruptIndexError as error:
        return [Finding(MANIFEST, "manifest", None, str(error))]
    with snapshot:
        forget(folder, snapshot.manifest.files)
        return list(examine(snapshot))


def examine(snapshot: Snapshot) -> Iterator[Finding]:
    """Yield what is wrong with a generation."""
    folder, manifest = snapshot.folder, snapshot.manifest
    if not canonical(snapshot.text()):
        yield Finding(MANIFEST, "manifest", None, f"{folder / MANIFEST} was altered: ragq does not write it like this.")
    compressor = None
    try:
        verify_file(folder, manifest.compressor)
        compressor = open_view(snapshot).compressor
    except (CorruptIndexError, StorageError) as error:
        yield Finding(manifest.compressor.name, "compressor", None, str(error))
    if manifest.structure is not None:
        yield from check_structure(snapshot, compressor is not None)
    whole = []
    for shard in snapshot.shards:
        found = list(check_shard(shard, None if manifest.multi_vector else compressor))
        yield from found
        if not found:
            whole.append(shard)
    yield from duplicates(whole)


def canonical(data: bytes) -> bool:
    """Tell whether JSON is written as a manifest is, so that no byte between its values can have changed either."""
    try:
        return (json.dumps(json.loads(data), indent=1, ensure_ascii=False) + "\n").encode() == data
    except (ValueError, RecursionError):
        return False


def shard_files(entry: ShardEntry) -> dict[str, list[FileEntry]]:
    """Return the files of a shard by the part that they hold."""
    parts = {"codes": [entry.codes], "docs": [entry.docs], "ids": [entry.ids]}
    if entry.deletes is not None:
        parts["deletes"] = [entry.deletes.file]
    known = [file for files in parts.values() for file in files]
    others = [file for file in entry.files if file not in known]
    return parts | ({"tokens": others} if others else {})


def check_structure(snapshot: Snapshot, usable: bool) -> Iterator[Finding]:
    """Yield what is wrong with the structure of a generation."""
    structure = snapshot.manifest.structure
    assert structure is not None
    found = False
    for file in structure.files.values():
        try:
            verify_file(snapshot.folder, file)
        except (CorruptIndexError, StorageError) as error:
            found = True
            yield Finding(file.name, "structure", None, str(error))
    if usable and not found:
        try:
            _ = open_view(snapshot).searcher
        except (CorruptIndexError, IncompatibleIndexError) as error:
            name = next((file.name for file in structure.files.values()), MANIFEST)
            yield Finding(name, "structure", None, str(error))


def check_shard(shard: Shard, compressor: Compressor | None) -> Iterator[Finding]:
    """Yield what is wrong with a shard; codes are decoded when there is a compressor of one vector a row."""
    entry, damaged = shard.entry, False
    for part, files in shard_files(entry).items():
        for file in files:
            try:
                verify_file(shard.folder, file)
            except (CorruptIndexError, StorageError) as error:
                damaged = True
                yield Finding(file.name, part, entry.id, str(error))
    if damaged:
        return  # what does not fit together then follows from it

    def wrong(part: str, message: str) -> Finding:
        file = shard_files(entry).get(part, [entry.docs])[0]
        return Finding(file.name, part, entry.id, f"{shard.folder / file.name} {message}.")

    try:
        yield from (wrong(*found) for found in check_documents(shard))
        shard.touch()
        if compressor is not None:
            yield from (wrong("codes", found) for found in check_codes(shard, compressor))
    except RagqError as error:
        part = next((p for p, files in shard_files(entry).items() if any(f.name in str(error) for f in files)), "docs")
        yield Finding(shard_files(entry)[part][0].name, part, entry.id, str(error))


def check_documents(shard: Shard) -> Iterator[tuple[str, str]]:
    """Yield the parts of a shard that contradict its documents, and how."""
    ids, numbers = read_names(shard)
    first = np.flatnonzero(numbers == 0)
    follows = (numbers[1:] == numbers[:-1] + 1) & (ids[1:] == ids[:-1])
    if not len(numbers) or numbers[0] != 0 or not (follows | (numbers[1:] == 0)).all():
        yield "docs", "holds passages that do not follow each other"
        return
    if len(first) != shard.entry.documents:
        yield "docs", f"holds {len(first)} documents, not the {shard.entry.documents} of the manifest"
        return
    hashes = hash_ids(ids[first])
    order = np.argsort(hashes, kind="stable")
    known, rows = shard.ids
    if not (np.array_equal(known, hashes[order]) and np.array_equal(rows, first[order])):
        yield "ids", "does not name the documents of the shard"
        return
    if shard.deleted is not None and shard.entry.deletes is not None:
        gone = np.add.reduceat(shard.deleted, first, dtype=np.int64)
        sizes = np.diff(np.append(first, shard.rows))
        if not np.isin(gone - sizes, (0,)).sum() == (gone > 0).sum() == shard.entry.deletes.documents:
            yield "deletes", "deletes parts of documents, or not as many as the manifest says"


def read_names(shard: Shard) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return the document id and the number of each passage; raise `CorruptIndexError` on metadata that is not JSON."""
    ids: list[str] = []
    numbers: list[int] = []
    for batch in shard.docs_batches(["id", "passage", "metadata", "start"]):
        ids += batch.column(0).to_pylist()
        numbers += batch.column(1).to_pylist()
        ok = all(0 <= start <= LARGEST_TEXT for start in batch.column(3).to_pylist())
        for text in batch.column(2).to_pylist():
            try:
                ok = ok and isinstance(json.loads(text), dict)
            except (ValueError, RecursionError):
                ok = False
        if not ok:
            path = shard.folder / shard.entry.docs.name
            raise CorruptIndexError(f"{path} holds metadata that is not a JSON object, or a place outside of its text.")
    return np.asarray([*ids, None], object)[:-1], np.asarray(numbers, np.int64)


def check_codes(shard: Shard, compressor: Compressor) -> Iterator[str]:
    """Yield how the codes of a shard cannot be what the compressor writes."""
    for start in range(0, shard.rows, CHUNK_ROWS):
        codes: Any = shard.codes(start, min(start + CHUNK_ROWS, shard.rows))
        try:
            with np.errstate(all="ignore"):
                finite = np.isfinite(compressor.decode(codes)).all()
        except (RagqError, ValueError, IndexError) as error:
            yield f"holds codes that cannot be decoded: {error}"
            return
        if not finite:
            yield "holds codes of embeddings that are not finite"
            return


def duplicates(shards: list[Shard]) -> Iterator[Finding]:
    """Yield the documents that two shards, or two rows of one, show as theirs."""
    parts: list[tuple[NDArray[np.uint64], NDArray[np.uint32], int]] = []
    for number, shard in enumerate(shards):
        hashes, rows = shard.ids
        live = slice(None) if shard.deleted is None else ~shard.deleted[rows]
        parts.append((hashes[live], rows[live], number))
    if not parts:
        return
    hashes = np.concatenate([h for h, _, _ in parts])
    rows = np.concatenate([r for _, r, _ in parts])
    owner = np.repeat([number for _, _, number in parts], [len(h) for h, _, _ in parts])
    order = np.argsort(hashes, kind="stable")
    twin = order[1:][hashes[order][1:] == hashes[order][:-1]]
    seen: dict[str, int] = {}
    for i in order[np.isin(hashes[order], hashes[twin])]:
        shard = shards[owner[i]]
        name = shard.ids_at(rows[i : i + 1].astype(np.int64))[0]
        if name in seen:
            file = shard.entry.docs.name
            yield Finding(file, "docs", shard.entry.id, f"{shard.folder / file} holds {name!r} once more.")
        seen[name] = owner[i]
