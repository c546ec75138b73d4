"""SM2 graph: a neighbour graph that is built and searched on two bits a dimension.

The codes are those of `ragq.compressors.sm2` in their symmetric form, whose distance is four popcounts a 64-bit word
(QuIVer, arXiv 2605.02171). Rows are inserted one after the other, in an order that their ids settle: a best-first
search finds the `EF_CONSTRUCTION` nearest of those before, and of these a row is linked to the ones that no nearer link
makes needless (DiskANN's robust pruning with `ALPHA`; Jayaram Subramanya et al., NeurIPS 2019, algorithms 1 and 2), and
they to it. A search walks the same way to `ef_search` candidates, which the codes of the index rank.

The distance sees signs and little else, so that a graph of embeddings without angular structure would find few of the
best rows: building one is refused where SM2's own test fails, and what a search reaches is measured when it is tuned.

Bytes per vector: ``2 ceil(dim / 64) 8`` of codes and ``4 DEGREE`` of links, both memory-mapped Arrow files.

Files: ``arrays`` (the state of SM2), ``codes`` (signs, then magnitudes, in 64-bit words), ``links`` (rows that each row
is linked to), the first of the insertion order being where searches begin (parameter ``entry``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ragq.retrievers.structures._graph as _graph
from ragq.compressors.sm2 import SM2
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.layouts import Layout
from ragq.manifest import FileEntry, StructureEntry
from ragq.retrievers.structures.base import (
    Coverage,
    Floats,
    load_arrays,
    parameter,
    save_arrays,
)
from ragq.retrievers.structures.chosen import Ranker
from ragq.retrievers.structures.graph import GraphStructure
from ragq.retrievers.structures.source import Source
from ragq.shards import read_block, write_block

__all__ = ["SM2Graph", "build_sm2graph"]

DEGREE = 48  # links a row at most
KEPT = 32  # that a row starts with
EF_CONSTRUCTION = 128
ALPHA = 1.2
NO_LINK = np.uint32(0xFFFFFFFF)
SAMPLE_ROWS = 10_000  # for the mean and the test of SM2
INSERTED = 2048  # rows between two reports of progress
STATE = {"dim_": ("i8", 1), "order_": ("i4", 2), "signs_": ("i1", 2), "mean_": ("f4", 1)}

Words = NDArray[np.uint64]


class SM2Graph(GraphStructure):
    """A graph on two-bit codes over the rows of some shards.

    Parameters
    ----------
    codec : SM2
    codes : ndarray of uint64, shape (n, 2 words)
        Signs, then magnitudes.
    links : ndarray of uint32, shape (n, degree)
        Rows that each row is linked to; `NO_LINK` behind the last.
    entry : int
        The row from which searches begin.
    ranker : Ranker
    coverage : Coverage
    ef_search : int
        Candidates of searches that do not say.
    """

    kind = "sm2graph"

    def __init__(
        self,
        codec: SM2,
        codes: Words,
        links: NDArray[np.uint32],
        entry: int,
        ranker: Ranker,
        coverage: Coverage,
        ef_search: int,
    ) -> None:
        super().__init__(ranker, coverage, ef_search)
        self.codec, self.codes, self.links, self.entry = codec, codes, links, entry

    @classmethod
    def load(cls, folder: Path, described: StructureEntry, ranker: Ranker, coverage: Coverage, dim: int) -> SM2Graph:
        """Open the files that a manifest names; raise `CorruptIndexError` when they do not fit together."""
        files, rows = described.files, coverage.rows
        if not {"arrays", "codes", "links"} <= set(files):
            raise CorruptIndexError(f"The graph of {folder} lacks files; it has {', '.join(files)}.")
        codec = SM2().load_state(load_arrays(folder, files["arrays"], STATE))
        entry, degree = parameter(described, "entry", folder) - 1, parameter(described, "degree", folder)
        codes = read_block(folder, files["codes"], Layout("rows", 16 * words_of(dim)), rows).columns["codes"]
        links = read_block(folder, files["links"], Layout("rows", 4 * degree), rows).columns["codes"].view("<u4")
        beyond = (links >= rows) & (links != NO_LINK)
        if codec.dim != dim or entry >= rows or beyond[:rows].any():
            raise CorruptIndexError(f"The graph of {folder} names rows or dimensions that the index does not have.")
        ef_search = parameter(described, "ef_search", folder)
        return cls(codec, codes.view("<u8")[:rows], links[:rows], entry, ranker, coverage, ef_search)

    def near(self, queries: Floats, ef: int, threads: int) -> NDArray[np.int64] | None:
        found = np.empty((len(queries), ef), np.int64)
        codes = pack(self.codec, self.codec.encode(queries))
        _graph.search(self.codes, self.links, codes, self.entry, threads, found)
        return found


def words_of(dim: int) -> int:
    """Return the 64-bit words that hold a bit a dimension."""
    return -(-dim // 64)


def pack(codec: SM2, codes: NDArray[np.uint8]) -> Words:
    """Return SM2 codes as words: signs, then magnitudes, (n, 2 words)."""
    words = words_of(codec.dim)
    both = np.zeros((len(codes), 2, 8 * words), np.uint8)
    for side, bits in enumerate(codec.bits(codes)):
        both[:, side, : bits.shape[1]] = bits
    return both.reshape(len(codes), -1).view("<u8")


def fit_codec(source: Source, seed: int) -> SM2:
    """Fit SM2 to decoded embeddings.

    Raises
    ------
    InvalidArgumentError
        They have too little angular structure for it.
    """
    try:
        return SM2().fit(source.sample(SAMPLE_ROWS, seed), seed=seed)
    except InvalidArgumentError as error:
        reason = str(error).rpartition(" Use ")[0] or str(error)
        raise InvalidArgumentError(f"No graph on two-bit codes serves this index. {reason} Build 'ivf'.") from None


def build_sm2graph(
    folder: Path, prefix: str, source: Source, seed: int, progress: Callable[[str, int, int], None]
) -> tuple[dict[str, FileEntry], dict[str, Any]]:
    """Write the files of a graph over all rows of `source`; see `ragq.retrievers.structures.ivf.build_ivf`."""
    codec = fit_codec(source, seed)
    order = source.order(seed).astype(np.uint32)
    codes = np.empty((source.rows, 2 * words_of(codec.dim)), np.uint64)  # in that order
    for start, _, x in source.shuffled(seed):
        codes[start : start + len(x)] = pack(codec, codec.encode(x))
    links = connect(codes, progress)
    by_row, linked = np.empty_like(codes), np.empty_like(links)
    by_row[order], linked[order] = codes, np.where(links == NO_LINK, NO_LINK, order[np.minimum(links, len(order) - 1)])
    code_bytes, link_bytes = by_row.view(np.uint8), linked.astype("<u4", copy=False).view(np.uint8)
    files = {
        "arrays": save_arrays(folder, f"{prefix}.arrays.safetensors", codec.state),
        "codes": write_block(folder, f"{prefix}.codes.arrow", Layout("rows", code_bytes.shape[1]), code_bytes),
        "links": write_block(folder, f"{prefix}.links.arrow", Layout("rows", link_bytes.shape[1]), link_bytes),
    }
    return files, {"degree": DEGREE, "entry": int(order[0]) + 1, "ef_construction": EF_CONSTRUCTION}


def connect(codes: Words, progress: Callable[[str, int, int], None]) -> NDArray[np.uint32]:
    """Return the links of a graph over codes, (n, degree), whose rows are inserted one after the other."""
    order = np.arange(len(codes), dtype=np.uint32)
    links = np.full((len(codes), DEGREE), NO_LINK, np.uint32)
    for start in range(0, len(codes), INSERTED):
        stop = min(start + INSERTED, len(codes))
        _graph.insert(codes, links, order, start, stop, KEPT, EF_CONSTRUCTION, ALPHA)
        progress("graph", stop, len(codes))
    return links
