"""Multi-vector indexes as systems of a sweep: real indexes over the token embeddings of a data set, searched by MaxSim.

A sweep hands its systems one embedding a text. What a `TokenSystem` is built from are the token embeddings of the same
texts, made once and kept beside the other passes; the embedding of a query says which query it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

import ragq
from ragq.compressors.multivector import MultiVectorCompressor
from ragq.eval.datasets import Dataset
from ragq.eval.multivector import cached_tokens
from ragq.eval.systems import Built, index_bytes, rate
from ragq.eval.vectors import Vectors, cache_folder
from ragq.tokens import TokenEmbeddings

__all__ = ["TokenSystem", "Tokens", "token_systems"]

Floats = NDArray[np.float32]
JOINT = " after "  # between codec and first stage, as a `MultiVectorCompressor` prints itself


class Tokens:
    """The token embeddings of a data set, made when they are first needed and kept in the cache folder.

    Parameters
    ----------
    dataset : Dataset
    vectors : Vectors
        What the sweep hands to systems; their queries name those of the data set.
    embedder : callable
        Returns a `TokenEmbedder`.
    cache : Path, optional
        By default `ragq.eval.vectors.cache_folder`.
    """

    def __init__(
        self, dataset: Dataset, vectors: Vectors, embedder: Callable[[], Any], cache: Path | None = None
    ) -> None:
        self.dataset, self.vectors, self._embedder = dataset, vectors, embedder
        self._cache = cache or cache_folder()

    def _made(self, kind: str, texts: Sequence[str]) -> TokenEmbeddings:
        embedder = self._embedder()
        digest = xxhash.xxh3_128(json.dumps([kind, embedder.fingerprint], sort_keys=True, default=str).encode())
        for text in texts:
            digest.update(json.dumps(text).encode())
        encode = embedder.encode_documents if kind == "documents" else embedder.encode_queries
        return cached_tokens(self._cache / "tokens" / digest.hexdigest(), texts, encode)

    @cached_property
    def documents(self) -> TokenEmbeddings:
        """Of the documents."""
        return self._made("documents", self.dataset.passages)

    @cached_property
    def queries(self) -> TokenEmbeddings:
        """Of the queries."""
        return self._made("queries", self.dataset.queries)

    @cached_property
    def _numbers(self) -> dict[bytes, int]:
        return {np.ascontiguousarray(query).tobytes(): i for i, query in enumerate(self.vectors.queries)}

    def asked(self, queries: Floats) -> TokenEmbeddings:
        """Return the token embeddings of the queries with these embeddings, of shape (n, dim)."""
        return self.queries.take([self._numbers[np.ascontiguousarray(query).tobytes()] for query in queries])


class TokenSystem:
    """A multi-vector index, measured as users get it.

    Parameters
    ----------
    spec : str
        ``codec``, or ``codec after first stage``.
    tokens : sequence of Tokens
        Of the data sets of the sweep.

    Raises
    ------
    InvalidArgumentError
        An unknown or impossible spec.
    """

    family = "multi-vector"

    def __init__(self, spec: str, tokens: Sequence[Tokens]) -> None:
        codec, _, first = spec.partition(JOINT)
        compressor = MultiVectorCompressor.from_spec(codec.strip(), first.strip() or None)
        self.name = f"MaxSim {compressor}"
        self.codec, self.first_stage = compressor.codec, compressor.first_stage
        self._tokens = tokens

    def build(self, documents: Floats, folder: Path, *, metric: str, seed: int) -> Built:
        """Build an index of the token embeddings of the same documents; `code_bytes` is what a document adds."""
        tokens = next(t for t in self._tokens if t.vectors.documents is documents)
        whole = tokens.documents
        start = time.perf_counter()
        index = ragq.build(
            out=folder,
            codec=self.codec,
            first_stage=self.first_stage,
            multi_vector=True,
            embeddings=whole,
            ids=np.arange(len(whole)).astype(str).tolist(),
            metric=metric,
            seed=seed,
        )
        seconds = time.perf_counter() - start

        def search(queries: Floats, k: int) -> NDArray[np.int64]:
            found = index.search_embeddings(tokens.asked(queries), k).ids
            return np.where(found == None, "-1", found).astype(np.int64)  # noqa: E711

        def encode(rows: Floats) -> None:
            index.compressor.encode(whole[: len(rows)])

        facts = index.info()["multi_vector"]
        offset = facts["bytes_per_document"]["offsets"]
        added = facts["vectors_per_passage"] * index.compressor.code_size + index.compressor.first_code_size + offset
        return Built(added, index_bytes(folder), seconds, rate(encode, documents, 256), search)


def token_systems(
    specs: Sequence[str], data: Sequence[tuple[Dataset, Vectors]], embedder: Callable[[], Any]
) -> list[TokenSystem]:
    """Return a system for each spec over the data sets of a sweep, whose tokens `embedder()` embeds once."""
    tokens = [Tokens(dataset, vectors, embedder) for dataset, vectors in data]
    return [TokenSystem(spec, tokens) for spec in dict.fromkeys(specs)]
