"""`ragq repair`: rebuild what can be rebuilt of a damaged index, and drop the shards that cannot, their ids listed.

Nothing is guessed. A file is mended in place only when its bytes then have the checksum that the manifest names. What
is derived from other files is derived from files whose checksums are right, and checked before the one commit that
makes it part of the index; until then the index is as it was.

==================  ==================================================================================================
any file, 64 KB     one flipped bit is turned back
manifest            a flipped bit, a changed byte between its values, a wrong checksum; else nothing can be done
id lookup           rebuilt from the documents
delete bitset       derived, if all that was deleted was replaced by later documents; else its shard is dropped
structure           built anew
codes, documents    their shard is dropped
fitted state        nothing can be done: without it no code has a meaning
==================  ==================================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from ragq.errors import CorruptIndexError, InvalidArgumentError, RagqError
from ragq.manifest import MANIFEST, FileEntry, Manifest, ShardEntry
from ragq.pipelines.checkup import Finding, check_shard, checkup, read_names
from ragq.pipelines.documents import COLUMNS, join_passages
from ragq.pipelines.mending import MENDABLE, mend_bit, mend_manifest
from ragq.remote import address, locate
from ragq.shards import IDS_SCHEMA, Shard, hash_ids, write_batch, write_deletes
from ragq.snapshot import Snapshot
from ragq.storage import WriterLock, inside, storage_errors, write_bytes
from ragq.token_shards import open_shard
from ragq.transaction import Transaction, earlier_duplicates
from ragq.types import Document

__all__ = ["Action", "Repair", "repair"]


@dataclass(frozen=True)
class Action:
    """One step of a repair.

    Attributes
    ----------
    what : {'mend', 'rebuild', 'drop'}
        Turn a bit back, make a file anew, or take a shard out of the index.
    part : str
        As of `Finding`.
    file : str
        The damaged file.
    shard : str or None
    message : str
    ids : tuple of str
        Documents that go with a dropped shard.
    unknown : int
        More of them, whose ids cannot be read any more.
    """

    what: str
    part: str
    file: str
    shard: str | None
    message: str
    ids: tuple[str, ...] = ()
    unknown: int = 0


@dataclass(frozen=True)
class Repair:
    """What a repair did, or would do.

    Attributes
    ----------
    applied : bool
    findings : tuple of Finding
        What was wrong.
    actions : tuple of Action
        What was done about it; empty when nothing was wrong.
    """

    applied: bool
    findings: tuple[Finding, ...]
    actions: tuple[Action, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def repair(path: str | Path, *, apply: bool = False, salvage: str | Path | None = None) -> Repair:
    """Repair a damaged index, or say what that would do.

    Parameters
    ----------
    path : str or Path
        The index folder.
    apply : bool
        Do it; False changes nothing.
    salvage : str or Path, optional
        A JSONL file for the documents of dropped shards that can still be read, as `Index.add` takes them. It must not
        exist.

    Returns
    -------
    Repair

    Raises
    ------
    CorruptIndexError
        Nothing can be done: the manifest or the fitted state is lost. The index is as it was.
    IndexLockedError, StorageError
        Somebody writes to the index, or it cannot be written to.
    """
    folder = locate(path)
    if address(folder) != str(folder):
        raise InvalidArgumentError(f"{address(folder)} is in an object store. Copy it into a folder, and repair that.")
    if salvage is not None and Path(salvage).exists():
        raise InvalidArgumentError(f"{salvage} exists. Choose another file for what is salvaged.")
    findings = checkup(folder)
    actions: list[Action] = []
    if not findings:
        return Repair(False, (), ())
    if findings[0].part == "manifest":
        data = mend_manifest(folder)
        if data is None:
            raise CorruptIndexError(
                f"{findings[0].message} It cannot be put right, and says what all other files mean: bring {MANIFEST} "
                "back from a copy, or index the documents again (shards/*.docs.arrow are Arrow files that hold them)."
            )
        actions.append(Action("mend", "manifest", MANIFEST, None, "put right, as its checksum proves"))
        if not apply:
            rest = "; the other files are looked at once it is"
            actions[0] = replace(actions[0], message=actions[0].message + rest)
            return Repair(False, tuple(findings), tuple(actions))
        with WriterLock(folder):
            write_bytes(folder / MANIFEST, data)
        findings = findings[1:] or checkup(folder)
    with Snapshot(folder) as snapshot:
        plan = Plan(snapshot, findings)
        if apply and plan.mended:
            actions += [action for action in plan.actions if action.what == "mend"]
            with WriterLock(folder):
                for name, data in plan.mended.items():
                    write_bytes(inside(folder, name), data)
            plan = Plan(snapshot, checkup(folder))
        actions += plan.actions
        if apply:
            plan.apply(Path(salvage) if salvage is not None else None)
    if apply:
        with Transaction(folder):  # removes what was replaced, now that nobody looks at it any more
            pass
    return Repair(apply, tuple(findings), tuple(actions))


class Plan:
    """What is to be done about the findings of a generation.

    Parameters
    ----------
    snapshot : Snapshot
        The generation.
    findings : list of Finding
        What is wrong with it.

    Raises
    ------
    CorruptIndexError
        The fitted state is lost.
    """

    def __init__(self, snapshot: Snapshot, findings: list[Finding]) -> None:
        self.snapshot, self.folder, self.manifest = snapshot, snapshot.folder, snapshot.manifest
        self.actions: list[Action] = []
        self.mended: dict[str, bytes] = {}
        self._ids: dict[str, pa.RecordBatch] = {}
        self._deleted: dict[str, tuple[NDArray[np.bool_], int]] = {}
        self._dropped: dict[str, bool] = {}  # shard -> whether its documents can be read
        self._structure = False
        files = {file.name: file for file in self.manifest.files}
        left = []
        for finding in findings:
            if finding.part != "manifest" and not self._mend(finding, files.get(finding.file)):
                left.append(finding)
        for finding in left:
            if finding.part == "compressor":
                raise CorruptIndexError(
                    f"{finding.message} Without it no code has a meaning: bring it back from a copy, or index the "
                    "documents again (shards/*.docs.arrow are Arrow files that hold them)."
                )
            if finding.part == "structure" and not self._structure:
                self._structure = True
                self._act("rebuild", finding, "the structure is built anew from the codes")
        by_shard: dict[str, list[Finding]] = {}
        for finding in left:
            if finding.shard is not None:
                by_shard.setdefault(finding.shard, []).append(finding)
        for shard in reversed(snapshot.shards):  # later ones first: they say what was replaced in earlier ones
            if shard.entry.id in by_shard:
                self._plan_shard(shard, by_shard[shard.entry.id])

    def _act(self, what: str, finding: Finding, message: str, ids: tuple[str, ...] = (), unknown: int = 0) -> None:
        self.actions.append(Action(what, finding.part, finding.file, finding.shard, message, ids, unknown))

    def _mend(self, finding: Finding, file: FileEntry | None) -> bool:
        if file is None:
            return False
        if file.name in self.mended:
            return True
        try:
            path = inside(self.folder, file.name)
            data = path.read_bytes() if path.stat().st_size == file.size <= MENDABLE else b""
        except (OSError, RagqError):
            return False
        mended = mend_bit(data, file.xxh3) if data and xxhash.xxh3_128_hexdigest(data) != file.xxh3 else None
        if mended is None:
            return False
        self.mended[file.name] = mended
        self._act("mend", finding, "a flipped bit is turned back, as the checksum proves")
        return True

    def _plan_shard(self, shard: Shard, findings: list[Finding]) -> None:
        parts = {finding.part for finding in findings}
        if parts <= {"ids", "deletes"}:
            try:
                if "ids" in parts:
                    self._ids[shard.entry.id] = lookup(shard)
                if "deletes" in parts:
                    self._deleted[shard.entry.id] = self._replaced(shard)
            except RagqError as error:
                findings = [replace(findings[0], message=str(error))]
            else:
                for finding in findings:
                    how = "from the documents" if finding.part == "ids" else "from the documents that replaced others"
                    self._act("rebuild", finding, f"made anew {how}")
                return
        self._ids.pop(shard.entry.id, None)
        ids, unknown = readable_ids(shard, parts)
        self._dropped[shard.entry.id] = "docs" not in parts and "deletes" not in parts
        self._act("drop", findings[0], f"the shard is dropped: {findings[0].message}", ids, unknown)

    def _replaced(self, shard: Shard) -> tuple[NDArray[np.bool_], int]:
        """Return the deleted rows of a shard and how many documents they are, if all of them were replaced."""
        gone = shard.entry.deletes
        assert gone is not None
        later = self.snapshot.shards[self.snapshot.shards.index(shard) :]
        if any(other.entry.id in self._dropped or other.entry.id in self._ids for other in later):
            raise CorruptIndexError(f"{gone.file.name} cannot be derived: a later shard is damaged, too.")
        deleted, documents = np.zeros(shard.rows, bool), 0
        for owner, first in earlier_duplicates(later):
            if owner is shard:
                stop = shard.documents[np.searchsorted(shard.documents, first) + 1]
                for a, b in zip(first, stop, strict=True):
                    deleted[a:b] = True
                documents += len(first)
        if (int(deleted.sum()), documents) != (gone.rows, gone.documents):
            raise CorruptIndexError(
                f"{gone.file.name} cannot be derived: {documents} documents were replaced, {gone.documents} deleted."
            )
        return deleted, documents

    def apply(self, salvage: Path | None) -> None:
        """Rebuild and drop in one commit, then build the structure."""
        if salvage is not None and self._dropped:
            self._salvage(salvage)
        if not (self._ids or self._deleted or self._dropped or self._structure):
            return
        with Transaction(self.folder) as transaction:
            if transaction.manifest != self.manifest:
                raise CorruptIndexError(f"{self.folder} has changed meanwhile. Run the repair again.")
            entries = [self._entry(entry, transaction.prefix) for entry in self.manifest.shards]
            kept = tuple(entry for entry in entries if entry is not None)
            structure = None if self._structure else self.manifest.structure
            transaction.manifest = replace(self.manifest, shards=kept, structure=structure)
            transaction.commit()
        if self._structure and kept and self.manifest.structure is not None:
            rebuild_structure(self.folder, self.manifest)

    def _entry(self, entry: ShardEntry, prefix: str) -> ShardEntry | None:
        """Return a shard's entry with what was rebuilt, written and checked; None when it is dropped."""
        if entry.id in self._dropped:
            return None
        old = entry
        if entry.id in self._ids:
            name = f"shards/{entry.id}.{prefix}.ids.arrow"
            entry = replace(entry, ids=write_batch(self.folder, name, self._ids[entry.id]))
        if entry.id in self._deleted:
            deleted, documents = self._deleted[entry.id]
            entry = replace(entry, deletes=write_deletes(self.folder, entry, f"{prefix}.repaired", deleted, documents))
        if entry is not old:
            wrong = next(check_shard(open_shard(self.folder, entry, self.manifest), None), None)
            if wrong is not None:
                raise CorruptIndexError(f"The repair is given up, and the index is as it was: {wrong.message}")
        return entry

    def _salvage(self, path: Path) -> None:
        """Write the documents of dropped shards that can be read, whole and undeleted, as JSON lines."""
        with storage_errors(path, "write"), path.open("x", encoding="utf-8") as file:
            for shard in self.snapshot.shards:
                if self._dropped.get(shard.entry.id):
                    for d in documents_of(shard):
                        record = dict(d.metadata) | {"id": d.id, "title": d.title, "text": d.text}
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def lookup(shard: Shard) -> pa.RecordBatch:
    """Make the id lookup of a shard from its documents."""
    ids, numbers = read_names(shard)
    first = np.flatnonzero(numbers == 0)
    if len(first) != shard.entry.documents:
        raise CorruptIndexError(f"{shard.entry.docs.name} holds {len(first)} documents, not {shard.entry.documents}.")
    hashes = hash_ids(ids[first])
    order = np.argsort(hashes, kind="stable")
    columns = [pa.array(hashes[order]), pa.array(first[order].astype(np.uint32))]
    return pa.record_batch(columns, schema=IDS_SCHEMA)


