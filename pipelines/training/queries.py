"""Queries for whoever has none: made from the documents, or from few real ones.

All but `transplanted` are texts, embedded as queries (with the model's query prompt), since training needs queries that
lie where real ones lie:

titles, sentences    of the documents
generated            by a text2text model that was trained to ask (GenQ; Thakur et al., "BEIR", 2021)
documents            the documents' own embeddings: the last resort, which often hurts
transplanted         real queries' offsets from the document they look for, put on other documents
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import normalized
from ragq.errors import InvalidArgumentError
from ragq.pipelines.training.vectors import Vectors
from ragq.types import Document

__all__ = ["KINDS", "Generator", "distance", "sentences", "titles", "transplanted"]

Floats = NDArray[np.float32]
KINDS = ("titles", "sentences", "generated", "transplanted", "documents")
SENTENCE = re.compile(r"(?<=[.!?])\s+")
FEWEST_WORDS = 5  # of a sentence; shorter ones say little
GENERATED_TOKENS = 64


def titles(documents: Iterable[Document]) -> list[str]:
    """Return the titles of the documents that have one."""
    return [document.title.strip() for document in documents if document.title.strip()]


def sentences(documents: Iterable[Document], each: int, rng: np.random.Generator) -> list[str]:
    """Return up to `each` random sentences of every document, in their order."""
    found: list[str] = []
    for document in documents:
        parts = [part.strip() for part in SENTENCE.split(document.text) if len(part.split()) >= FEWEST_WORDS]
        if len(parts) > each:
            parts = [parts[i] for i in np.sort(rng.choice(len(parts), each, replace=False))]
        found += parts
    return found


def transplanted(vectors: Vectors, queries: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Return made-up queries ``x_i + (q_j - x_t(j))`` of unit length, for random documents `i` and real queries `j`.

    ``t(j)`` is the document that is nearest to the query `j`. Worth it below about 500 real queries.

    Parameters
    ----------
    vectors : Vectors
    queries : ndarray of float32, shape (n, dim)
        Real ones, at least one.
    count : int
    rng : numpy.random.Generator
    """
    if not len(queries):
        raise InvalidArgumentError("Queries are transplanted from real ones: give --queries.")
    nearest = vectors.search(queries, 1)[1][:, 0]
    offsets = queries - vectors.take(nearest)
    rows = np.sort(rng.integers(0, len(vectors), count))
    return normalized(vectors.take(rows) + offsets[rng.integers(0, len(queries), count)])


def distance(made: Floats, real: Floats, documents: Floats) -> tuple[float, float]:
    """Return how far made queries, and documents, lie from real queries: the distances of the means.

    Queries that lie farther from the real ones than the documents do teach the wrong thing.
    """
    centre = real.mean(axis=0)
    made_far, documents_far = (float(np.linalg.norm(each.mean(axis=0) - centre)) for each in (made, documents))
    return made_far, documents_far


class Generator:
    """Questions that a text2text model asks about passages.

    Parameters
    ----------
    model : str or Path or transformers model
        Name or folder of a sequence-to-sequence model, for example BeIR/query-gen-msmarco-t5-base-v1.
    tokenizer : transformers tokenizer, optional
        With a model object.
    batch_size : int
        Passages of one forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any = None, batch_size: int = 16) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        if isinstance(model, str) or hasattr(model, "__fspath__"):
            try:
                tokenizer = AutoTokenizer.from_pretrained(model)  # nosec B615
                model = AutoModelForSeq2SeqLM.from_pretrained(model)  # nosec B615
            except (OSError, ValueError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise InvalidArgumentError(
                    f"The generator '{model}' cannot be loaded: {reason} Give the folder of a text2text model, "
                    "or allow the network."
                ) from None
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size

    def ask(self, passages: Sequence[str], each: int, seed: int) -> list[str]:
        """Return `each` questions a passage, sampled from the ten likeliest tokens; the same for the same seed."""
        import torch

        found: list[str] = []
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            for start in range(0, len(passages), self.batch_size):
                batch = list(passages[start : start + self.batch_size])
                inputs = self.tokenizer(batch, return_tensors="pt", truncation=True, padding=True, max_length=350)
                tokens = self.model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    do_sample=True,
                    top_k=10,
                    max_new_tokens=GENERATED_TOKENS,
                    num_return_sequences=each,
                )
                found += self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in found if text.strip()]
