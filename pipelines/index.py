"""`Index`: what a user holds of an index folder. It joins a snapshot (reading) with transactions (writing)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragq.checks import check_embeddings, check_int
from ragq.compressors import Compressor
from ragq.embedders import Embedder, load_embedder, same_model
from ragq.errors import IncompatibleIndexError, InvalidArgumentError
from ragq.filters import Where, check_where, matching_rows
from ragq.manifest import Manifest
from ragq.pipelines.build import SHARD_BYTES, SHARD_ROWS, BuildReport
from ragq.pipelines.changes import Changes, add_documents, compact_shards
from ragq.pipelines.documents import COLUMNS, check_ids, fetch, join_passages
from ragq.pipelines.feeds import normalized
from ragq.pipelines.fitting import load_compressor
from ragq.pipelines.progress import Progress, silent
from ragq.retrievers.scan import scan
from ragq.select import pack_mask
from ragq.snapshot import Snapshot
from ragq.storage import check_local
from ragq.transaction import Transaction
from ragq.types import Document, Hit, Results

__all__ = ["Index", "open_index"]

COMPACT_DELETED = 0.25  # share of deleted rows, and number of small shards, from which `compact` is due
COMPACT_SHARDS = 16


def open_index(
    path: str | Path, *, mode: str = "r", model: Any = None, lock_timeout: float = 0.0, **model_options: Any
) -> Index:
    """Open an index.

    Parameters
    ----------
    path : str or Path
        The index folder.
    mode : {'r', 'w'}
        ``w`` also allows `Index.add`, `Index.delete` and `Index.compact`.
    model : str, Path, callable, Embeddings or Embedder, optional
        What embeds queries and new documents, when it is not to be loaded by the name that the index holds.
    lock_timeout : float
        Seconds to wait for another writer before `IndexLockedError`.
    **model_options
        ``device``, ``backend``, ``batch_size`` …, see `ragq.embedders.load_embedder`.

    Returns
    -------
    Index

    Raises
    ------
    InvalidArgumentError
        There is no index, or a wrong argument.
    CorruptIndexError
        A file is missing or altered.
    IncompatibleIndexError
        The index has another format, or was embedded by another model.

    Examples
    --------
    >>> with ragq.open("corpus.ragq") as index:  # doctest: +SKIP
    ...     hits = index.search("what is a shard?", k=3)
    """
    return Index(path, mode=mode, model=model, lock_timeout=lock_timeout, **model_options)


def reopen(path: Path, mode: str, model: Any, lock_timeout: float, model_options: dict[str, Any]) -> Index:
    """Open an index that was pickled."""
    return Index(path, mode=mode, model=model, lock_timeout=lock_timeout, **model_options)


class Index:
    """An index folder, opened; a context manager, safe to search from many threads.

    It shows one generation until `refresh`, or until a change that it makes itself. Iterating yields the documents.
    See `ragq.open` for the parameters.
    """

    def __init__(
        self, path: str | Path, *, mode: str = "r", model: Any = None, lock_timeout: float = 0.0, **model_options: Any
    ) -> None:
        if mode not in ("r", "w"):
            raise InvalidArgumentError(f"'mode' must be 'r' or 'w'. Got {mode!r}.")
        self.path = check_local(path)
        self.mode = mode
        self.lock_timeout = lock_timeout
        self._model, self._model_options = model, model_options
        self._embedder: Embedder | None = None
        self._embedder_lock = threading.Lock()
        self.report: BuildReport | None = None  # what the build did, when `ragq.build` made this object
        self._load(Snapshot(self.path))
        if model is not None and not isinstance(model, (str, Path)):
            _ = self.embedder  # an object costs nothing to compare now; a name is loaded when it is needed

    def _load(self, snapshot: Snapshot) -> None:
        compressor = load_compressor(self.path, snapshot.manifest, snapshot.state())
        self._view: tuple[Snapshot, Compressor] = (snapshot, compressor)

    @property
    def manifest(self) -> Manifest:
        """What the index is at the generation that this object shows."""
        return self._view[0].manifest

    @property
    def compressor(self) -> Compressor:
        """The fitted compressor."""
        return self._view[1]

    @property
    def embedder(self) -> Embedder:
        """What embeds; loaded when it is first needed.

        Raises
        ------
        IncompatibleIndexError
            It is not the model that the index was made with.
        InvalidArgumentError
            The index was made from ready embeddings or by a function, and no model was given.
        """
        with self._embedder_lock:
            if self._embedder is None:
                self._embedder = self._load_embedder()
            return self._embedder

    def _load_embedder(self) -> Embedder:
        known = self.manifest.embedder
        model, options = self._model, dict(self._model_options)
        if model is None:
            if known is None:
                raise InvalidArgumentError(
                    f"{self.path} was made from ready embeddings; open it with the model that made them: "
                    "ragq.open(path, model=…) or --model, or search with search_embeddings."
                )
            if known.get("kind") != "sentence-transformers":
                raise InvalidArgumentError(
                    f"{self.path} was embedded by {known.get('model')}; give it again: ragq.open(path, model=…)."
                )
            model = known["model"]
            options = {"revision": known.get("revision"), "truncate_dim": known.get("truncate_dim")} | options
            options.setdefault("prompts", known.get("prompts") or None)
        embedder = load_embedder(model, **options)
        mine = known or {"kind": "embeddings", "dim": self.manifest.dim}
        difference = same_model(mine, embedder.fingerprint)
        if difference:
            raise IncompatibleIndexError(
                f"{self.path} and the model do not go together: {difference}. "
                "Open it with the model that made it, or index the documents again with the new one."
            )
        return embedder

    # reading

    def __len__(self) -> int:
        """Return the number of documents."""
        return self.manifest.documents

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"Index({str(self.path)!r}: {len(self)} documents, {manifest.spec}, generation {manifest.generation})"

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents in insertion order."""
        for shard in self._view[0].shards:
            rows: list[dict[str, Any]] = []
            start = 0
            for batch in shard.docs_batches(COLUMNS):
                for row, fields in enumerate(batch.to_pylist(), start):
                    if fields["passage"] == 0 and rows:
                        yield join_passages(rows)
                        rows = []
                    if shard.deleted is None or not shard.deleted[row]:
                        rows.append(fields)
                start += batch.num_rows
            if rows:
                yield join_passages(rows)

    @overload
    def search(
        self, query: str, k: int = 10, where: Where | None = None, *, threads: int | None = None
    ) -> list[Hit]: ...

    @overload
    def search(
        self, query: Sequence[str], k: int = 10, where: Where | None = None, *, threads: int | None = None
    ) -> list[list[Hit]]: ...

    def search(
        self, query: str | Sequence[str], k: int = 10, where: Where | None = None, *, threads: int | None = None
    ) -> list[Hit] | list[list[Hit]]:
        """Return the best passages for one query or several.

        Parameters
        ----------
        query : str or sequence of str
        k : int
            How many; fewer come back only when fewer passages qualify.
        where : mapping or pyarrow.compute.Expression, optional
            Filter, see `ragq.filters`.
        threads : int, optional
            Threads of the scan; by default one a processor.

        Returns
        -------
        list of Hit, or list of list of Hit
            Best first; scores in the metric's own units, higher is better; ties in insertion order.
        """
        single = isinstance(query, str)
        queries = [query] if isinstance(query, str) else list(query)
        if not all(isinstance(text, str) for text in queries):
            raise InvalidArgumentError("'query' must be a string or a sequence of strings.")
        hits = self.hits(self.embedder.encode_queries(queries), k, where, threads=threads)
        return hits[0] if single else hits

    def hits(
        self, x: ArrayLike, k: int = 10, where: Where | None = None, *, threads: int | None = None
    ) -> list[list[Hit]]:
        """As `search`, for query embeddings of shape (n, dim)."""
        return self._hits(*self._scan(x, k, where, threads))

    def search_embeddings(
        self, x: ArrayLike, k: int = 10, where: Where | None = None, *, threads: int | None = None
    ) -> Results:
        """Return the best passages for query embeddings.

        Parameters
        ----------
        x : array_like of float, shape (n, dim) or (dim,)
        k, where, threads
            As in `search`.

        Returns
        -------
        Results
            Document ids and scores, each of shape (n, k).
        """
        snapshot, scores, rows = self._scan(np.atleast_2d(np.asarray(x)), k, where, threads)
        if rows.shape[1] < k:
            missing = ((0, 0), (0, k - rows.shape[1]))
            scores, rows = np.pad(scores, missing, constant_values=-np.inf), np.pad(rows, missing, constant_values=-1)
        ids = np.full(rows.shape, None, object)
        passages = np.full(rows.shape, -1, np.int64)
        flat, found = rows.ravel(), rows.ravel() >= 0
        if found.any():
            table = fetch(snapshot, flat[found], ["id", "passage"])
            ids.ravel()[found] = np.asarray(table.column("id").to_pylist(), object)
            passages.ravel()[found] = table.column("passage").to_numpy()
        return Results(ids, scores, passages)

    def _scan(
        self, x: ArrayLike, k: int, where: Where | None, threads: int | None
    ) -> tuple[Snapshot, NDArray[np.float32], NDArray[np.int64]]:
        snapshot, compressor = self._view
        check_int(k, "k", 1)
        queries = check_embeddings(x, snapshot.manifest.dim, name="queries")
        if snapshot.manifest.normalize:
            queries = normalized(queries)
        metric = "ip" if snapshot.manifest.metric == "cosine" else snapshot.manifest.metric
        masks = [shard.live_mask for shard in snapshot.shards]
        if where is not None:
            matches = matching_rows(snapshot.shards, where)
            live = [
                rows if s.deleted is None else rows & ~s.deleted
                for rows, s in zip(matches, snapshot.shards, strict=True)
            ]
            masks = [pack_mask(rows) for rows in live]
        blocks = [shard.block for shard in snapshot.shards]
        most = min(k, max(1, snapshot.manifest.rows))  # no more memory than there can be answers
        scores, rows = scan(compressor.scorer(queries, metric), blocks, most, masks, threads)
        return snapshot, scores, rows

    def _hits(self, snapshot: Snapshot, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> list[list[Hit]]:
        found = rows >= 0
        table = fetch(snapshot, rows[found], COLUMNS).to_pylist() if found.any() else []
        fields = iter(table)
        return [
            [
                Hit(
                    id=f"{(row := next(fields))['id']}#{row['passage']}",
                    score=float(score),
                    text=row["text"],
                    title=row["title"],
                    metadata=json.loads(row["metadata"]),
                    document_id=row["id"],
                )
                for score in query_scores[query_found]
            ]
            for query_scores, query_found in zip(scores, found, strict=True)
        ]

    def get(self, ids: str | Iterable[str]) -> list[Document]:
        """Return documents by id, in the order of `ids`; ids that are not there are left out."""
        snapshot = self._view[0]
        wanted = check_ids(ids)
        rows = [found for found in snapshot.find(wanted) if len(found)]
        if not rows:
            return []
        table = fetch(snapshot, np.concatenate(rows), COLUMNS).to_pylist()
        fields = iter(table)
        return [join_passages([next(fields) for _ in found]) for found in rows]

    def reconstruct(self, hits: Sequence[Hit]) -> NDArray[np.float32]:
        """Return the decoded embeddings of hits, float32 of shape (len(hits), dim).

        Raises
        ------
        InvalidArgumentError
            A passage is not in the index (any more).
        """
        snapshot, compressor = self._view
        x = np.empty((len(hits), snapshot.manifest.dim), np.float32)
        found = snapshot.find([hit.document_id for hit in hits])
        rows = np.full(len(hits), -1, np.int64)
        for i, (hit, passages) in enumerate(zip(hits, found, strict=True)):
            number = int(hit.id.rpartition("#")[2])
            if number >= len(passages):
                raise InvalidArgumentError(f"The passage '{hit.id}' is not in {self.path}.")
            rows[i] = passages[number]
        for number, where, local in snapshot.locate(rows):
            block = snapshot.shards[number].block
            for position, row in zip(where, local, strict=True):
                x[position] = compressor.decode(block.codes(int(row), int(row) + 1))[0]
        return x

    def __contains__(self, document_id: str) -> bool:
        return len(self._view[0].find(check_ids(document_id))[0]) > 0

    # writing

    def add(
        self,
        documents: Any = None,
        *,
        embeddings: Any = None,
        chunk: bool = True,
        progress: Progress = silent,
    ) -> Changes:
        """Add documents; one whose id is there already replaces the old one. All of them become visible at once.

        Parameters
        ----------
        documents : path, or iterable of str, dict, Document or LangChain Document
            See `ragq.pipelines.readers.read`.
        embeddings : array_like of float, shape (n, dim), or path, optional
            Ready embeddings, one a document; without them the index's model embeds.
        chunk : bool
            Cut documents that are longer than the model reads into passages.
        progress : callable
            ``progress(stage, done, total)``.

        Returns
        -------
        Changes
            How many were added, and how many of them replaced older ones.
        """
        with self._writing() as transaction:
            return add_documents(self, transaction, documents, embeddings, chunk=chunk, progress=progress)

    upsert = add

    def delete(self, ids: str | Iterable[str] | None = None, *, where: Where | None = None) -> int:
        """Delete documents by id, or all that have a passage which a filter matches.

        Returns
        -------
        int
            How many documents were there and are gone; ids that are not there are no error.
        """
        if (ids is None) == (where is None):
            raise InvalidArgumentError("Give either ids or 'where' to delete.")
        wanted = [] if ids is None else check_ids(ids)
        check_where(where)
        with self._writing() as transaction:
            if where is None:
                deleted = transaction.delete(wanted)
            else:
                shards = self._view[0].shards
                rows = matching_rows(shards, where)
                deleted = sum(transaction.delete_rows(s.entry, r) for s, r in zip(shards, rows, strict=True))
            if deleted:
                transaction.commit()
                self.refresh()
        return deleted

    def compact(self, progress: Progress = silent) -> bool:
        """Rewrite shards without their deleted rows and merge small ones; nothing is embedded or encoded again.

        Returns
        -------
        bool
            Whether anything was to be done.
        """
        with self._writing() as transaction:
            return compact_shards(self, transaction, progress)

    def _writing(self) -> Transaction:
        """Start a transaction on what is on the disk now, which this object then shows."""
        if self.mode != "w":
            raise InvalidArgumentError(f"{self.path} was opened read-only. Open it with ragq.open(path, mode='w').")
        transaction = Transaction(self.path, timeout=self.lock_timeout)
        try:
            if transaction.manifest != self.manifest:
                self.refresh()
        except BaseException:
            transaction.close()
            raise
        return transaction

    # upkeep

    def refresh(self) -> bool:
        """Show the newest generation; return whether there was a newer one."""
        snapshot = Snapshot(self.path)
        if snapshot.manifest == self.manifest:  # its number alone would not tell an index made anew from the old one
            snapshot.close()
            return False
        known = self.manifest.embedder
        self._load(snapshot)
        if snapshot.manifest.embedder != known:
            self._embedder = None
        return True

    def verify(self) -> int:
        """Compare every file with its checksum and read every document; return the bytes read.

        Raises
        ------
        CorruptIndexError
            Names the first file that is missing or altered.
        """
        return self._view[0].verify()

    def info(self) -> dict[str, Any]:
        """Return what the index is and what its parts weigh, measured on the disk; JSON values."""
        from ragq.pipelines.describe import describe

        return describe(self._view[0], self.compressor, compact_due=self.compact_due)

    @property
    def compact_due(self) -> bool:
        """Whether `compact` would pay: many deleted rows, or many small shards."""
        shards = self.manifest.shards
        rows = sum(shard.rows for shard in shards)
        small = sum(shard.rows < self.shard_rows // 2 for shard in shards)
        return rows > 0 and (rows - self.manifest.rows > COMPACT_DELETED * rows or small > COMPACT_SHARDS)

    @property
    def shard_rows(self) -> int:
        """Rows of a full shard."""
        return max(1, min(SHARD_ROWS, SHARD_BYTES // self.compressor.code_size))

    def close(self) -> None:
        """Let go of the files."""
        self._view[0].close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and how it was opened; what comes out shows the newest generation."""
        return reopen, (self.path, self.mode, self._model, self.lock_timeout, self._model_options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