def readable_ids(shard: Shard, parts: set[str]) -> tuple[tuple[str, ...], int]:
    """Return the ids of a shard's documents as far as they can be told for sure, and how many cannot."""
    ids: list[str] = []
    known = None
    if "docs" in parts and "ids" not in parts:
        try:
            known = set(shard.ids[0].tolist())
        except RagqError:
            known = None
    batches = shard.docs_batches(["id", "passage"])
    for _ in range(shard.rows):
        try:
            batch = next(batches)
        except StopIteration:
            break
        except RagqError:  # a generator that raised has ended
            break
        pairs = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
        names = [name for name, number in pairs if number == 0]
        if "docs" in parts:
            hashes = hash_ids(names).tolist()
            names = [n for n, value in zip(names, hashes, strict=True) if known is not None and value in known]
        ids += names
    ids = list(dict.fromkeys(ids))
    return tuple(ids), max(0, shard.entry.documents - len(ids))


def documents_of(shard: Shard) -> Iterator[Document]:
    """Yield the live documents of a shard."""
    rows: list[dict[str, Any]] = []
    start = 0
    for batch in shard.docs_batches(COLUMNS):
        for row, fields in enumerate(batch.to_pylist(), start):
            if fields["passage"] == 0 and rows:
                yield join_passages(rows, shard.folder)
                rows = []
            if shard.deleted is None or not shard.deleted[row]:
                rows.append(fields)
        start += batch.num_rows
    if rows:
        yield join_passages(rows, shard.folder)


def rebuild_structure(folder: Path, manifest: Manifest) -> None:
    """Build the structure of an index as it was asked for."""
    from ragq.pipelines.index import Index
    from ragq.pipelines.restructure import arguments

    assert manifest.structure is not None
    with Index(folder, mode="w") as index:
        index.restructure(**arguments(manifest.structure))
