"""`train`: from an index or embeddings and whatever queries there are to a trained codec in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from ragq.checks import check_int, check_metric, normalized
from ragq.compressors import from_spec
from ragq.errors import InvalidArgumentError
from ragq.pipelines.training.corpus import Corpus, Questions, open_corpus, read_labels, read_queries
from ragq.pipelines.training.data import TrainingQueries, split
from ragq.pipelines.training.queries import KINDS, Generator, distance, sentences, titles, transplanted
from ragq.pipelines.training.run import Trained, train_codec
from ragq.pipelines.training.settings import METHODS, Settings, settings_for
from ragq.pipelines.training.vectors import Vectors
from ragq.storage import storage_errors, write_bytes

__all__ = ["train"]

Floats = NDArray[np.float32]
DEFAULT_CODECS = {  # 48 bytes each
    "distill-vq": "DistillVQ48",
    "jpq": "JPQ48",
    "mopq": "MoPQ48",
    "repconc": "RepCONC48",
    "bpr": "BPR384",
}
SENTENCES = 3  # of a document
GENERATED = 3  # of a document; as in GPL for small corpora
MOST_MADE = 20_000  # of each kind
Log = Callable[[dict[str, Any]], None]
Tell = Callable[[str], None]


def train(
    source: Any,
    out: str | Path,
    *,
    method: str = "distill-vq",
    codec: str | None = None,
    queries: Any = None,
    query_embeddings: Any = None,
    qrels: Any = None,
    embeddings: Any = None,
    make: Sequence[str] | None = None,
    generator: Any = None,
    teacher: Any = None,
    metric: str = "cosine",
    model: Any = None,
    seed: int = 0,
    resume: bool = False,
    log: Log = lambda line: None,
    tell: Tell = lambda line: None,
    model_options: dict[str, Any] | None = None,
    **settings: Any,
) -> Trained:
    """Train a codec for documents and queries, and keep it only if it beats its start on held-out queries.

    Parameters
    ----------
    source : path or ndarray
        An index; ready embeddings (``x.npy``, ``x.parquet:column`` or an array); or documents, with `embeddings`.
    out : path
        Folder for the codec, its report, log, plot and checkpoint; ``ragq.build(codec=out)`` uses it.
    method : str
        ``distill-vq``, ``jpq``, ``mopq``, ``repconc`` or ``bpr``.
    codec : str, optional
        Spec of the method's codec; by default that of 48 bytes.
    queries : path, ndarray or sequence of str, optional
        Real queries: a ``.jsonl`` file, texts, or embeddings. A fifth of them validates.
    query_embeddings : path or ndarray, optional
        Ready embeddings of `queries`.
    qrels : path, optional
        Judgements of them, a BEIR ``.tsv``.
    embeddings : path or ndarray, optional
        Ready embeddings of the documents or passages, where `source` does not hold them.
    make : sequence of str, optional
        Queries made from the documents: ``titles``, ``sentences``, ``generated``, ``transplanted``, ``documents``. By
        default titles and sentences where there are texts and a model, else transplanted ones where there are real
        queries, else documents.
    generator : path or str, optional
        A text2text model, for ``generated``.
    teacher : path, CrossEncoder or callable, optional
        A cross encoder that judges the first documents of the real queries, beside the dense scores.
    metric : {'cosine', 'ip'}
        Of the embeddings; an index knows its own.
    model : optional
        What embeds queries; an index knows its own.
    seed : int
    resume : bool
        Go on from the checkpoint in `out`.
    log : callable
        Given a JSON object an epoch.
    tell : callable
        Given sentences about the queries.
    model_options : dict, optional
        As for `ragq.embedders.load_embedder`.
    **settings
        See `Settings`.

    Returns
    -------
    Trained

    Raises
    ------
    InvalidArgumentError
        Arguments that do not go together; see the message.
    """
    check_metric(metric)
    check_int(seed, "seed", 0)
    spec, chosen = plan(method, codec, seed, settings)
    folder = Path(out).expanduser()
    corpus = open_corpus(source, embeddings, metric, model, model_options or {}, folder)
    questions = read_queries(queries, query_embeddings, corpus)
    labels = None if qrels is None else read_labels(qrels, questions, corpus)
    made, texts = make_queries(make, corpus, questions, generator, chosen, tell, folder, resume)
    data = split(questions.x, made, labels, chosen.held_out, seed)
    if teacher is not None:
        data = with_teacher(teacher, corpus, data, questions, texts, chosen)
    return train_codec(corpus.vectors, data, chosen, spec, out=folder, resume=resume, log=log)


def plan(method: str, codec: str | None, seed: int, settings: dict[str, Any]) -> tuple[str, Settings]:
    """Return the spec and the settings of a run."""
    if method not in METHODS:
        raise InvalidArgumentError(f"'method' must be one of {', '.join(METHODS)}. Got {method!r}.")
    return str(from_spec(codec or DEFAULT_CODECS[method])), settings_for(method, seed=seed, **settings)


def make_queries(
    kinds: Sequence[str] | None,
    corpus: Corpus,
    questions: Questions,
    generator: Any,
    settings: Settings,
    tell: Tell,
    folder: Path,
    resume: bool,
) -> tuple[Floats, list[str | None]]:
    """Return made queries, and their texts where they have any; what took a model is kept in the folder."""
    rng = np.random.default_rng([settings.seed, 0x3A])
    kinds = default_kinds(corpus, questions, generator) if kinds is None else kinds
    parts = [np.empty((0, corpus.vectors.dim), np.float32)]
    texts: list[str | None] = []
    for kind in kinds:
        if kind not in KINDS:
            raise InvalidArgumentError(f"'make' must be of {', '.join(KINDS)}. Got {kind!r}.")
        asked: list[str] = []
        if kind == "documents":
            x = corpus.vectors.sample(MOST_MADE, rng)
        elif kind == "transplanted":
            count = min(MOST_MADE, 10 * settings.queries_per_epoch)
            x = transplanted(corpus.vectors, questions.x, count, rng)
        else:
            cache = folder / f"{kind}-{settings.seed}.safetensors"
            if resume and cache.is_file():
                x, asked = read_made(cache)
            else:
                asked = make_texts(kind, corpus, generator, settings.seed, rng)
                assert corpus.embed is not None
                x = unit(corpus.embed(asked), corpus.vectors) if asked else parts[0]
                write_made(cache, x, asked)
        tell(describe(kind, x, questions.x, corpus.vectors, rng))
        parts.append(x)
        texts += asked or [None] * len(x)
    return np.concatenate(parts), texts


def write_made(path: Path, x: Floats, texts: list[str]) -> None:
    """Keep made queries for a resumed run."""
    with storage_errors(path, "create"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, safetensors.numpy.save({"x": np.ascontiguousarray(x)}, {"texts": json.dumps(texts)}))


def read_made(path: Path) -> tuple[Floats, list[str]]:
    """Read what `write_made` kept."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return file.get_tensor("x"), json.loads((file.metadata() or {})["texts"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}. Train again without --resume.") from None


