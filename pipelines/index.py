"""`Index`: what a user holds of an index folder. It joins a snapshot (reading) with transactions (writing)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

from numpy.typing import ArrayLike

from ragq.checks import check_int
from ragq.errors import InvalidArgumentError
from ragq.filters import Where, check_where, matching_rows
from ragq.manifest import Manifest
from ragq.pipelines.documents import check_ids
from ragq.pipelines.models import embedder_of
from ragq.pipelines.progress import Progress, silent
from ragq.pipelines.search import read_stages
from ragq.pipelines.token_view import open_view
from ragq.pipelines.view import rankings_of
from ragq.remote import address, locate, reference
from ragq.retrievers.structures.base import Probe
from ragq.retrievers.structures.searcher import take_probe
from ragq.snapshot import Snapshot
from ragq.transaction import Transaction
from ragq.types import Document, Hit, Results

if TYPE_CHECKING:  # what writes is imported when something is written: a search must not wait for it
    from ragq.pipelines.build import BuildReport
    from ragq.pipelines.changes import Changes
    from ragq.pipelines.restructure import Structured

__all__ = ["Index", "open_index"]


def open_index(
    path: str | Path, *, mode: str = "r", model: Any = None, lock_timeout: float = 0.0, **model_options: Any
) -> Index:
    """Open an index.

    Parameters
    ----------
    path : str or Path
        The index folder, or ``s3://bucket/path`` or ``gs://bucket/path``.
    mode : {'r', 'w'}
        ``w`` also allows `Index.add`, `Index.delete` and `Index.compact`.
    model : str, Path, callable, Embeddings, Embedder or TokenEmbedder, optional
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


