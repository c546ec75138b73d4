"""A replica: some shards of the generations that are being served, memory-mapped, in a process of their own."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.errors import CorruptIndexError, InvalidArgumentError, RagqError
from ragq.filters import evaluate_rows, known_fields, unknown_fields
from ragq.manifest import MANIFEST, Manifest
from ragq.pipelines.documents import COLUMNS, fetch, metadata_of
from ragq.pipelines.token_view import open_view
from ragq.pipelines.view import TUNED, Masks
from ragq.remote import locate
from ragq.retrievers.structures.base import Found, Probe
from ragq.select import pack_mask
from ragq.snapshot import Snapshot
from ragq.tokens import TokenEmbeddings
from ragq.transaction import RETIRED

__all__ = ["Group", "Replica", "kept_filters"]

TOO_LARGE = "The answer is larger than this server sends at once. Ask for less."
IDS_AT_ONCE = 32
MASK_BYTES = 64 << 20  # of filters' bitsets that are kept for the next search with the same filter


@dataclass(frozen=True)
class Group:
    """Queries that are scanned together.

    Attributes
    ----------
    x : ndarray of float32, shape (n, dim), or list of ndarray, each of shape (tokens, dim)
        The latter for a multi-vector index.
    k : int
    where : str or None
        JSON of a filter that `Replica.prepare` has seen.
    probe : Probe
    """

    x: Any
    k: int
    where: str | None = None
    probe: Probe = TUNED


class Part:
    """Some neighbouring shards of one generation, and the filters that were evaluated on them."""

    def __init__(self, snapshot: Snapshot, threads: int | None) -> None:
        self.view, self.threads = open_view(snapshot), threads
        self._masks: OrderedDict[str, Masks] = OrderedDict()
        self._lock = threading.Lock()
        self._most = 2 * kept_filters(sum(shard.rows for shard in snapshot.shards))

    def masks(self, where: str | None) -> Masks:
        """Return a bitset a shard; those of a filter are kept for a while."""
        if where is None:
            return self.view.masks(None)
        with self._lock:
            if where in self._masks:
                self._masks.move_to_end(where)
                return self._masks[where]
        shards = self.view.snapshot.shards
        matches = evaluate_rows(shards, json.loads(where))
        masks: Masks = [
            pack_mask(rows if shard.deleted is None else rows & ~shard.deleted)
            for rows, shard in zip(matches, shards, strict=True)
        ]
        with self._lock:
            self._masks[where] = masks
            while len(self._masks) > self._most:
                self._masks.popitem(last=False)
        return masks

    def scan(self, group: Group) -> Found | RagqError:
        """Return the best rows of these shards, numbered over them; an error is the answer of this group alone."""
        x = group.x
        if isinstance(x, list):
            x = TokenEmbeddings.from_list(x, self.view.manifest.dim)
        try:
            return self.view.scan(x, group.k, self.masks(group.where), self.threads, group.probe)
        except RagqError as error:
            return error


class Replica:
    """What a serving process holds; its methods are called from the front, a thread a lane.

    Parameters
    ----------
    folder : str
        The index folder or URL.
    threads : int, optional
        Threads of a scan.
    """

    def __init__(self, folder: str, threads: int | None = None) -> None:
        self.folder, self.threads = locate(folder), threads
        self._parts: dict[int, Part] = {}

    def open(self, token: int, manifest: Manifest, first: int, stop: int) -> None:
        """Open shards `first` to `stop` of a generation, which the front holds a lease on."""
        snapshot = open_generation(self.folder, manifest)
        snapshot.shards = snapshot.shards[first:stop]
        part = Part(snapshot, self.threads)
        for shard in snapshot.shards:  # now, so that the first search waits for nothing
            shard.touch()
            _ = shard.live_mask
        _ = part.view.searcher
        self._parts[token] = part

    def release(self, token: int) -> None:
        """Forget a generation."""
        part = self._parts.pop(token, None)
        if part is not None:
            part.view.snapshot.close()

    def prepare(self, token: int, where: str) -> tuple[list[str], list[str]]:
        """Evaluate a filter for the scans to come; return the fields that no row here has, and then all known ones."""
        part = self._parts[token]
        shards = part.view.snapshot.shards
        unknown = unknown_fields(shards, json.loads(where))
        part.masks(where)
        return unknown, known_fields(shards) if unknown else []

    def scan(self, token: int, groups: Sequence[Group]) -> list[Found | RagqError]:
        """Search the shards for groups of queries."""
        part = self._parts[token]
        return [part.scan(group) for group in groups]

    def fetch(self, token: int, rows: NDArray[np.int64], most: int) -> list[dict[str, Any]]:
        """Return rows of these shards as the fields of hits; refuse more than `most` bytes of text."""
        if not len(rows):
            return []
        table = fetch(self._parts[token].view.snapshot, rows, COLUMNS)
        if table.nbytes > most:
            raise InvalidArgumentError(TOO_LARGE)
        return [
            {
                "id": f"{row['id']}#{row['passage']}",
                "document_id": row["id"],
                "title": row["title"],
                "text": row["text"],
                "metadata": metadata_of(row, self.folder),
            }
            for row in table.to_pylist()
        ]

    def find(self, token: int, ids: Sequence[str], most: int) -> list[dict[str, Any]]:
        """Return the documents of these shards that have one of some ids; refuse more than `most` letters of text."""
        found: list[dict[str, Any]] = []
        view = self._parts[token].view
        for start in range(0, len(ids), IDS_AT_ONCE):
            for d in view.get(ids[start : start + IDS_AT_ONCE]):
                most -= len(d.text)
                metadata = dict(d.metadata)
                found.append({"id": d.id, "title": d.title, "text": d.text, "metadata": metadata, "source": d.source})
            if most < 0:
                raise InvalidArgumentError(TOO_LARGE)
        return found


def kept_filters(rows: int) -> int:
    """Return how many filters of a generation of so many rows the front may take for evaluated; replicas keep twice."""
    return max(4, MASK_BYTES // 2 // max(1, rows // 8))


def open_generation(folder: Path, manifest: Manifest) -> Snapshot:
    """Open the generation that a manifest describes, which a writer may have retired meanwhile."""
    for name in (MANIFEST, f"{RETIRED}/{manifest.generation}.json"):
        try:
            snapshot = Snapshot(folder, name)
        except InvalidArgumentError:  # there is none of this name
            continue
        if snapshot.manifest == manifest:
            return snapshot
        snapshot.close()
    raise CorruptIndexError(f"{folder} has no generation {manifest.generation} any more.")
