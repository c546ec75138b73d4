"""Build a structure over the codes of an index, tune it to a recall, and commit it; nothing is embedded again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragq.checks import check_embeddings, check_int, normalized
from ragq.errors import InvalidArgumentError
from ragq.manifest import StructureEntry
from ragq.pipelines.progress import Progress
from ragq.retrievers.scan import scan
from ragq.retrievers.structures import graph
from ragq.retrievers.structures.auto import choose
from ragq.retrievers.structures.base import Coverage, Floats, Prepared, Probe
from ragq.retrievers.structures.chosen import Ranker
from ragq.retrievers.structures.hnsw import build_hnsw
from ragq.retrievers.structures.ivf import IVF, build_ivf, default_nlist
from ragq.retrievers.structures.neighbours import write_neighbours
from ragq.retrievers.structures.searcher import Searcher, load_structure
from ragq.retrievers.structures.sm2graph import build_sm2graph
from ragq.retrievers.structures.source import Source
from ragq.snapshot import Snapshot
from ragq.storage import storage_errors
from ragq.transaction import Transaction

if TYPE_CHECKING:
    from ragq.pipelines.index import Index

__all__ = ["KINDS", "Structured", "arguments", "renew", "restructure"]

KINDS = ("auto", "ivf", "hnsw", "sm2graph", "none")
# with fewer, an index built again of nearly the same codes is tuned to another effort by chance
TUNING_QUERIES = {"ivf": 1024, "hnsw": 4096, "sm2graph": 4096}
FEW_QUERIES = 512  # with which a graph is tuned roughly
ROUGH_STEP = 16  # the part of the effort in which it is
MOST_NEIGHBOURS = 256
NEIGHBOUR_ROWS = 512  # rows whose neighbours are looked for at once
TUNING_K = 10
MIXED = 0.9  # share of another row in a made-up query: one row alone would find itself too easily


@dataclass(frozen=True)
class Structured:
    """What was built.

    Attributes
    ----------
    kind : str
        ``ivf``, ``hnsw``, ``sm2graph``, ``none`` (searches scan every row), or ``flat``: none, but with neighbours.
    reason : str
        Why, when it was chosen by ``auto``, or that a graph is not walked; else empty.
    parameters : dict
        JSON values; ``recall`` is what the tuned search reached on the held-out queries (a graph's lies between two
        that were measured).
    """

    kind: str
    reason: str
    parameters: dict[str, Any]


def restructure(
    index: Index,
    transaction: Transaction,
    kind: str,
    nlist: int | None,
    recall: float,
    queries: ArrayLike | None,
    neighbours: int,
    seed: int,
    progress: Progress,
) -> Structured:
    """Do `Index.restructure` within a transaction."""
    if kind not in KINDS:
        raise InvalidArgumentError(f"'kind' must be one of {', '.join(KINDS)}. Got {kind!r}.")
    if not 0 < recall <= 1:
        raise InvalidArgumentError(f"'recall' must be above 0 and at most 1. Got {recall!r}.")
    if nlist is not None:
        check_int(nlist, "nlist", 1)
    check_int(neighbours, "neighbours", 0, MOST_NEIGHBOURS)
    given = None if queries is None else check_embeddings(queries, index.manifest.dim, name="queries")
    reason, asked = "", kind
    if index.manifest.multi_vector is not None:
        if kind not in ("auto", "none"):
            raise InvalidArgumentError(
                "A multi-vector index has a first stage in place of a structure. Build it with first_stage=…."
            )
        if neighbours:
            raise InvalidArgumentError("A multi-vector index stores no neighbours; 'expand' finds them by searching.")
        kind, reason = "none", "a multi-vector index has a first stage in place of a structure"
    if kind == "auto":
        kind, reason = choose(index.manifest.rows, getattr(index.compressor, "coarse_size", index.compressor.code_size))
    kind = "flat" if kind == "none" and neighbours else kind
    if kind == "none" or not index.manifest.shards:
        if index.manifest.structure is not None:
            commit(index, transaction, None)
        return Structured("none", reason, {})
    with Snapshot(index.path) as snapshot:
        builder = Builder(snapshot, index, transaction.prefix, seed, progress)
        described = builder.build(kind, nlist)
        tuned = builder.tune(described, given, recall)
        asked_for = {"asked": {"kind": asked, "nlist": nlist, "recall": recall, "neighbours": neighbours, "seed": seed}}
        described = replace(described, parameters=described.parameters | tuned | asked_for)
        if tuned.get("ef_search", 0) > builder.source.rows // graph.SCAN_SHARE:
            reason = f"to find {recall:.0%} a walk would look at so many rows that a scan is as fast: searches scan"
        if neighbours:
            described = builder.add_neighbours(described, neighbours)
    commit(index, transaction, described)
    return Structured(kind, reason, described.parameters)


def renew(index: Index, transaction: Transaction, progress: Progress) -> bool:
    """Build the structure of an index again, as it was asked for, when it does not cover exactly the shards."""
    described = index.manifest.structure
    if described is None or described.shards == tuple(entry.id for entry in index.manifest.shards):
        return False
    restructure(index, transaction, queries=None, progress=progress, **arguments(described))
    return True


def arguments(described: StructureEntry) -> dict[str, Any]:
    """Return the arguments of `Index.restructure` that a structure was asked for with."""
    known = {"kind": described.kind, "nlist": None, "recall": 0.95, "neighbours": 0, "seed": 0}
    given = described.parameters.get("asked", {})
    return {name: given.get(name, value) for name, value in known.items()}


def commit(index: Index, transaction: Transaction, described: StructureEntry | None) -> None:
    """Make a structure, or none, part of the next generation."""
    transaction.commit(lambda manifest: replace(manifest, structure=described))
    index.refresh()


class Builder:
    """One structure in the making, over all shards of a snapshot."""

    def __init__(self, snapshot: Snapshot, index: Index, prefix: str, seed: int, progress: Progress) -> None:
        self.snapshot, self.prefix, self.seed, self.progress = snapshot, prefix, seed, progress
        self.compressor, self.normalize = index.compressor, snapshot.manifest.normalize
        self.metric = "l2" if snapshot.manifest.metric == "l2" else "ip"
        self.source = Source(snapshot.shards, self.compressor)
        self.masks = [shard.live_mask for shard in snapshot.shards]

    def build(self, kind: str, nlist: int | None) -> StructureEntry:
        """Write the files; searches with them are not tuned yet."""
        folder, rows = self.snapshot.folder, self.source.rows
        with storage_errors(folder, "write to"):
            (folder / "structures").mkdir(exist_ok=True)
        prefix = f"structures/{self.prefix}"
        if kind == "ivf":
            lists = min(nlist or default_nlist(rows), rows)
            files, parameters = build_ivf(folder, prefix, self.source, self.metric, lists, self.seed, self.progress)
            parameters["nprobe"] = 1
        elif kind == "hnsw":
            files, parameters = build_hnsw(folder, prefix, self.source, self.metric, self.seed, self.progress)
            parameters["ef_search"] = 1
        elif kind == "flat":
            files, parameters = {}, {}
        else:
            files, parameters = build_sm2graph(folder, prefix, self.source, self.seed, self.progress)
            parameters["ef_search"] = 1
        entries = [shard.entry for shard in self.snapshot.shards]
        return StructureEntry(kind, parameters, tuple(e.id for e in entries), tuple(e.rows for e in entries), files)

    def add_neighbours(self, described: StructureEntry, k: int) -> StructureEntry:
        """Write the `k` nearest rows of each row, found by searching the structure itself."""
        searcher = Searcher(self.snapshot, self.metric, described)

        def chunks() -> Iterator[tuple[int, NDArray[np.int64]]]:
            for start, codes in self.source.codes():
                for first in range(0, len(codes), NEIGHBOUR_ROWS):
                    x = self.compressor.decode(codes[first : first + NEIGHBOUR_ROWS])
                    prepared = Prepared(self.compressor, normalized(x) if self.normalize else x, self.metric)
                    yield start + first, searcher.search(prepared, k + 1, self.masks, Probe())[1]

        name = f"structures/{self.prefix}.neighbours.arrow"
        file = write_neighbours(self.snapshot.folder, name, k, chunks(), self.source.rows, self.progress)
        return replace(
            described, files=described.files | {"neighbours": file}, parameters=described.parameters | {"neighbours": k}
        )

    def held_out(self, n: int) -> Floats:
        """Return made-up queries: each between two decoded rows, nearer to the first."""
        x = self.source.sample(n, self.seed + 1)
        x += MIXED * np.roll(x, 1, axis=0)
        x /= 1 + MIXED
        return x

    def tune(self, described: StructureEntry, given: Floats | None, recall: float) -> dict[str, Any]:
        """Return the least effort with which the best rows by the codes are found, and the recall that it gives."""
        if described.kind == "flat":
            return {}
        n = TUNING_QUERIES[described.kind]
        queries = self.held_out(n) if given is None else given[:n]
        if self.normalize:
            queries = normalized(queries)
        coverage = Coverage(self.snapshot, described)
        structure = load_structure(self.snapshot, described, coverage, Ranker(self.snapshot.shards), self.metric)
        prepared = Prepared(self.compressor, queries, self.metric)
        self.progress("tune", 0, 1)
        blocks = [shard.block for shard in self.snapshot.shards]
        scores, rows = scan(prepared.all, blocks, TUNING_K, self.masks)
        if isinstance(structure, IVF):
            nprobe, reached = tune_nprobe(structure, queries, rows, recall)
            found = {"nprobe": nprobe, "recall": round(reached, 4)}
        else:
            allowed = coverage.allowed(self.masks)

            def search(ef: int, which: NDArray[np.int64]) -> NDArray[np.float32]:
                return structure.search(prepared.part(which), TUNING_K, allowed, Probe(ef_search=ef), None)[0]

            ef, reached = tune_ef(search, scores, max(1, self.source.rows // graph.SCAN_SHARE), recall)
            found = {"ef_search": ef, "recall": round(reached, 4)}
        self.progress("tune", 1, 1)
        return found


def tune_nprobe(ivf: IVF, queries: Floats, truth: NDArray[np.int64], recall: float) -> tuple[int, float]:
    """Return the fewest lists that hold the share `recall` of the true rows, and the share that they hold.

    Parameters
    ----------
    ivf : IVF
    queries : ndarray of float32, shape (n_queries, dim)
    truth : ndarray of int64, shape (n_queries, k)
        The best rows by the scan, padded with -1.
    recall : float
    """
    rank = np.argsort(ivf.order(queries, ivf.nlist), axis=1)
    needed = np.take_along_axis(rank, ivf.lists.lists_of(np.maximum(truth, 0)), axis=1)[truth >= 0] + 1
    if not len(needed):
        return 1, 1.0
    nprobe = int(np.sort(needed)[int(np.ceil(recall * len(needed))) - 1])
    return nprobe, float((needed <= nprobe).mean())


def tune_ef(
    search: Callable[[int, NDArray[np.int64]], NDArray[np.float32]],
    truth: NDArray[np.float32],
    most: int,
    recall: float,
) -> tuple[int, float]:
    """Return the fewest candidates with which a search finds the share `recall` of the best scores, and what it finds.

    A part of the queries tells roughly how many, all of them where `recall` lies between two near numbers.

    Parameters
    ----------
    search : callable
        ``search(ef, which) -> scores`` of the queries `which`, of shape (len(which), k).
    truth : ndarray of float32, shape (n_queries, k)
        The best scores by the scan, padded with -inf.
    most : int
        Candidates beyond which a search is a scan.
    recall : float
    """
    real = truth > -np.inf
    few = max(1, len(truth) // FEW_QUERIES)

    @cache
    def reached(ef: int, every: int = 1) -> float:
        if ef > most or not real.any():
            return 1.0
        which = np.arange(0, len(truth), every)
        return float((search(ef, which) >= truth[which] - 1e-6)[real[which]].mean())

    low, high = 0, min(16, most + 1)
    while reached(high, few) < recall:
        low, high = high, min(2 * high, most + 1)
    while high - low > max(1, high // ROUGH_STEP):
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle, few) >= recall else (middle, high)
    step = high - low
    while reached(high) < recall:
        low, high = high, min(high + step, most + 1)
    while low > 0 and reached(low) >= recall:
        low, high = max(0, low - step), low
    if low == 0 or high > most:
        return high, reached(high)
    less, found = reached(low), reached(high)
    part = math.ceil((high - low) * (recall - less) / (found - less))
    return low + part, less + (found - less) * part / (high - low)
