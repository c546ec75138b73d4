"""LangChain classes over an index: a retriever that reads, and a vector store that also writes.

Importing this module needs langchain-core only. The async twins run the sync methods in a thread, and a scan releases
the GIL: no call blocks the event loop.
"""

from __future__ import annotations

import math
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import ConfigDict, Field, PrivateAttr

import ragq
from ragq.errors import InvalidArgumentError
from ragq.retrievers.scan import default_threads
from ragq.token_embedders import load_token_embedder
from ragq.tokens import TokenEmbeddings
from ragq.types import Document as Record
from ragq.types import Hit

if TYPE_CHECKING:
    from ragq import Index

__all__ = ["RagqRetriever", "RagqVectorStore"]

LOCK_SECONDS = 60.0

searching = threading.local()  # whether this thread holds a turn


@lru_cache(maxsize=1)
def turns(process: int) -> threading.BoundedSemaphore:
    """Return the turns at searching of a process (a fork has its own), one a processor."""
    return threading.BoundedSemaphore(default_threads())


@contextmanager
def turn() -> Iterator[None]:
    """Hold a turn at searching; a search within a search (a reranker that retrieves) has the turn of the outer one.

    Many searches at once are no faster than one a processor, and each of their threads would take the interpreter's
    lock in its turn: an event loop beside them would wait for all of them.
    """
    if getattr(searching, "now", False):
        yield
        return
    with turns(os.getpid()):
        searching.now = True
        try:
            yield
        finally:
            searching.now = False


