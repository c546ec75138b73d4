"""ragq inside MTEB, both ways round.

`RagqSearchModel` is a search model (mteb's ``SearchProtocol``): `mteb.evaluate` runs the true pipeline with it, from
text to shards, codes and kernels. `RagqSearchIndex` is a search backend (``IndexEncoderSearchProtocol``) for any mteb
encoder::

    mteb.evaluate(RagqSearchModel(codec="PCA192,FP8"), mteb.get_tasks(tasks=["SciFact"]))
    mteb.evaluate(SearchEncoderWrapper(encoder, index_backend=RagqSearchIndex("FP8")), tasks)

mteb breaks equal scores by document id, from the last to the first. Codes tie often, so that both classes lower a score
that equals the one before it by the least float32 step: mteb then sees ragq's order, and both report the same measures.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import ragq
from ragq.checks import check_embeddings, check_metric
from ragq.compressors import from_spec
from ragq.embedders import DEFAULT_MODEL, load_embedder
from ragq.errors import InvalidArgumentError
from ragq.types import Document

if TYPE_CHECKING:
    from ragq import Index

__all__ = ["RagqSearchIndex", "RagqSearchModel", "strictly_falling"]

Floats = NDArray[np.float32]

PASSAGES = 10  # of one document, on average, before fewer than `top_k` documents come back
HITS_AT_ONCE = 4_000_000


def strictly_falling(scores: Floats) -> Floats:
    """Return `scores` of shape (n,), best first, each below the one before by at least one float32 step."""
    falling = scores.astype(np.float32, copy=True)
    for i in range(1, len(falling)):
        if not falling[i] < falling[i - 1]:
            falling[i] = np.nextafter(falling[i - 1], np.float32(-np.inf))
    return falling


class _Workspace:
    """A temporary folder for one index at a time, gone with its owner."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ragq-mteb-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.built = 0

    def next(self) -> Path:
        """Remove the last index and return the place of the next."""
        shutil.rmtree(self.folder / f"{self.built}.ragq", ignore_errors=True)
        self.built += 1
        return self.folder / f"{self.built}.ragq"


