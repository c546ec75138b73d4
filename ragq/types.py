"""The records that pass between the rooms: documents in, passages through, hits and results out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Document", "Hit", "Metadata", "Passage", "Results", "passage_text"]

Metadata = Mapping[str, Any]
"""A JSON object: string keys; strings, numbers, booleans, None, lists and objects as values."""


@dataclass(frozen=True, slots=True)
class Document:
    """One record of the user.

    Attributes
    ----------
    id : str
        The user's id; unique in an index, adding it again replaces the document.
    text : str
        The body.
    title : str
        Embedded in front of the text of every passage; empty when there is none.
    metadata : Mapping
        A JSON object, for filters.
    source : str
        Where the record came from, for messages and the index: a path, or ``path:line``.
    """

    id: str
    text: str
    title: str = ""
    metadata: Metadata = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """The unit that is embedded: a document, or one of the pieces it was cut into.

    Attributes
    ----------
    document_id : str
        Id of the document it belongs to.
    number : int
        Position among the passages of its document, from 0.
    text : str
        Exact substring of the document's text: ``document.text[start : start + len(text)]``.
    title, metadata, source
        Those of the document.
    start : int
        Character offset of `text` in the document's text.
    """

    document_id: str
    number: int
    text: str
    title: str = ""
    metadata: Metadata = field(default_factory=dict)
    source: str = ""
    start: int = 0

    @property
    def id(self) -> str:
        """``<document id>#<number>``."""
        return f"{self.document_id}#{self.number}"

    @property
    def embedded_text(self) -> str:
        """What the model reads: the title, a space, and the text; the text alone without a title."""
        return passage_text(self.title, self.text)


def passage_text(title: str, text: str) -> str:
    """Return the text that is embedded: ``title + " " + text`` as BEIR does, the text alone without a title."""
    return f"{title} {text}" if title else text


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer of a search.

    Attributes
    ----------
    id : str
        Id of the passage, ``<document id>#<number>``.
    score : float
        In the metric's own units; higher is better (``l2`` is the negated squared distance).
    text, title, metadata
        Of the passage.
    document_id : str
        The user's id.
    """

    id: str
    score: float
    text: str
    title: str
    metadata: Metadata
    document_id: str


@dataclass(frozen=True, slots=True)
class Results:
    """Answers of a batch of queries as arrays; a row is padded where it has fewer than k hits.

    Attributes
    ----------
    ids : ndarray of object, shape (n, k)
        The user's document ids; None in padding.
    scores : ndarray of float32, shape (n, k)
        In the metric's own units, highest first; -inf in padding.
    passages : ndarray of int, shape (n, k)
        Number of the passage inside its document; -1 in padding.
    """

    ids: NDArray[np.object_]
    scores: NDArray[np.float32]
    passages: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.ids)

    def __iter__(self) -> Iterator[list[tuple[str, float]]]:
        """Yield, per query, its (document id, score) pairs without padding."""
        for ids, scores in zip(self.ids, self.scores, strict=True):
            yield [(i, float(s)) for i, s in zip(ids, scores, strict=True) if i is not None]
