"""IVF: an inverted file, the codes of an index sorted into lists around centroids.

Centroids come from k-means (Lloyd) over a sample of decoded embeddings, in their `REDUCED` leading principal
directions: that keeps the order of the lists for a quarter of the arithmetic. A list that would hold more than
`BALANCE` times the mean is split. A query scans the `nprobe` lists of the largest ``<q, c> + SPREAD |q| r``, where `r`
is the root mean squared distance of a list's rows from its centroid (for l2, of the largest ``<q, c> - |c|^2 / 2``),
with the same kernels and the same scores as the exhaustive scan. A wide list may hold a better row than its centroid
tells: on text embeddings that finds as much in a third fewer lists. Lists that were learned have several centroids
each, of which the best one counts.

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
from ragq.errors import CorruptIndexError, MissingExtraError
from ragq.layouts import BLOCK_ROWS, Layout
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
    Structure,
    load_arrays,
    parameter,
    principal,
    save_arrays,
)
from ragq.retrievers.structures.lists import NO_ROW, Lists, scan_lists
from ragq.retrievers.structures.source import Source
from ragq.shards import read_block, single_batch, write_batch, write_block

__all__ = ["IVF", "build_ivf", "default_nlist"]

ROWS_SCHEMA = pa.schema([("row", pa.uint32())])
LIST_ROWS = 128  # as a list is filled up to a multiple of 32
TRAINING_ROWS = 64  # a centroid
ITERATIONS = 10
SPREAD = 0.45
LANES = 16  # floats that the widest kernel takes at once: keys are filled up to a multiple
BALANCE = 3  # times the mean length, above which a list is split
GRAPH_LISTS = 8192  # from which a graph finds the lists faster than comparing with all of them


class IVF(Structure):
    """An inverted file.

    Parameters
    ----------
    lists : Lists
        The codes.
    arrays : dict
        ``projection`` (d, dim), ``centroids`` (keys * nlist, d), those of a list together, and ``radii``
        (keys * nlist,).
    metric : {'ip', 'l2'}
    nprobe : int
        What searches use that do not say.
    graph : hnswlib.Index, optional
        Over the centroids.
    """

    kind = "ivf"

    def __init__(
        self, lists: Lists, arrays: dict[str, NDArray[Any]], metric: str, nprobe: int, graph: Any = None
    ) -> None:
        self.lists, self.graph, self.nprobe, self.metric = lists, graph, nprobe, metric
        self.projection, self.centroids = arrays["projection"], arrays["centroids"]
        self._keys = Keys(keys_of(self.centroids, arrays["radii"], metric), metric)

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
            len(offsets) < 2
            or not len(centroids)
            or len(centroids) % (len(offsets) - 1)
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
        return cls(Lists(block, rows, offsets), arrays, metric, parameter(described, "nprobe", folder), graph)

    @property
    def nlist(self) -> int:
        """Lists."""
        return self.lists.nlist

    def order(self, queries: Floats, n: int) -> NDArray[np.int64]:
        """Return the `n` best lists of each query, best first: (n_queries, n)."""
        keys = len(self.centroids) // self.nlist
        found = self._nearest(queries, keys * n)
        return found if keys == 1 else first_distinct(found // keys, n)

    def _nearest(self, queries: Floats, n: int) -> NDArray[np.int64]:
        """Return the `n` best centroids of each query, best first: (n_queries, n)."""
        reduced = queries @ self.projection.T
        length = np.linalg.norm(queries, axis=1)
        if self.graph is not None and n <= len(self.centroids) // 8:
            keys = np.append(reduced, length[:, None], axis=1) if self.metric == "ip" else reduced
            found = hnsw.neighbours(self.graph, keys, n, max(2 * n, 64))
            if found is not None:
                return found
        return self._keys.best(reduced, length, n)

    def pays(self, allowed: Allowed, probe: Probe) -> bool:
        return probe.nprobe is not None or self._nprobe(allowed, probe) < self.nlist

    def search(self, prepared: Prepared, k: int, allowed: Allowed, probe: Probe, threads: int | None) -> Found:
        return self._search(prepared, k, allowed, probe, threads)

    def candidates(
        self, prepared: Prepared, n: int, allowed: Allowed, probe: Probe, threads: int | None
    ) -> NDArray[np.int64]:
        """Return about the best `n` rows for each query, in any order: for a caller who scores them by finer codes."""
        return self._search(prepared, n, allowed, probe, threads, candidates=True)[1]

    def _search(
        self,
        prepared: Prepared,
        k: int,
        allowed: Allowed,
        probe: Probe,
        threads: int | None,
        candidates: bool = False,
    ) -> Found:
        n_queries = len(prepared.queries)
        if not allowed.count:
            return np.full((n_queries, k), -np.inf, np.float32), np.full((n_queries, k), -1, np.int64)
        if allowed.bits is None:
            allowed.bits = self.lists.bits(allowed.rows)
        threads = default_threads() if threads is None else threads
        nprobe = self._nprobe(allowed, probe)
        probed = self.order(prepared.queries, nprobe)
        scores, rows = scan_lists(prepared, self.lists, k, probed, allowed.bits, threads, candidates)
        wanted = min(k, allowed.count)
        for i in np.flatnonzero(rows[:, wanted - 1] < 0):  # the filter left too little in these lists
            n, query = nprobe, prepared.part([i])
            while rows[i, wanted - 1] < 0 and n < self.nlist:
                n = min(4 * n, self.nlist)
                order = self.order(query.queries, n)
                wider = scan_lists(query, self.lists, k, order, allowed.bits, threads, candidates)
                scores[i], rows[i] = wider[0][0], wider[1][0]
        return scores, rows

    def _nprobe(self, allowed: Allowed, probe: Probe) -> int:
        """Return how many lists to scan: more when a filter makes the best rows lie farther away, all when few pass."""
        if probe.nprobe is not None:
            return min(probe.nprobe, self.nlist)
        share = allowed.count / max(1, len(self.lists.places))
        if share * self.nlist <= 2 * self.nprobe:  # scattered rows cost no more than that many lists
            return self.nlist
        return min(int(np.ceil(self.nprobe / np.sqrt(share))), self.nlist)


class Keys:
    """What queries are compared with to find their lists, in a form that is quick to read.

    For inner products a byte a number, each dimension with a step of its own: no order of lists turns on more, and
    reading them is what comparing costs. For l2, ``-|c|^2 / 2`` is one more dimension, and nothing is rounded.

    Parameters
    ----------
    keys : ndarray of float32, shape (n_centroids, d)
        As `keys_of` gives them.
    metric : {'ip', 'l2'}
    """

    def __init__(self, keys: Floats, metric: str) -> None:
        self.metric = metric
        if metric == "l2":
            keys = np.append(keys, -(keys**2).sum(axis=1, keepdims=True) / 2, axis=1)
        keys = np.pad(keys, ((0, 0), (0, -keys.shape[1] % LANES)))
        if metric == "l2":
            self.steps, self.codes = np.ones(keys.shape[1], np.float32), keys.view(np.uint8)
        else:
            self.steps = np.abs(keys).max(axis=0, initial=0) / np.float32(127)
            steps = np.where(self.steps > 0, self.steps, 1)
            self.codes = np.rint(keys / steps).astype(np.int8).view(np.uint8)

    def best(self, reduced: Floats, length: Floats, n: int) -> NDArray[np.int64]:
        """Return the best centroids, best first, (n_queries, n), for queries in reduced dimensions with lengths."""
        d = reduced.shape[1]
        keys = np.zeros((len(reduced), len(self.steps)), np.float32)
        keys[:, :d], keys[:, d] = reduced, 1 if self.metric == "l2" else length
        keys *= self.steps
        dtype = "f4" if self.metric == "l2" else "i1"
        return kernels.dense(self.codes, keys, dtype=dtype, k=n, rows=len(self.codes))[1]


def keys_of(centroids: Floats, radii: Floats, metric: str) -> Floats:
    """Return what queries are compared with: for inner products, a radius is one more dimension of its centroid."""
    return np.concatenate([centroids, SPREAD * radii[:, None]], axis=1) if metric == "ip" else centroids


def first_distinct(numbers: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the first `n` different numbers of each row, in their order: (rows, n); there must be so many."""
    firsts = [np.sort(np.unique(row, return_index=True)[1])[:n] for row in numbers]
    return np.take_along_axis(numbers, np.array(firsts, np.int64).reshape(len(numbers), n), axis=1)


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
    projection = principal(source.sample(PRINCIPAL_ROWS, seed))
    progress("train", 0, 1)
    training = source.sample(TRAINING_ROWS * nlist, seed, lambda x: x @ projection.T)
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
