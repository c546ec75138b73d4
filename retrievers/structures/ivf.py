"""IVF: an inverted file, the codes of an index sorted into lists around centroids.

Centroids come from k-means (Lloyd) over a sample of decoded embeddings, in their `REDUCED` leading principal
directions: that keeps the order of the lists for a quarter of the arithmetic. A list that would hold more than
`BALANCE` times the mean is split. A query scans the `nprobe` lists of the largest ``<q, c> + SPREAD |q| r``, where `r`
is the root mean squared distance of a list's rows from its centroid (for l2, of the largest ``<q, c> - |c|^2 / 2``),
with the same kernels and the same scores as the exhaustive scan. A wide list may hold a better row than its centroid
tells: on text embeddings that finds as much in a third fewer lists.

Sivic and Zisserman, "Video Google", ICCV 2003; Jégou, Douze and Schmid, TPAMI 2011, section 4 (codes here are those of
the index, not of residuals).

Files: ``lists`` (projection, centroids, offsets), ``codes`` (a codes file in list order, without the fine codes of a
refined codec; lists begin at multiples of 32 rows), ``rows`` (the row of each place), and ``graph`` (HNSW over the
centroids) from `GRAPH_LISTS` lists on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragq.buffers import numpy_values
from ragq.compressors import _cpu
from ragq.compressors.codebooks import cpu_threads, kmeans
from ragq.compressors.scorers import Scorer
from ragq.errors import CorruptIndexError, MissingExtraError
from ragq.layouts import BLOCK_ROWS, Block, Layout
from ragq.manifest import FileEntry, StructureEntry
from ragq.retrievers import kernels
from ragq.retrievers.scan import default_threads
from ragq.retrievers.structures import hnsw
from ragq.retrievers.structures.base import (
    PRINCIPAL_ROWS,
    Allowed,
    Floats,
    Found,
    Prepared,
    Probe,
    Source,
    Structure,
    load_arrays,
    parameter,
    principal,
    save_arrays,
)
from ragq.select import pack_mask
from ragq.shards import read_block, single_batch, write_batch, write_block

__all__ = ["IVF", "build_ivf", "default_nlist"]

NO_ROW = np.uint32(0xFFFFFFFF)  # at the places that fill a list up
ROWS_SCHEMA = pa.schema([("row", pa.uint32())])
LIST_ROWS = 128  # as a list is filled up to a multiple of 32
TRAINING_ROWS = 64  # a centroid
ITERATIONS = 10
SPREAD = 0.3
BALANCE = 3  # times the mean length, above which a list is split
GRAPH_LISTS = 8192  # from which a graph finds the lists faster than comparing with all of them
IN_PLACE = 4  # lists are scanned where they lie when they hold more than this part of the places
TIES = 8  # rows beyond k that are looked at, since places do not lie in row order


class IVF(Structure):
    """An inverted file.

    Parameters
    ----------
    block : Block
        The codes in list order.
    rows : ndarray of uint32, shape (places,)
        Row of each place; `NO_ROW` where there is none.
    arrays : dict
        ``projection`` (d, dim), ``centroids`` (nlist, d), ``radii`` (nlist,) and ``offsets`` (nlist + 1,), multiples
        of 32.
    metric : {'ip', 'l2'}
    nprobe : int
        What searches use that do not say.
    graph : hnswlib.Index, optional
        Over the centroids.
    """

    kind = "ivf"

    def __init__(
        self,
        block: Block,
        rows: NDArray[np.uint32],
        arrays: dict[str, NDArray[Any]],
        metric: str,
        nprobe: int,
        graph: Any = None,
    ) -> None:
        self.block, self.rows, self.graph, self.nprobe = block, rows, graph, nprobe
        self.projection, self.centroids, self.offsets = arrays["projection"], arrays["centroids"], arrays["offsets"]
        self.metric = metric
        self.keys = keys_of(self.centroids, arrays["radii"], metric)
        self.half_norms = (self.centroids**2).sum(axis=1) / 2 if metric == "l2" else np.float32(0)
        self.real = int((rows != NO_ROW).sum())

    @classmethod
    def load(cls, folder: Path, described: StructureEntry, layout: Layout, dim: int, metric: str) -> IVF:
        """Open the files that a manifest names; raise `CorruptIndexError` when they do not fit together."""
        files = described.files
        if not {"lists", "codes", "rows"} <= set(files):
            raise CorruptIndexError(f"The inverted file of {folder} lacks files; it has {', '.join(files)}.")
        arrays = load_arrays(
            folder,
            files["lists"],
            {"projection": ("f4", 2), "centroids": ("f4", 2), "radii": ("f4", 1), "offsets": ("i8", 1)},
        )
        offsets, projection, centroids = arrays["offsets"], arrays["projection"], arrays["centroids"]
        places = parameter(described, "places", folder)
        if (
            len(offsets) != len(centroids) + 1
            or len(arrays["radii"]) != len(centroids)
            or (offsets[0], offsets[-1]) != (0, places)
            or (offsets % BLOCK_ROWS).any()
            or (np.diff(offsets) < 0).any()
            or projection.shape != (centroids.shape[1], dim)
        ):
            raise CorruptIndexError(f"{folder / files['lists'].name} does not describe lists of {places} places.")
        block = read_block(folder, files["codes"], layout, places)
        batch = single_batch(folder, files["rows"], ROWS_SCHEMA, places)
        rows = numpy_values(batch.column(0), "<u4")
        real = rows[rows != NO_ROW]
        if len(real) != sum(described.rows) or (len(real) and real.max() >= len(real)):
            raise CorruptIndexError(f"{folder / files['rows'].name} names rows that the structure does not have.")
        graph = None
        if "graph" in files:
            keys = keys_of(centroids, arrays["radii"], metric)
            graph = hnsw.load_graph(folder, files["graph"], metric, *keys.shape[::-1])
        return cls(block, rows, arrays, metric, parameter(described, "nprobe", folder), graph)

    @property
    def nlist(self) -> int:
        """Lists."""
        return len(self.centroids)

    def lists_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the list of each of some rows."""
        place = np.empty(self.real, np.int64)
        places = np.flatnonzero(self.rows != NO_ROW)
        place[self.rows[places]] = places
        return np.searchsorted(self.offsets, place[rows], "right") - 1

    def order(self, queries: Floats, n: int) -> NDArray[np.int64]:
        """Return the `n` best lists of each query, best first: (n_queries, n)."""
        reduced = queries @ self.projection.T
        if self.metric == "ip":
            reduced = np.concatenate([reduced, np.linalg.norm(queries, axis=1, keepdims=True)], axis=1)
        if self.graph is not None and n <= self.nlist // 8:
            found = hnsw.neighbours(self.graph, reduced, n, max(2 * n, 64))
            if found is not None:
                return found
        closeness = reduced @ self.keys.T - self.half_norms
        if n < self.nlist:
            best = np.argpartition(-closeness, n - 1, axis=1)[:, :n]
            closeness = np.take_along_axis(closeness, best, axis=1)
            return np.take_along_axis(best, np.argsort(-closeness, axis=1, kind="stable"), axis=1)
        return np.argsort(-closeness, axis=1, kind="stable")

    def pays(self, allowed: Allowed, probe: Probe) -> bool:
        return probe.nprobe is not None or self._nprobe(allowed, probe) < self.nlist

    def search(self, prepared: Prepared, k: int, allowed: Allowed, probe: Probe, threads: int | None) -> Found:
        n_queries = len(prepared.queries)
        scores = np.full((n_queries, k), -np.inf, np.float32)
        rows = np.full((n_queries, k), -1, np.int64)
        if allowed.bits is None:
            allowed.bits = self._bits(allowed)
        threads = default_threads() if threads is None else threads
        nprobe = self._nprobe(allowed, probe)
        lists = self.order(prepared.queries, nprobe) if allowed.count else None
        for i in range(n_queries if lists is not None else 0):
            assert lists is not None
            found = self._scan(prepared.one(i), k, lists[i], allowed, threads)
            n = nprobe
            while len(found[1]) < min(k, allowed.count) and n < self.nlist:  # the filter left too little in these
                n = min(4 * n, self.nlist)
                wider = self.order(prepared.queries[i : i + 1], n)
                found = self._scan(prepared.one(i), k, wider[0], allowed, threads)
            scores[i, : len(found[0])], rows[i, : len(found[1])] = found
        return scores, rows

    def _nprobe(self, allowed: Allowed, probe: Probe) -> int:
        """Return how many lists to scan: more when a filter makes the best rows lie farther away, all when few pass."""
        if probe.nprobe is not None:
            return min(probe.nprobe, self.nlist)
        share = allowed.count / max(1, self.real)
        if share * self.nlist <= 2 * self.nprobe:  # scattered rows cost no more than that many lists
            return self.nlist
        return min(int(np.ceil(self.nprobe / np.sqrt(share))), self.nlist)

    def _bits(self, allowed: Allowed) -> NDArray[np.uint8]:
        """Return the bitset of places that may be returned."""
        places = self.rows != NO_ROW
        places[places] = allowed.rows[self.rows[places]]
        return pack_mask(places)

    def _scan(
        self, scorer: Scorer, k: int, lists: NDArray[np.int64], allowed: Allowed, threads: int
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Return the best rows of some lists for one query, without padding."""
        assert allowed.bits is not None
        blocks = self._blocks(lists)
        if len(blocks) > self.block.rows // BLOCK_ROWS // IN_PLACE:
            blocks = np.arange(self.block.rows // BLOCK_ROWS)
            part, bits = self.block, self._only(lists, allowed.bits)
        else:
            part, bits = self._copied(blocks), allowed.bits.reshape(-1, BLOCK_ROWS // 8)[blocks].ravel()
        n = k + TIES
        while True:
            scores, found = (result[0] for result in kernels.topk(scorer, part, n, bits, threads=threads))
            scores, found = scores[found >= 0], found[found >= 0]
            if len(scores) < n or scores[k - 1] > scores[-1]:
                break
            n *= 4  # as many rows as that score the same: the lowest of them are wanted
        rows = self.rows[blocks[found // BLOCK_ROWS] * BLOCK_ROWS + found % BLOCK_ROWS].astype(np.int64)
        order = np.lexsort((rows, -scores))[:k]
        return scores[order], rows[order]

    def _only(self, lists: NDArray[np.int64], bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a bitset of places cut down to some lists."""
        chosen = np.zeros(self.nlist, bool)
        chosen[lists] = True
        inside = np.repeat(chosen, np.diff(self.offsets) // BLOCK_ROWS)
        return np.where(inside[:, None], bits.reshape(-1, BLOCK_ROWS // 8), np.uint8(0)).ravel()

    def _copied(self, blocks: NDArray[np.int64]) -> Block:
        """Return some 32-row blocks side by side: copying them costs less than passing over all the others."""
        even = blocks if len(blocks) % 2 == 0 else np.append(blocks, blocks[-1])  # columns are padded to 64 rows
        columns = {
            name: column.reshape(-1, BLOCK_ROWS * column.shape[1])[even].reshape(-1, column.shape[1])
            for name, column in self.block.columns.items()
        }
        return Block(self.block.layout, columns, len(blocks) * BLOCK_ROWS)

    def _blocks(self, lists: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the 32-row blocks of some lists, in their order: the best first, for a high bar."""
        first = self.offsets[lists] // BLOCK_ROWS
        counts = self.offsets[lists + 1] // BLOCK_ROWS - first
        return np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


def keys_of(centroids: Floats, radii: Floats, metric: str) -> Floats:
    """Return what queries are compared with: for inner products, a radius is one more dimension of its centroid."""
    return np.concatenate([centroids, SPREAD * radii[:, None]], axis=1) if metric == "ip" else centroids


def default_nlist(rows: int) -> int:
    """Return a number of lists: the power of two nearest to ``4 sqrt(rows)``, but `LIST_ROWS` rows a list or more."""
    return max(1, min(2 ** round(np.log2(4 * np.sqrt(rows))), rows // LIST_ROWS))


def build_ivf(
    folder: Path,
    prefix: str,
    source: Source,
    metric: str,
    nlist: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[str, FileEntry], dict[str, Any]]:
    """Write the files of an inverted file over all rows of `source`.

    Memory is all codes three times, and 16 bytes a row.

    Parameters
    ----------
    folder : Path
        The index folder.
    prefix : str
        What the names of the files begin with, below the folder.
    source : Source
    metric : {'ip', 'l2'}
        Of the scores that searches will ask for.
    nlist : int
        Lists before balancing.
    seed : int
    progress : callable

    Returns
    -------
    files : dict of str to FileEntry
    parameters : dict
        ``nlist`` and ``places``.
    """
    rng = np.random.default_rng(seed)
    projection = principal(source.sample(PRINCIPAL_ROWS, rng))
    progress("train", 0, 1)
    training = source.sample(TRAINING_ROWS * nlist, rng, lambda x: x @ projection.T)
    centroids = balanced_centroids(training, nlist, seed)
    progress("train", 1, 1)
    layout = source.compressor.layout.coarse
    codes = np.empty((source.rows, layout.code_size), np.uint8)
    assigned = np.empty(source.rows, np.uint32)
    squares = np.empty(source.rows, np.float32)
    for start, part in source.codes():
        decoded = source.compressor.decode(part)
        squares[start : start + len(part)] = np.einsum("ij,ij->i", decoded, decoded)
        x = np.ascontiguousarray(decoded @ projection.T)
        codes[start : start + len(part)] = part[:, : layout.code_size]
        assigned[start : start + len(part)], _ = _cpu.assign(x, centroids, cpu_threads())
        progress("assign", start + len(part), source.rows)
    rows, offsets = places_of(assigned, len(centroids))
    sorted_codes = np.zeros((len(rows), codes.shape[1]), np.uint8)
    sorted_codes[rows != NO_ROW] = codes[rows[rows != NO_ROW]]
    del codes
    counts = np.maximum(np.bincount(assigned, minlength=len(centroids)), 1)
    means = np.bincount(assigned, squares, minlength=len(centroids)) / counts
    radii = np.sqrt(np.maximum(means - (centroids**2).sum(axis=1), 0)).astype(np.float32)
    arrays: dict[str, NDArray[Any]] = {
        "projection": projection,
        "centroids": centroids,
        "radii": radii,
        "offsets": offsets,
    }
    files = {
        "lists": save_arrays(folder, f"{prefix}.lists.safetensors", arrays),
        "codes": write_block(folder, f"{prefix}.codes.arrow", layout, sorted_codes),
        "rows": write_batch(folder, f"{prefix}.rows.arrow", pa.record_batch([pa.array(rows)], schema=ROWS_SCHEMA)),
    }
    if len(centroids) >= GRAPH_LISTS:
        try:
            graph = hnsw.new_graph(keys_of(centroids, radii, metric), metric)
            files["graph"] = hnsw.save_graph(folder, f"{prefix}.graph.hnsw", graph)
        except MissingExtraError:
            pass  # comparing with every centroid works as well, only slower
    return files, {"nlist": len(centroids), "places": len(rows)}


def balanced_centroids(training: Floats, nlist: int, seed: int) -> Floats:
    """Return at least `nlist` centroids, such that no list is expected to be longer than `BALANCE` times the mean.

    Lists are split by the rows of the sample that they hold; rows that are all the same stay together.
    """
    rng = np.random.default_rng(seed)
    start = training[np.sort(rng.choice(len(training), nlist, replace=False))]
    centroids = kmeans(training, nlist, iterations=ITERATIONS, seed=seed, initial=start)
    assigned, _ = _cpu.assign(training, centroids, cpu_threads())
    sizes = np.bincount(assigned, minlength=nlist)
    most = BALANCE * len(training) / nlist
    parts = [centroids[sizes <= most]]
    for long in np.flatnonzero(sizes > most):
        members = np.ascontiguousarray(training[assigned == long])
        parts.append(kmeans(members, int(np.ceil(2 * len(members) / most)), iterations=ITERATIONS, seed=seed))
    return np.unique(np.concatenate(parts), axis=0)


def places_of(assigned: NDArray[np.uint32], nlist: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Sort rows into lists: the row of each place, and where the lists begin, at multiples of 32."""
    counts = np.bincount(assigned, minlength=nlist)
    starts = np.cumsum(counts) - counts
    offsets = np.concatenate([[0], np.cumsum(-(-counts // BLOCK_ROWS) * BLOCK_ROWS)]).astype(np.int64)
    order = np.argsort(assigned, kind="stable")
    rows = np.full(int(offsets[-1]), NO_ROW, np.uint32)
    rows[np.arange(len(order)) + np.repeat(offsets[:-1] - starts, counts)] = order
    return rows, offsets