class RagqSearchModel:
    """A ragq pipeline as an mteb model: embeds, compresses, writes shards and searches them.

    Parameters
    ----------
    model : str, Path, SentenceTransformer, callable, LangChain Embeddings or Embedder
        What embeds, see `ragq.embedders.load_embedder`.
    codec : str
        Spec of the codes.
    metric : {'cosine', 'ip', 'l2'}
    chunk_tokens : int
        Tokens of a passage; 0 embeds each document whole, as mteb's encoders do. A document of several passages counts
        at its best one.
    seed : int
        Of the codec's fit.
    **model_options
        For `load_embedder`.

    Attributes
    ----------
    info : dict
        `Index.info` of the last corpus: bytes by part and bytes a vector.
    """

    def __init__(
        self,
        model: Any = DEFAULT_MODEL,
        codec: str = "FP8",
        *,
        metric: str = "cosine",
        chunk_tokens: int = 0,
        seed: int = 0,
        **model_options: Any,
    ) -> None:
        self.codec = str(from_spec(codec))
        self.metric = check_metric(metric)
        self.chunk_tokens = chunk_tokens
        self.seed = seed
        self.embedder = load_embedder(model, **model_options)
        self.info: dict[str, Any] = {}
        self._workspace = _Workspace()
        self._index: Index | None = None

    @property
    def mteb_model_meta(self) -> Any:
        """Mteb's ``ModelMeta``: the model's name and revision, and the spec and its bytes as the experiment."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        known = self.embedder.fingerprint
        model = str(known.get("model") or "model")
        scoring = {"cosine": ScoringFunction.COSINE, "ip": ScoringFunction.DOT_PRODUCT, "l2": ScoringFunction.EUCLIDEAN}
        revision = known.get("revision") or str(known.get("weights_sha256") or "")[:16] or "unknown"
        bytes_a_vector = from_spec(self.codec).code_size_at(self.embedder.dim)
        return ModelMeta.create_empty(
            {
                "name": f"ragq/{model.rpartition('/')[2]}",
                "revision": f"{revision}-ragq{ragq.__version__}",
                "adapted_from": model,
                "embed_dim": self.embedder.dim,
                "max_tokens": self.embedder.max_tokens,
                "similarity_fn_name": scoring[self.metric],
                "experiment_kwargs": {"codec": self.codec, "code_bytes": bytes_a_vector, "seed": self.seed},
            }
        )

    def index(self, corpus: Any, **mteb_arguments: Any) -> None:
        """Index a corpus: an mteb dataset with ``id``, ``text`` and perhaps ``title``."""
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
        documents = (
            Document(str(id_), text or "", title or "")
            for id_, text, title in zip(corpus["id"], corpus["text"], titles, strict=True)
        )
        self._index = ragq.build(
            documents,
            self._workspace.next(),
            model=self.embedder,
            codec=self.codec,
            metric=self.metric,
            chunk_tokens=self.chunk_tokens,
            seed=self.seed,
        )
        self.info = self._index.info()

    def search(
        self,
        queries: Any,
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **mteb_arguments: Any,
    ) -> dict[str, dict[str, float]]:
        """Search for the queries of an mteb dataset with ``id`` and ``text``, and perhaps ``instruction``.

        With `top_ranked` only the documents that it names for a query are returned.
        """
        if self._index is None:
            raise InvalidArgumentError("index() must come before search().")
        texts = [str(text) for text in queries["text"]]
        if "instruction" in queries.column_names:
            texts = [f"{text} {more}".strip() for text, more in zip(texts, queries["instruction"], strict=True)]
        # passages of one document are merged, and reranking needs its candidates wherever they come
        every = self._index.manifest.rows
        depth = every if top_ranked is not None else min(every, top_k * (PASSAGES if self.chunk_tokens else 1))
        answers = {}
        found = _hits(self._index, self.embedder.encode_queries(texts), depth)
        for query, hits in zip(queries["id"], found, strict=True):
            allowed = None if top_ranked is None else set(top_ranked.get(query, ()))
            best: dict[str, float] = {}
            for document, score in hits:
                if (allowed is None or document in allowed) and len(best) < top_k:
                    best.setdefault(document, score)
            falling = strictly_falling(np.fromiter(best.values(), np.float32, len(best)))
            answers[str(query)] = dict(zip(best, falling.tolist(), strict=True))
        return answers


class RagqSearchIndex:
    """ragq as the search backend of an mteb encoder.

    Parameters
    ----------
    codec : str
        Spec of the codes.
    metric : {'cosine', 'ip', 'l2'}
        The encoder's own similarity.
    seed : int
        Of the codec's fit.
    """

    def __init__(self, codec: str = "FP8", *, metric: str = "cosine", seed: int = 0) -> None:
        self.codec = str(from_spec(codec))
        self.metric = check_metric(metric)
        self.seed = seed
        self.info: dict[str, Any] = {}
        self._workspace = _Workspace()
        self._parts: list[Floats] = []
        self._ids: list[str] = []
        self._index: Index | None = None

    def add_documents(self, embeddings: Any, idxs: Sequence[str]) -> None:
        """Take embeddings `(n, dim)` and their ids; the index is built when it is first searched."""
        floats = check_embeddings(_array(embeddings), name="embeddings")
        if len(floats) != len(idxs):
            raise InvalidArgumentError(f"There are {len(floats)} embeddings and {len(idxs)} ids.")
        self._parts.append(floats)
        self._ids += [str(i) for i in idxs]
        self._index = None

    def search(
        self,
        embeddings: Any,
        top_k: int,
        similarity_fn: Callable[..., Any] | None = None,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        query_idx_to_id: Mapping[int, str] | None = None,
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Return scores and row numbers of the best documents for each query, best first.

        With `top_ranked` the numbers are places in the query's own list, as mteb wants them. `similarity_fn` is not
        used: scores come from the codes.
        """
        if not self._ids:
            raise InvalidArgumentError("add_documents() must come before search().")
        if top_ranked is not None and query_idx_to_id is None:
            raise InvalidArgumentError("'query_idx_to_id' must be given with 'top_ranked'.")
        index = self._index or self._build()
        depth = len(self._ids) if top_ranked is not None else min(top_k, len(self._ids))
        scores: list[list[float]] = []
        places: list[list[int]] = []
        for query, hits in enumerate(_hits(index, _array(embeddings), depth)):
            found = [(int(row), score) for row, score in hits]
            if top_ranked is not None and query_idx_to_id is not None:
                place = {document: i for i, document in enumerate(top_ranked.get(query_idx_to_id[query], ()))}
                found = [(place[self._ids[row]], score) for row, score in found if self._ids[row] in place][:top_k]
            scores.append(strictly_falling(np.array([score for _, score in found], np.float32)).tolist())
            places.append([row for row, _ in found])
        return scores, places

    def clear(self) -> None:
        """Forget all documents."""
        self._parts, self._ids, self._index = [], [], None

    def _build(self) -> Index:
        rows = np.arange(len(self._ids)).astype(str).tolist()  # an id of mteb may come twice
        embeddings = np.concatenate(self._parts)
        self._index = ragq.build(
            out=self._workspace.next(),
            codec=self.codec,
            embeddings=embeddings,
            ids=rows,
            metric=self.metric,
            seed=self.seed,
        )
        self.info = self._index.info()
        return self._index


def _hits(index: Index, queries: Floats, depth: int) -> Iterator[list[tuple[str, float]]]:
    """Yield the (id, score) pairs of each query, best first; a few queries at a time when many hits are asked for."""
    step = max(1, HITS_AT_ONCE // depth)
    for start in range(0, len(queries), step):
        yield from index.search_embeddings(queries[start : start + step], depth)


def _array(embeddings: Any) -> NDArray[Any]:
    """Return a torch tensor or an array as a float array."""
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().cpu().float().numpy()
    return np.asarray(embeddings, np.float32)