def default_kinds(corpus: Corpus, questions: Questions, generator: Any) -> list[str]:
    """Return the kinds of queries to make when nobody says which."""
    if generator is not None:
        return ["titles", "sentences", "generated"]
    if corpus.documents is not None and corpus.embed is not None:
        return ["titles", "sentences"]
    return ["transplanted"] if len(questions.x) else ["documents"]


def make_texts(kind: str, corpus: Corpus, generator: Any, seed: int, rng: np.random.Generator) -> list[str]:
    """Return titles, sentences or generated questions, at most `MOST_MADE` in random order."""
    if corpus.documents is None or corpus.embed is None:
        raise InvalidArgumentError(
            f"Queries from {kind} need the documents' texts and a model: train for an index, or give documents with "
            "--embeddings and --model."
        )
    documents = list(corpus.documents())
    if kind == "titles":
        found = list(dict.fromkeys(titles(documents)))
    elif kind == "sentences":
        found = sentences(documents, SENTENCES, rng)
    else:
        if generator is None:
            raise InvalidArgumentError("Queries are generated by a text2text model. Name it: --generator.")
        chosen = rng.permutation(len(documents))[: -(-MOST_MADE // GENERATED)]
        passages = [f"{documents[i].title} {documents[i].text}".strip() for i in chosen]
        found = Generator(generator).ask(passages, GENERATED, seed)
    return [found[i] for i in rng.permutation(len(found))[:MOST_MADE]]


def unit(x: Floats, vectors: Vectors) -> Floats:
    """Return query embeddings as the vectors are scaled."""
    return normalized(x) if vectors.normalize else x


def describe(kind: str, made: Floats, real: Floats, vectors: Vectors, rng: np.random.Generator) -> str:
    """Say how many queries were made, and whether they lie where real ones do."""
    text = f"{len(made):,} queries made from {kind}"
    if not len(real) or not len(made):
        return text
    far, documents = distance(made, real, vectors.sample(4096, rng))
    warning = " They lie farther from the real queries than the documents do." if far > documents else ""
    return f"{text}; distance of the means from the real ones {far:.3f}, of the documents {documents:.3f}.{warning}"


def with_teacher(
    teacher: Any,
    corpus: Corpus,
    data: TrainingQueries,
    questions: Questions,
    made: list[str | None],
    settings: Settings,
) -> TrainingQueries:
    """Let a cross encoder judge the documents of the training queries that have a text."""
    from dataclasses import replace

    from ragq.pipelines.training.teachers import margins

    if corpus.documents is None:
        raise InvalidArgumentError(
            "A cross encoder reads texts: train for an index, or for documents with --embeddings."
        )
    order = data.rows
    every = [*questions.texts, *made] if len(questions.texts) else made
    texts = [every[i] for i in order.tolist()]
    if not any(texts):
        raise InvalidArgumentError("A cross encoder reads texts, and none of the queries has one. Give a .jsonl file.")
    passages = [f"{document.title} {document.text}".strip() for document in corpus.documents()]
    return replace(data, margins=margins(teacher, corpus.vectors, data.queries, texts, passages))
