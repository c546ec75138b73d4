"""Passages on the way into an index: read and cut once, written to scratch files, and read from there in any order.

The files make the number of passages known before the first one is embedded, let a one-shot iterable be read twice, and
let an interrupted run go on without reading the source again. Several readers may write a piece each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragq.pipelines.progress import Progress, silent
from ragq.remote import open_data
from ragq.shards import BATCH_ROWS, DOCS_SCHEMA, docs_batch
from ragq.storage import durable_write, storage_errors, write_bytes
from ragq.transaction import BUILD
from ragq.types import Passage

__all__ = ["TABLE", "Spool", "cuts_of", "write_piece"]

TABLE = "passages.json"


def write_piece(path: Path, documents: Iterable[list[Passage]], progress: Progress = silent) -> NDArray[np.int64]:
    """Write the passages of documents to a file.

    Parameters
    ----------
    path : Path
    documents : iterable of list of Passage
        The passages of one document each.

    Returns
    -------
    ndarray of int64
        Passages of each document.
    """
    counts: list[int] = []
    waiting: list[Passage] = []
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with durable_write(path) as file, pa.ipc.new_file(file, DOCS_SCHEMA, options=options) as arrow:
        for passages in documents:
            waiting.extend(passages)
            counts.append(len(passages))
            if len(counts) % 100 == 0:
                progress("read", len(counts), None)
            while len(waiting) >= BATCH_ROWS:
                arrow.write_batch(docs_batch(waiting[:BATCH_ROWS]))
                del waiting[:BATCH_ROWS]
        if waiting:
            arrow.write_batch(docs_batch(waiting))
    progress("read", len(counts), len(counts))
    return np.asarray(counts, np.int64)


def cuts_of(pieces: Iterable[NDArray[np.int64]], shard_rows: int) -> list[int]:
    """Return the passage numbers at which shards end, the last being the number of passages.

    Parameters
    ----------
    pieces : iterable of ndarray of int64
        Passages of each document, a piece at a time.
    shard_rows : int
        A shard ends with the document that fills it.
    """
    cuts, rows = [0], 0
    for counts in pieces:
        ends = rows + np.cumsum(counts)
        while len(ends) and ends[-1] - cuts[-1] >= shard_rows:
            cuts.append(int(ends[np.searchsorted(ends, cuts[-1] + shard_rows)]))
        rows = int(ends[-1]) if len(ends) else rows
    if cuts[-1] != rows:
        cuts.append(rows)
    return cuts[1:]


class Spool:
    """The passages of a build, in its scratch folder or in the store of the index.

    Parameters
    ----------
    folder : Path
        The index folder.
    pieces : sequence of (str, int)
        Names of the files in the scratch folder, and the passages in each.
    cuts : list of int
        Passage numbers at which shards end.
    """

    def __init__(self, folder: Path, pieces: Sequence[tuple[str, int]], cuts: list[int]) -> None:
        self.folder, self.pieces, self.cuts = folder, pieces, cuts
        self._starts = np.concatenate([[0], np.cumsum([rows for _, rows in pieces])]).astype(np.int64)
        self._readers: dict[int, pa.ipc.RecordBatchFileReader] = {}

    @classmethod
    def open(cls, folder: Path) -> Spool:
        """Open what `save` has written."""
        path = folder / BUILD / TABLE
        with storage_errors(path, "read"):
            body = json.loads(path.read_text())
        return cls(folder, body["pieces"], body["cuts"])

    def save(self) -> None:
        """Write the table of the pieces, whose presence says that reading is done."""
        body = {"cuts": self.cuts, "pieces": list(self.pieces)}
        write_bytes(self.folder / BUILD / TABLE, json.dumps(body).encode())

    def passages(self, rows: NDArray[np.int64]) -> Iterator[Passage]:
        """Yield passages, given in ascending order."""
        owner = np.searchsorted(self._starts, rows, "right") - 1
        for piece in np.unique(owner):
            local = rows[owner == piece] - self._starts[piece]
            for b in np.unique(local // BATCH_ROWS):
                wanted = local[local // BATCH_ROWS == b] - b * BATCH_ROWS
                for row in self._reader(int(piece)).get_batch(int(b)).take(pa.array(wanted)).to_pylist():
                    yield Passage(
                        row["id"],
                        row["passage"],
                        row["text"],
                        row["title"],
                        json.loads(row["metadata"]),
                        row["source"],
                        row["start"],
                    )

    def _reader(self, piece: int) -> pa.ipc.RecordBatchFileReader:
        if piece not in self._readers:
            path = f"{BUILD}/{self.pieces[piece][0]}"
            with storage_errors(self.folder / path, "read"):
                self._readers[piece] = pa.ipc.open_file(open_data(self.folder, path))
        return self._readers[piece]