class RagqRetriever(BaseRetriever):
    """Retrieve passages from an index.

    Parameters
    ----------
    index : str, Path or Index
        The index, or its folder.
    k : int
        How many passages; also an argument of `invoke`.
    where : mapping or pyarrow.compute.Expression, optional
        Filter, see `ragq.filters`; also an argument of `invoke`.
    search : dict
        More arguments of `Index.search`, such as ``rerank`` or ``select``; also arguments of `invoke`.
    model : optional
        What embeds queries, where the index's own model is not to be loaded by name.

    Examples
    --------
    >>> retriever = RagqRetriever(index="corpus.ragq", k=5)  # doctest: +SKIP
    >>> retriever.invoke("what is a shard?")[0].metadata["score"]  # doctest: +SKIP
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    index: Any
    k: int = 5
    where: Any = None
    search: dict[str, Any] = Field(default_factory=dict)
    model: Any = None

    _opened: Any = PrivateAttr(default=None)

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        is_path = isinstance(self.index, (str, Path))  # a wrong path fails here, not at the first question
        self._opened = ragq.open(self.index, model=self.model) if is_path else self.index

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options = {"k": self.k, "where": self.where, **self.search, **kwargs}
        with turn():
            hits = self._opened.search(query, **options)
        return [
            Document(
                id=hit.id,
                page_content=hit.text,
                metadata={**hit.metadata, "title": hit.title, "document_id": hit.document_id, "score": hit.score},
            )
            for hit in hits
        ]


class RagqVectorStore(VectorStore):
    """A vector store in an index folder; several processes may write to it, one after the other.

    Parameters
    ----------
    embedding : Embeddings
        What embeds; the same for the life of the folder. For a multi-vector store, a model as `load_token_embedder`
        takes it: a name, a MultiVectorEncoder, a function.
    path : str or Path
        The index folder. A missing or empty one becomes an index with the first documents.
    codec : str, optional
        Compressor spec of a new index, fitted on the first documents that are added; see `ragq.build`.
    metric : {'cosine', 'ip', 'l2'}
        Of a new index.
    multi_vector : bool
        Keep all token embeddings of a text, and score by MaxSim.
    first_stage : str, optional
        What finds candidates in a new multi-vector index.
    """

    def __init__(
        self,
        embedding: Any,
        path: str | Path,
        *,
        codec: str | None = None,
        metric: str = "cosine",
        multi_vector: bool = False,
        first_stage: str | None = None,
    ) -> None:
        self.multi_vector, self.first_stage = multi_vector, first_stage
        self._embedding: Any = load_token_embedder(embedding) if multi_vector else embedding
        self.path, self.codec, self.metric = Path(path), codec, metric
        self._index: Index | None = None
        self._lock = threading.Lock()
        if (self.path / "manifest.json").exists():
            self._open()

    def _open(self) -> Index:
        if self._index is None:
            self._index = ragq.open(self.path, mode="w", model=self._embedding, lock_timeout=LOCK_SECONDS)
        return self._index

    @property
    def index(self) -> Index | None:
        """The index at its newest generation; None before the first documents."""
        with self._lock:
            if self._index is not None:
                self._index.refresh()
            elif (self.path / "manifest.json").exists():
                self._open()
            return self._index

    @property
    def embeddings(self) -> Embeddings | None:
        """What embeds; None for a multi-vector store, whose embeddings LangChain has no class for."""
        return None if self.multi_vector else self._embedding

    # writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts; one whose id is there already replaces the old one. Return their ids.

        Parameters
        ----------
        texts : iterable of str
        metadatas : list of dict, optional
            JSON objects, one a text.
        ids : list of str, optional
            One a text; None, or a None in it, makes a new one.
        """
        texts = list(texts)
        metadatas = metadatas or [{} for _ in texts]
        given: Sequence[str | None] = ids or [None] * len(texts)
        names = [name or str(uuid.uuid4()) for name in given]
        if not len(texts) == len(metadatas) == len(names):
            raise InvalidArgumentError(
                f"'texts', 'metadatas' and 'ids' must have one entry a text. "
                f"Got {len(texts)}, {len(metadatas)} and {len(names)}."
            )
        if texts:
            records = [Record(name, text, "", data) for name, text, data in zip(names, texts, metadatas, strict=True)]
            self._add(records, self._embed(texts))
        return names

    def _embed(self, texts: list[str]) -> Any:
        """Embed before the lock is taken: other writers need not wait for a model."""
        import numpy as np

        if self.multi_vector:
            return self._embedding.encode_documents(texts)
        return np.asarray(self._embedding.embed_documents(texts), np.float32)

    def _question(self, query: str) -> Any:
        return self._embedding.encode_queries([query]) if self.multi_vector else self._embedding.embed_query(query)

    def _add(self, records: list[Record], x: Any) -> None:
        with self._lock:
            if self._index is None and not (self.path / "manifest.json").exists():
                try:
                    self._index = ragq.build(
                        records,
                        self.path,
                        model=self._embedding,
                        embeddings=x,
                        codec=self.codec,
                        metric=self.metric,
                        multi_vector=self.multi_vector,
                        first_stage=self.first_stage,
                        overwrite=False,
                        lock_timeout=LOCK_SECONDS,
                    )
                    return
                except InvalidArgumentError:
                    if not (self.path / "manifest.json").exists():  # else another process was first: add to its index
                        raise
            self._open().add(records, embeddings=x)

    def delete(self, ids: list[str] | None = None, *, where: Any = None, **kwargs: Any) -> bool:
        """Delete documents by id or by filter; with neither, all of them."""
        index = self.index
        if index is not None:
            if where is None and ids is None:
                where = {}
            with self._lock:
                index.delete(ids) if where is None else index.delete(where=where)
        return True

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Any,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | Path = "corpus.ragq",
        codec: str | None = None,
        metric: str = "cosine",
        multi_vector: bool = False,
        first_stage: str | None = None,
        **kwargs: Any,
    ) -> RagqVectorStore:
        """Make a store of texts at `path`; see the class for the arguments."""
        store = cls(embedding, path, codec=codec, metric=metric, multi_vector=multi_vector, first_stage=first_stage)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    # reading

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return documents by id, in the order of `ids`; ids that are not there are left out."""
        index = self.index
        records = index.get(ids) if index is not None else []
        return [Document(id=record.id, page_content=record.text, metadata=dict(record.metadata)) for record in records]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the `k` documents nearest to a text; ``where=`` (or ``filter=``) as in `Index.search`."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, *args: Any, **kwargs: Any) -> list[tuple[Document, float]]:
        """Return the documents nearest to a text with scores in the metric's own units; higher is better."""
        query, k, where = search_arguments(*args, **kwargs)
        return self._scored(self._question(query), k, where)

    def similarity_search_by_vector(self, embedding: Any, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the `k` documents nearest to an embedding, or to the token embeddings of a query."""
        return [document for document, _ in self._scored(embedding, k, kwargs.get("where", kwargs.get("filter")))]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Return `k` of the `fetch_k` nearest documents that are relevant and unlike each other.

        Parameters
        ----------
        lambda_mult : float
            1 is the nearest, 0 the most diverse.
        """
        embedding = self._question(query)
        return self.max_marginal_relevance_search_by_vector(embedding, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: Any, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for an embedding; documents are compared by their decoded codes."""
        import numpy as np

        index = self.index
        if index is None:
            return []
        view = index._view  # one generation for the search and for the vectors: a writer may come between them
        masks = view.masks(kwargs.get("where", kwargs.get("filter")))
        several = isinstance(embedding, TokenEmbeddings)
        with turn():
            scores, rows = view.scan(embedding if several else [embedding], max(k, fetch_k), masks)
            found = rows[0] >= 0
            if not found.any():
                return []
            hits, vectors = view.hits([(rows[0][found], scores[0][found])])[0], list(view.decode(rows[0][found]))
            query = np.asarray(embedding.means()[0] if several else embedding, np.float32)
            chosen = maximal_marginal_relevance(query, vectors, lambda_mult=lambda_mult, k=k)
        return [to_document(hits[i]) for i in chosen]

    def _hits(self, embedding: Any, k: int, where: Any) -> list[Hit]:
        index = self.index
        x = embedding if isinstance(embedding, TokenEmbeddings) else [embedding]
        with turn():
            return index.hits(x, k=k, where=where)[0] if index is not None else []

    def _scored(self, embedding: Any, k: int, where: Any) -> list[tuple[Document, float]]:
        return [(to_document(hit), hit.score) for hit in self._hits(embedding, k, where)]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        if not self.multi_vector:
            return super()._similarity_search_with_relevance_scores(query, k, **kwargs)
        question, relevance = self._question(query), self._select_relevance_score_fn()
        each = max(1, question.total)  # MaxSim adds over the query's tokens
        found = self._scored(question, k, search_arguments(query, k, **kwargs)[2])
        return [(document, relevance(score / each)) for document, score in found]

    def _select_relevance_score_fn(self) -> Any:
        index = self.index
        return RELEVANCE[index.manifest.metric if index is not None else self.metric]


def search_arguments(query: str, k: int = 4, **kwargs: Any) -> tuple[str, int, Any]:
    """Return what a search of LangChain's style asks for."""
    return query, k, kwargs.get("where", kwargs.get("filter"))


def to_document(hit: Hit) -> Document:
    """Return a hit of a store, whose documents are one passage each."""
    return Document(id=hit.document_id, page_content=hit.text, metadata=dict(hit.metadata))


def logistic(score: float) -> float:
    """Return ``1 / (1 + exp(-score))`` without overflow."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


# score in the metric's units -> relevance in [0, 1], rising
RELEVANCE = {
    "cosine": lambda score: min(max((1 + score) / 2, 0.0), 1.0),
    "ip": logistic,
    "l2": lambda score: 1 / (1 + max(-score, 0.0)),
}
