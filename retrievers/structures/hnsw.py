"""HNSW: a navigable small-world graph over reduced embeddings, for indexes that fit in memory as floats.

The graph (hnswlib; Malkov and Yashunin, TPAMI 2018) holds decoded embeddings in their `REDUCED` leading principal
directions; the candidates that it finds are scored by the codes, with the kernels of the scan. Memory is
``4 (reduced dimensions) + 8 M`` bytes a row, and about as much on disk.

Files: ``arrays`` (projection) and ``graph`` (hnswlib's own format, loaded only after its checksum was compared).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.codebooks import cpu_threads
from ragq.errors import CorruptIndexError, missing_extra
from ragq.manifest import FileEntry, StructureEntry
from ragq.retrievers.structures.base import (
    PRINCIPAL_ROWS,
    Coverage,
    Floats,
    load_arrays,
    parameter,
    principal,
    save_arrays,
)
from ragq.retrievers.structures.chosen import Ranker
from ragq.retrievers.structures.graph import GraphStructure
from ragq.retrievers.structures.graph_file import check_graph
from ragq.retrievers.structures.source import Source
from ragq.shards import entry, verify_file
from ragq.storage import TEMPORARY, durable_write, storage_errors

__all__ = ["HNSW", "build_hnsw", "load_graph", "neighbours", "new_graph", "save_graph"]

LINKS = 16  # M of the paper
EF_CONSTRUCTION = 200
COPY_BYTES = 1 << 20


def library() -> Any:
    """Import hnswlib, or say how to install it."""
    try:
        import hnswlib
    except ImportError:
        raise missing_extra("hnswlib", "graph") from None
    return hnswlib


def new_graph(x: Floats, space: str, links: int = LINKS) -> Any:
    """Return a graph over rows; `space` is ``ip`` or ``l2``. The same rows give the same graph."""
    graph = library().Index(space=space, dim=x.shape[1])
    graph.init_index(max_elements=len(x), M=links, ef_construction=EF_CONSTRUCTION, random_seed=0)
    graph.add_items(x, np.arange(len(x)), num_threads=1)
    return graph


def save_graph(folder: Path, name: str, graph: Any) -> FileEntry:
    """Write a graph durably: hnswlib writes a file of its own, which is copied and removed."""
    path = folder / name
    scratch = path.with_name(f"{TEMPORARY}{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with storage_errors(path, "write"):
        try:
            graph.save_index(str(scratch))
            with scratch.open("rb") as whole, durable_write(path) as file:
                while part := whole.read(COPY_BYTES):
                    file.write(part)
        finally:
            scratch.unlink(missing_ok=True)
    return entry(name, file)


def load_graph(folder: Path, file: FileEntry, space: str, dim: int, count: int) -> Any:
    """Open a graph of `count` rows of `dim` dimensions, after comparing the file with its checksum."""
    path = verify_file(folder, file)
    check_graph(path, dim, count)
    graph = library().Index(space=space, dim=dim)
    try:
        graph.load_index(str(path))
    except RuntimeError as error:
        raise CorruptIndexError(f"{path} cannot be read: {error}") from None
    if graph.get_current_count() != count:
        raise CorruptIndexError(f"{path} has {graph.get_current_count()} rows, but the manifest names {count}.")
    return graph


def neighbours(graph: Any, queries: Floats, n: int, ef: int) -> NDArray[np.int64] | None:
    """Return the `n` nearest rows among `ef` candidates, (n_queries, n); None when the graph finds fewer."""
    ef = min(ef, graph.get_current_count())
    try:
        found, _ = graph.knn_query(np.ascontiguousarray(queries), k=ef, num_threads=1)  # hnswlib's ef is at least k
    except RuntimeError:  # the graph's reachable part is smaller
        return None
    return np.asarray(found[:, :n], np.int64)


class HNSW(GraphStructure):
    """A graph over the rows of some shards.

    Parameters
    ----------
    graph : hnswlib.Index
    projection : ndarray of float32, shape (d, dim)
    ranker : Ranker
    coverage : Coverage
    ef_search : int
        What searches use that do not say.
    """

    kind = "hnsw"

    def __init__(self, graph: Any, projection: Floats, ranker: Ranker, coverage: Coverage, ef_search: int) -> None:
        super().__init__(ranker, coverage, ef_search)
        self.graph, self.projection = graph, projection

    @classmethod
    def load(
        cls, folder: Path, described: StructureEntry, ranker: Ranker, coverage: Coverage, dim: int, metric: str
    ) -> HNSW:
        """Open the files that a manifest names; raise `CorruptIndexError` when they do not fit together."""
        files = described.files
        if not {"arrays", "graph"} <= set(files):
            raise CorruptIndexError(f"The graph of {folder} lacks files; it has {', '.join(files)}.")
        projection = load_arrays(folder, files["arrays"], {"projection": ("f4", 2)})["projection"]
        if projection.shape[1] != dim:
            raise CorruptIndexError(
                f"{folder / files['arrays'].name} is of {projection.shape[1]} dimensions, not {dim}."
            )
        graph = load_graph(folder, files["graph"], metric, len(projection), coverage.rows)
        return cls(graph, projection, ranker, coverage, parameter(described, "ef_search", folder))

    def near(self, queries: Floats, ef: int, threads: int) -> NDArray[np.int64] | None:
        return neighbours(self.graph, queries @ self.projection.T, ef, ef)


def build_hnsw(
    folder: Path, prefix: str, source: Source, metric: str, seed: int, progress: Callable[[str, int, int], None]
) -> tuple[dict[str, FileEntry], dict[str, Any]]:
    """Write the files of a graph over all rows of `source`; see `ragq.retrievers.structures.ivf.build_ivf`."""
    projection = principal(source.sample(PRINCIPAL_ROWS, seed))
    graph = library().Index(space=metric, dim=len(projection))
    graph.init_index(max_elements=source.rows, M=LINKS, ef_construction=EF_CONSTRUCTION, random_seed=seed)
    for start, rows, x in source.shuffled(seed):
        graph.add_items(x @ projection.T, rows, num_threads=cpu_threads())
        progress("graph", start + len(x), source.rows)
    files = {
        "arrays": save_arrays(folder, f"{prefix}.arrays.safetensors", {"projection": projection}),
        "graph": save_graph(folder, f"{prefix}.graph.hnsw", graph),
    }
    return files, {"links": LINKS, "ef_construction": EF_CONSTRUCTION}
