"""`Searcher`: a snapshot's structure together with the scan of the shards that it does not cover."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.refine import Refined
from ragq.errors import IncompatibleIndexError
from ragq.manifest import StructureEntry
from ragq.retrievers.scan import default_threads, scan
from ragq.retrievers.structures.base import Allowed, Coverage, Found, Masks, Prepared, Probe, Structure, merge
from ragq.retrievers.structures.chosen import Ranker
from ragq.retrievers.structures.flat import Flat
from ragq.retrievers.structures.hnsw import HNSW
from ragq.retrievers.structures.ivf import IVF
from ragq.retrievers.structures.neighbours import NeighbourGraph
from ragq.retrievers.structures.sm2graph import SM2Graph
from ragq.snapshot import Snapshot

__all__ = ["Searcher", "load_structure", "take_probe"]


CANDIDATES = 20  # an answer, from lists of coarse codes: at 0.95 that finds as much as half as many lists again


def take_probe(options: dict[str, Any]) -> Probe:
    """Take what steers a structure out of the options of a search."""
    names = ("nprobe", "ef_search", "exact", "candidates")
    return Probe(**{name: options.pop(name) for name in names if name in options})


def load_structure(
    snapshot: Snapshot, described: StructureEntry, coverage: Coverage, ranker: Ranker, metric: str
) -> Structure:
    """Open a structure over shards of a snapshot.

    Raises
    ------
    CorruptIndexError
        Its files do not fit together.
    IncompatibleIndexError
        It is of a kind that this ragq does not know.
    """
    folder, dim = snapshot.folder, snapshot.manifest.dim
    if described.kind == "ivf":
        return IVF.load(folder, described, snapshot.layout.coarse, dim, metric)
    if described.kind == "hnsw":
        return HNSW.load(folder, described, ranker, coverage, dim, metric)
    if described.kind == "flat":
        return Flat()
    if described.kind == "sm2graph":
        return SM2Graph.load(folder, described, ranker, coverage, dim)
    raise IncompatibleIndexError(
        f"{folder} has a structure of kind '{described.kind}', which this ragq does not know. "
        "Update ragq, or remove it with: ragq structure INDEX none"
    )


class Searcher:
    """Search a snapshot by its structure; the answers are numbered and ordered as the scan's.

    Parameters
    ----------
    snapshot : Snapshot
        One whose manifest names a structure.
    metric : {'ip', 'l2'}
        Of the scores.
    described : StructureEntry, optional
        A structure that the manifest does not name yet.
    """

    def __init__(self, snapshot: Snapshot, metric: str, described: StructureEntry | None = None) -> None:
        described = described or snapshot.manifest.structure
        assert described is not None
        self.snapshot, self.described = snapshot, described
        self.coverage = Coverage(snapshot, described)
        self.ranker = Ranker(snapshot.shards)
        self.structure = load_structure(snapshot, described, self.coverage, self.ranker, metric)
        self._live: Allowed | None = None  # what a search without a filter lets through
        self._known: Masks | None = None  # the masks of one

    def search(self, prepared: Prepared, k: int, masks: Masks, probe: Probe, threads: int | None = None) -> Found:
        """Return the best `k` rows of the snapshot; see `ragq.retrievers.scan.scan` for what comes out."""
        allowed = self._allowed(masks)
        if not self.structure.pays(allowed, probe):
            return scan(prepared.all, [shard.block for shard in self.snapshot.shards], k, masks, threads)
        if isinstance(self.structure, IVF) and isinstance(prepared.compressor, Refined):
            parts = [self._refined(self.structure, prepared, prepared.compressor, k, allowed, probe, threads)]
        else:
            scores, rows = self.structure.search(prepared, k, allowed, probe, threads)
            parts = [(scores, self.coverage.current(rows))]
        others = self.coverage.others
        if others:
            shards = [self.snapshot.shards[i] for i in others]
            scores, rows = scan(prepared.all, [shard.block for shard in shards], k, [masks[i] for i in others], threads)
            parts.append((scores, self._numbered(rows)))
        return merge(parts, k) if len(parts) > 1 else parts[0]

    @cached_property
    def neighbours(self) -> NeighbourGraph | None:
        """The stored neighbours of each row, if there are any."""
        if "neighbours" not in self.described.files:
            return None
        return NeighbourGraph(self.snapshot.folder, self.described, self.coverage)

    def _refined(
        self,
        structure: IVF,
        prepared: Prepared,
        compressor: Refined,
        k: int,
        allowed: Allowed,
        probe: Probe,
        threads: int | None,
    ) -> Found:
        """Search lists, which hold coarse codes alone, and score what is found by the fine codes of the shards."""
        coarse = Prepared(compressor.coarse, prepared.queries, prepared.metric)
        found = structure.candidates(coarse, CANDIDATES * k, allowed, probe, threads)
        threads = default_threads() if threads is None else threads
        return self.ranker.topk(prepared, self.coverage.current(found), k, threads)

    def _allowed(self, masks: Masks) -> Allowed:
        """Return the rows that masks let through; those of a search without a filter are kept."""
        if masks is self._known and self._live is not None:
            return self._live
        if any(mask is not shard.live_mask for mask, shard in zip(masks, self.snapshot.shards, strict=True)):
            return self.coverage.allowed(masks)
        if self._live is None:
            self._known, self._live = masks, self.coverage.allowed(masks)
        return self._live

    def _numbered(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Turn row numbers over the shards that are scanned into those over all shards."""
        sizes = [self.snapshot.shards[i].rows for i in self.coverage.others]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        owner = np.maximum(np.searchsorted(starts, rows, "right") - 1, 0)
        first = self.snapshot.starts[self.coverage.others]
        return np.where(rows >= 0, rows - starts[owner] + first[owner], -1)
