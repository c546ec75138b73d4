"""What `ragq train` is pointed at: an index, ready embeddings, or documents with their ready embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_embeddings, normalized
from ragq.errors import InvalidArgumentError
from ragq.manifest import MANIFEST
from ragq.pipelines.readers import open_embeddings, read
from ragq.pipelines.training.data import Labels
from ragq.pipelines.training.reencode import index_vectors
from ragq.pipelines.training.vectors import Vectors
from ragq.types import Document

__all__ = ["Corpus", "Questions", "open_corpus", "read_labels", "read_queries"]

Floats = NDArray[np.float32]
SCRATCH = "embeddings.npy"


@dataclass(frozen=True)
class Corpus:
    """Documents to train for.

    Attributes
    ----------
    vectors : Vectors
    documents : callable, optional
        Yields one `Document` a row, with the text that was embedded; None where there is only the array.
    embed : callable, optional
        Returns query embeddings of texts.
    """

    vectors: Vectors
    documents: Callable[[], Iterator[Document]] | None = None
    embed: Callable[[list[str]], Floats] | None = None


@dataclass(frozen=True)
class Questions:
    """The user's queries.

    Attributes
    ----------
    x : ndarray of float32, shape (n, dim)
    ids : list of str
        Row numbers where the queries came without.
    texts : list of (str or None)
    """

    x: Floats
    ids: list[str]
    texts: list[str | None]


def open_corpus(source: Any, embeddings: Any, metric: str, model: Any, options: dict[str, Any], out: Path) -> Corpus:
    """Open what to train for.

    Raises
    ------
    InvalidArgumentError
        Documents without embeddings, or embeddings that are not theirs.
    """
    normalize = metric == "cosine"
    if isinstance(source, (str, Path)) and (Path(source).expanduser() / MANIFEST).is_file():
        return index_corpus(Path(source).expanduser(), embeddings, model, options, out)
    if metric == "l2":
        raise InvalidArgumentError("The learned codecs rank by inner product or cosine. Train with metric='cosine'.")
    embed = None if model is None else embedding(model, options)
    if embeddings is None:
        if isinstance(source, (str, Path)) and Path(str(source).partition(":")[0]).suffix not in (".npy", ".parquet"):
            raise InvalidArgumentError(
                f"{source} has no embeddings yet. Index it first (ragq index {source} --codec F16) and train for the "
                "index, or give --embeddings."
            )
        return Corpus(Vectors.open(source, normalize, out / SCRATCH), None, embed)
    vectors = Vectors.open(embeddings, normalize, out / SCRATCH)
    return Corpus(vectors, lambda: iter(read(source, aligned=True)), embed)


def index_corpus(path: Path, embeddings: Any, model: Any, options: dict[str, Any], out: Path) -> Corpus:
    """Open an index."""
    from ragq.pipelines.changes import live_passages
    from ragq.pipelines.index import Index

    index = Index(path, model=model, **options)
    if index.manifest.metric == "l2":
        raise InvalidArgumentError(f"{path} ranks by l2. The learned codecs rank by inner product or cosine.")

    def documents() -> Iterator[Document]:
        for shard in index._view.snapshot.shards:
            for passages, _ in live_passages(shard):
                yield from (Document(p.document_id, p.text, p.title) for p in passages)

    vectors = index_vectors(index, embeddings, out / SCRATCH)
    return Corpus(vectors, documents, lambda texts: index.embedder.encode_queries(texts))


def embedding(model: Any, options: dict[str, Any]) -> Callable[[list[str]], Floats]:
    """Return a function that embeds queries; the model is loaded when it is first called."""

    def embed(texts: list[str]) -> Floats:
        from ragq.embedders import load_embedder

        return load_embedder(model, **options).encode_queries(texts)

    return embed


def read_queries(queries: Any, embeddings: Any, corpus: Corpus) -> Questions:
    """Read queries: a ``.npy`` file or array of embeddings, a ``.jsonl`` file of records, or a list of texts.

    Parameters
    ----------
    queries : path, ndarray, sequence of str, or None
        Records have ``text`` and ``_id`` or ``id``.
    embeddings : path or ndarray, optional
        Ready embeddings of them, in their order.
    corpus : Corpus
        Its model embeds texts without embeddings.
    """
    if queries is None:
        return Questions(np.empty((0, corpus.vectors.dim), np.float32), [], [])
    ids: list[str] = []
    texts: list[str | None] = []
    if isinstance(queries, (str, Path)) and str(queries).endswith(".jsonl"):
        for number, line in enumerate(Path(queries).read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                name, text = record(line, f"{queries}:{number}")
                ids.append(name)
                texts.append(text)
    elif isinstance(queries, (list, tuple)) and all(isinstance(text, str) for text in queries):
        ids, texts = [str(i) for i in range(len(queries))], list(queries)
    else:
        embeddings = queries
    if embeddings is not None:
        opened = open_embeddings(embeddings, dim=corpus.vectors.dim)
        x = check_embeddings(opened.rows(0, len(opened)), name="queries")
    elif corpus.embed is None:
        raise InvalidArgumentError("Nothing embeds the queries. Name the model: --model, or give --query-embeddings.")
    else:
        x = corpus.embed([text or "" for text in texts])
    ids, texts = ids or [str(i) for i in range(len(x))], texts or [None] * len(x)
    if len(ids) != len(x):
        raise InvalidArgumentError(f"There are {len(ids):,} queries and {len(x):,} embeddings of queries.")
    return Questions(normalized(x) if corpus.vectors.normalize else x, ids, texts)


def record(line: str, where: str) -> tuple[str, str]:
    """Return id and text of a JSON line."""
    try:
        body = json.loads(line)
        name, text = body.get("_id", body.get("id")), body["text"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InvalidArgumentError(f"{where} must be a JSON object with '_id' and 'text'.") from None
    if name is None or not isinstance(text, str):
        raise InvalidArgumentError(f"{where} must have an '_id' and a 'text'.")
    return str(name), text


def read_labels(path: Any, questions: Questions, corpus: Corpus) -> Labels:
    """Read judgements: a BEIR ``.tsv`` (query-id, corpus-id, score), with or without its header line.

    Returns
    -------
    mapping
        Query number to document row to grade; of documents in several passages, every passage.

    Raises
    ------
    InvalidArgumentError
        A damaged line, documents without ids, or no judgement of any query and document that there is.
    """
    if corpus.documents is None:
        raise InvalidArgumentError(
            "--qrels names documents by id, and an array has none. Train for an index, or documents with --embeddings."
        )
    rows: dict[str, list[int]] = {}
    for row, document in enumerate(corpus.documents()):
        rows.setdefault(document.id, []).append(row)
    number = {name: i for i, name in enumerate(questions.ids)}
    labels: dict[int, dict[int, int]] = {}
    for count, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split("\t")
        if count == 1 and not parts[-1].strip().lstrip("-").isdigit():
            continue
        if len(parts) != 3 or not parts[2].strip().lstrip("-").isdigit():
            raise InvalidArgumentError(f"{path}:{count} must be: query-id, corpus-id, score, separated by tabs.")
        if parts[0] in number:
            grades = labels.setdefault(number[parts[0]], {})
            grades |= dict.fromkeys(rows.get(parts[1], []), int(parts[2]))
    labels = {query: grades for query, grades in labels.items() if any(grade > 0 for grade in grades.values())}
    if not labels:
        raise InvalidArgumentError(f"{path} judges none of these queries and documents. Are the ids the same?")
    return labels
