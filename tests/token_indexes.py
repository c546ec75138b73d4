"""What tests of multi-vector indexes share: a model of words that needs no torch, and MaxSim by its definition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

import ragq
from ragq.tokens import TokenEmbeddings

DIM = 8


def word_vectors(texts: Sequence[str]) -> list[np.ndarray]:
    """Embed each word as a vector of small integers, so that their MaxSim is exact in float32; "-" has no vector."""
    made = []
    for text in texts:
        bits = [xxhash.xxh3_64_intdigest(word.encode()) for word in text.split() if word != "-"]
        made.append(np.array([[(b >> 2 * i & 3) % 3 - 1.0 for i in range(DIM)] for b in bits]).reshape(-1, DIM))
    return made


def maxsim(queries: TokenEmbeddings, documents: TokenEmbeddings) -> np.ndarray:
    """Return the sum over a query's tokens of the best inner product; -inf where either has no token."""
    scores = np.full((len(queries), len(documents)), -np.inf)
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            if len(query) and len(document):
                scores[i, j] = (query.astype(float) @ document.astype(float).T).max(axis=1).sum()
    return scores


def tokens(texts: Sequence[str]) -> TokenEmbeddings:
    """Return the token embeddings of texts."""
    return TokenEmbeddings.from_list(word_vectors(texts), DIM)


def make_tokens(path: Path, documents: list[dict], **options: object) -> ragq.Index:
    """Build a small multi-vector index whose documents `word_vectors` embeds."""
    arguments = {"model": word_vectors, "multi_vector": True, "codec": "F32", "metric": "ip"} | options
    return ragq.build(documents, path, **arguments)
