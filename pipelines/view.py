"""`View`: one generation of an index with its compressor, which is all that a search needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_embeddings, check_int, normalized
from ragq.compressors import Compressor
from ragq.errors import InvalidArgumentError
from ragq.filters import Where, matching_rows
from ragq.pipelines.documents import COLUMNS, fetch, join_passages, metadata_of
from ragq.pipelines.fitting import full_shard, load_compressor
from ragq.retrievers.lexical import Lexical, Ranking
from ragq.retrievers.scan import scan
from ragq.retrievers.structures.base import Prepared, Probe
from ragq.retrievers.structures.chosen import codes_at
from ragq.retrievers.structures.searcher import Searcher
from ragq.select import pack_mask, unpack_mask
from ragq.snapshot import Snapshot
from ragq.types import Document, Hit, Results

__all__ = ["View"]

Masks = list[NDArray[np.uint8] | None]
TUNED = Probe()


class View:
    """What a search reads; unchanged for as long as it is held.

    Rows are numbered over all shards, in insertion order.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.manifest = snapshot.manifest
        self.compressor: Compressor = self._load()

    def _load(self) -> Compressor:
        return load_compressor(self.snapshot.folder, self.manifest, self.snapshot.state())

    @property
    def shard_rows(self) -> int:
        """Rows of a full shard."""
        return full_shard(self.compressor.code_size)

    @cached_property
    def lexical(self) -> Lexical:
        """BM25 over the passages; built when it is first needed, held in memory."""
        return Lexical(self.snapshot)

    @cached_property
    def live(self) -> Masks:
        """The masks of a search without a filter; always the same list."""
        return [shard.live_mask for shard in self.snapshot.shards]

    @cached_property
    def rows(self) -> int:
        """Live passages."""
        return self.manifest.rows

    def masks(self, where: Where | None) -> Masks:
        """Return a bitset a shard of what may be returned: not deleted, and matched by the filter."""
        shards = self.snapshot.shards
        if where is None:
            return self.live
        matches = matching_rows(shards, where)
        live = [
            rows if shard.deleted is None else rows & ~shard.deleted
            for rows, shard in zip(matches, shards, strict=True)
        ]
        return [pack_mask(rows) for rows in live]

    def allowed(self, masks: Masks) -> NDArray[np.bool_]:
        """Return the masks as one array over all rows."""
        parts = [
            np.ones(shard.rows, bool) if mask is None else unpack_mask(mask, shard.rows)
            for mask, shard in zip(masks, self.snapshot.shards, strict=True)
        ]
        return np.concatenate([np.zeros(0, bool), *parts])

    @cached_property
    def searcher(self) -> Searcher | None:
        """The structure of the index with the scan of what it does not cover; None when every search is a scan."""
        return Searcher(self.snapshot, self.score_metric) if self.manifest.structure else None

    @property
    def has_neighbours(self) -> bool:
        """Whether the nearest passages of each passage are stored."""
        structure = self.manifest.structure
        return structure is not None and "neighbours" in structure.files

    @property
    def score_metric(self) -> str:
        """The metric that codes are scored by: cosine is the inner product of unit vectors."""
        return "ip" if self.manifest.metric == "cosine" else self.manifest.metric

    def scan(
        self, x: Any, k: int, masks: Masks, threads: int | None = None, probe: Probe = TUNED
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scores and rows of the best `k` passages for each query embedding, each of shape (n, k).

        By the structure of the index, if it has one and `probe` does not ask for an exact search.

        No more than all rows come back: `k` columns that cannot be filled would be memory for nothing.
        """
        check_int(k, "k", 1)
        queries = check_embeddings(np.atleast_2d(np.asarray(x)), self.manifest.dim, name="queries")
        if probe.candidates is not None:
            raise InvalidArgumentError("'candidates' belongs to the first stage of a multi-vector index.")
        if self.manifest.normalize:
            queries = normalized(queries)
        most = min(k, max(1, self.rows))
        if self.searcher is not None and not probe.exact:
            prepared = Prepared(self.compressor, queries, self.score_metric)
            return self.searcher.search(prepared, most, masks, probe, threads)
        blocks = self.snapshot.blocks()
        scorer = self.compressor.scorer(queries, self.score_metric)
        return scan(scorer, blocks, most, masks, threads, exact=probe.exact)

    def decode(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the decoded embeddings of rows, float32 of shape (n, dim)."""
        codes = np.empty((len(rows), self.compressor.code_size), np.uint8)
        for number, where, local in self.snapshot.locate(rows):
            codes[where] = codes_at(self.snapshot.shards[number].block, local)
        return self.compressor.decode(codes)

    def reconstruct(self, rows: NDArray[np.int64]) -> Any:
        """Return the decoded embeddings of rows, in the form in which embeddings go in."""
        return self.decode(rows)

    def near(self, rows: NDArray[np.int64], k: int, masks: Masks) -> NDArray[np.int64]:
        """Return the rows that are nearest to some rows, -1 where there are fewer, of shape (n, k)."""
        return self.scan(self.decode(rows), k, masks)[1]

    def results(self, scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Results:
        """Return what a scan found with the ids of its documents, padded to `k` columns."""
        missing = ((0, 0), (0, k - rows.shape[1]))
        scores = np.pad(scores, missing, constant_values=-np.inf)
        rows = np.pad(rows, missing, constant_values=-1)
        ids = np.full(rows.shape, None, object)
        passages = np.full(rows.shape, -1, np.int64)
        found = rows >= 0
        if found.any():
            table = fetch(self.snapshot, rows[found], ["id", "passage"])
            ids[found] = np.asarray(table.column("id").to_pylist(), object)
            passages[found] = table.column("passage").to_pylist()
        return Results(ids, scores, passages)

    def hits(self, rankings: Sequence[Ranking]) -> list[list[Hit]]:
        """Return rankings as hits, with their texts."""
        rows = np.concatenate([np.empty(0, np.int64), *(found for found, _ in rankings)])
        fields = iter(fetch(self.snapshot, rows, COLUMNS).to_pylist() if len(rows) else [])
        folder = self.snapshot.folder
        return [[to_hit(next(fields), float(score), folder) for score in scores] for _, scores in rankings]

    def rows_of(self, hits: Sequence[Hit]) -> NDArray[np.int64]:
        """Return the rows of hits; raise `InvalidArgumentError` when a passage is not there (any more)."""
        rows = np.empty(len(hits), np.int64)
        found = self.snapshot.find([hit.document_id for hit in hits])
        for i, (hit, passages) in enumerate(zip(hits, found, strict=True)):
            number = int(hit.id.rpartition("#")[2])
            if number >= len(passages):
                raise InvalidArgumentError(f"The passage '{hit.id}' is not in {self.snapshot.folder}.")
            rows[i] = passages[number]
        return rows

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return documents by id, in the order of `ids`, without those that are not there."""
        rows = [found for found in self.snapshot.find(ids) if len(found)]
        fields = iter(fetch(self.snapshot, np.concatenate(rows), COLUMNS).to_pylist() if rows else [])
        return [join_passages([next(fields) for _ in found], self.snapshot.folder) for found in rows]

    def documents(self) -> Iterator[Document]:
        """Yield the documents in insertion order."""
        for shard in self.snapshot.shards:
            rows: list[dict[str, Any]] = []
            start = 0
            for batch in shard.docs_batches(COLUMNS):
                for row, fields in enumerate(batch.to_pylist(), start):
                    if fields["passage"] == 0 and rows:
                        yield join_passages(rows, self.snapshot.folder)
                        rows = []
                    if shard.deleted is None or not shard.deleted[row]:
                        rows.append(fields)
                start += batch.num_rows
            if rows:
                yield join_passages(rows, self.snapshot.folder)


def to_hit(row: dict[str, Any], score: float, folder: Path) -> Hit:
    """Return a row of the docs files as a hit."""
    return Hit(
        id=f"{row['id']}#{row['passage']}",
        score=score,
        text=row["text"],
        title=row["title"],
        metadata=metadata_of(row, folder),
        document_id=row["id"],
    )


def rankings_of(scores: NDArray[np.float32], rows: NDArray[np.int64]) -> list[Ranking]:
    """Return what a scan found as one ranking a query, padding left out."""
    return [(r[r >= 0], s[r >= 0]) for s, r in zip(scores, rows, strict=True)]