def reopen(path: str | Path, mode: str, model: Any, lock_timeout: float, model_options: dict[str, Any]) -> Index:
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
        self.path = locate(path)
        self.mode = mode
        self.lock_timeout = lock_timeout
        self._model, self._model_options = model, model_options
        self._embedder: Any = None
        self._embedder_lock = threading.Lock()
        self.report: BuildReport | None = None  # what the build did, when `ragq.build` made this object
        self._view = open_view(Snapshot(self.path))
        if model is not None and not isinstance(model, (str, Path)):
            _ = self.embedder  # an object costs nothing to compare now; a name is loaded when it is needed

    @property
    def manifest(self) -> Manifest:
        """What the index is at the generation that this object shows."""
        return self._view.manifest

    @property
    def compressor(self) -> Any:
        """The fitted `Compressor`, or `MultiVectorCompressor`."""
        return self._view.compressor

    @property
    def embedder(self) -> Any:
        """What embeds, an `Embedder` or `TokenEmbedder`; loaded when it is first needed.

        Raises
        ------
        IncompatibleIndexError
            It is not the model that the index was made with.
        InvalidArgumentError
            The index was made from ready embeddings or by a function, and no model was given.
        """
        with self._embedder_lock:
            if self._embedder is None:
                self._embedder = embedder_of(self.path, self.manifest, self._model, self._model_options)
            return self._embedder

    # reading

    def __len__(self) -> int:
        """Return the number of documents."""
        return self.manifest.documents

    def __repr__(self) -> str:
        manifest, place = self.manifest, address(self.path)
        return f"Index({place!r}: {len(self)} documents, {manifest.spec}, generation {manifest.generation})"

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents in insertion order."""
        return self._view.documents()

    @overload
    def search(self, query: str, k: int = 10, where: Where | None = None, **options: Any) -> list[Hit]: ...

    @overload
    def search(
        self, query: Sequence[str], k: int = 10, where: Where | None = None, **options: Any
    ) -> list[list[Hit]]: ...

    def search(
        self,
        query: str | Sequence[str],
        k: int = 10,
        where: Where | None = None,
        *,
        threads: int | None = None,
        **stages: Any,
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
        hybrid : bool or {'score', 'rrf'}
            Fuse with BM25 over the words of the passages (extra ``hybrid``).
        expand : {'neighbours', 'pagerank'}, optional
            Add the nearest passages of the best candidates.
        rerank : str, CrossEncoder or callable, optional
            Order the candidates by a cross encoder, or by ``rerank(query, passages) -> scores``.
        select : {'mmr', 'coverage', 'unique'}, optional
            Choose passages that differ from each other.
        fetch_k : int, optional
            Candidates for these stages; by default 4 k, and 50 at least.
        nprobe, ef_search : int, optional
            How far to search in the structure of the index (see `restructure`): lists of ``ivf``, candidates of
            ``hnsw``; by default what was tuned when it was built.
        candidates : int, optional
            Passages that the first stage of a multi-vector index hands to MaxSim; by default 100.
        exact : bool
            Score every row, whatever structure or first stage there is.

        Returns
        -------
        list of Hit, or list of list of Hit
            Best first (in the order of choice with `select`). Scores are in the metric's own units, higher is better;
            after `hybrid`, `expand` or `rerank` in those of the last one. Ties in insertion order.
        """
        single = isinstance(query, str)
        queries = [query] if isinstance(query, str) else list(query)
        if not all(isinstance(text, str) for text in queries):
            raise InvalidArgumentError("'query' must be a string or a sequence of strings.")
        hits = self._search(self.embedder.encode_queries(queries), queries, k, where, threads, stages)
        return hits[0] if single else hits

    def hits(
        self, x: Any, k: int = 10, where: Where | None = None, *, threads: int | None = None, **stages: Any
    ) -> list[list[Hit]]:
        """As `search`, for query embeddings as in `search_embeddings`, without the stages that read the question."""
        return self._search(x, None, k, where, threads, stages)

    def _search(
        self,
        x: Any,
        queries: list[str] | None,
        k: int,
        where: Where | None,
        threads: int | None,
        options: dict[str, Any],
    ) -> list[list[Hit]]:
        view, probe, stages = self._view, take_probe(options), read_stages(options)
        check_int(k, "k", 1)
        masks = view.masks(where)
        rankings = rankings_of(*view.scan(x, stages.candidates(k), masks, threads, probe))
        if stages.any:
            rankings = stages.run(view, queries, k, rankings, masks)
        return view.hits(rankings)

    def search_embeddings(
        self,
        x: Any,
        k: int = 10,
        where: Where | None = None,
        *,
        threads: int | None = None,
        nprobe: int | None = None,
        ef_search: int | None = None,
        exact: bool = False,
        candidates: int | None = None,
    ) -> Results:
        """Return the best passages for query embeddings.

        Parameters
        ----------
        x : array_like of float, shape (n, dim) or (dim,), or TokenEmbeddings for a multi-vector index
        k, where, threads, nprobe, ef_search, exact, candidates
            As in `search`.

        Returns
        -------
        Results
            Document ids and scores, each of shape (n, k).
        """
        view = self._view
        probe = Probe(nprobe, ef_search, exact, candidates)
        return view.results(*view.scan(x, k, view.masks(where), threads, probe), k)

    def get(self, ids: str | Iterable[str]) -> list[Document]:
        """Return documents by id, in the order of `ids`; ids that are not there are left out."""
        return self._view.get(check_ids(ids))

    def reconstruct(self, hits: Sequence[Hit]) -> Any:
        """Return the decoded embeddings of hits, float32 of shape (len(hits), dim), or their TokenEmbeddings.

        Raises
        ------
        InvalidArgumentError
            A passage is not in the index (any more).
        """
        return self._view.reconstruct(self._view.rows_of(hits))

    def __contains__(self, document_id: str) -> bool:
        return len(self._view.snapshot.find(check_ids(document_id))[0]) > 0

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
        embeddings : array_like of float, shape (n, dim), TokenEmbeddings, or path, optional
            Ready embeddings, one a document (a run of them); without them the index's model embeds.
        chunk : bool
            Cut documents that are longer than the model reads into passages.
        progress : callable
            ``progress(stage, done, total)``.

        Returns
        -------
        Changes
            How many were added, and how many of them replaced older ones.
        """
        from ragq.pipelines.changes import add_documents

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
                shards = self._view.snapshot.shards
                rows = matching_rows(shards, where)
                deleted = sum(transaction.delete_rows(s.entry, r) for s, r in zip(shards, rows, strict=True))
            if deleted:
                transaction.commit()
                self.refresh()
        return deleted

    def restructure(
        self,
        kind: str = "auto",
        *,
        nlist: int | None = None,
        recall: float = 0.95,
        queries: ArrayLike | None = None,
        neighbours: int = 0,
        seed: int = 0,
        progress: Progress = silent,
    ) -> Structured:
        """Build what lets a search look at a part of the rows only, from the codes; nothing is embedded again.

        Later searches use it. Deletes and filters hold; documents that are added later are scanned until `compact` or
        another call builds it anew (`info` says when that is due).

        Parameters
        ----------
        kind : {'auto', 'ivf', 'hnsw', 'sm2graph', 'none'}
            ``ivf``: lists around centroids; ``hnsw``: a graph over floats of reduced dimension, for small indexes
            (extra ``graph``); ``sm2graph``: a graph over two-bit codes; ``none``: scan every row; ``auto``: none until
            the scan would be slow, then ivf.
        nlist : int, optional
            Lists of ``ivf``; by default about ``4 sqrt(rows)``.
        recall : float
            Share of the ten best rows by the scan that a search is tuned to find.
        queries : array_like of float, shape (n, dim), optional
            Real queries to tune with (256 are enough); by default made up from rows of the index.
        neighbours : int
            Also store so many nearest passages of each one (8 do), for searches that `expand`.
        seed : int
        progress : callable
            ``progress(stage, done, total)``.

        Returns
        -------
        Structured
            What was built, why, and the recall that it reached.
        """
        from ragq.pipelines.restructure import restructure

        with self._writing() as transaction:
            return restructure(self, transaction, kind, nlist, recall, queries, neighbours, seed, progress)

    def compact(self, progress: Progress = silent) -> bool:
        """Rewrite shards without their deleted rows and merge small ones; nothing is embedded or encoded again.

        The structure of the index, if it has one, is built anew when it does not cover what there is.

        Returns
        -------
        bool
            Whether anything was to be done.
        """
        from ragq.pipelines.changes import compact_shards
        from ragq.pipelines.restructure import renew

        with self._writing() as transaction:
            changed = compact_shards(self, transaction, progress)
            return renew(self, transaction, progress) or changed

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
        self._view = open_view(snapshot)
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
        return self._view.snapshot.verify()

    def info(self) -> dict[str, Any]:
        """Return what the index is and what its parts weigh, measured on the disk; JSON values."""
        from ragq.pipelines.describe import describe

        return describe(self._view.snapshot, self.compressor, self.shard_rows)

    @property
    def compact_due(self) -> bool:
        """Whether `compact` would pay: many deleted rows, many small shards, or many that the structure lacks."""
        from ragq.pipelines.describe import compact_due

        return compact_due(self.manifest, self.shard_rows)

    @property
    def shard_rows(self) -> int:
        """Rows of a full shard."""
        return self._view.shard_rows

    def close(self) -> None:
        """Let go of the files."""
        self._view.snapshot.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and how it was opened; what comes out shows the newest generation."""
        return reopen, (reference(self.path), self.mode, self._model, self.lock_timeout, self._model_options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
