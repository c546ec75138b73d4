"""Where passages and their embeddings come from: text and a model, or ready embeddings.

A feed numbers its passages, cuts them into shards at document boundaries, and gives any range of them again with the
same bytes: a range that starts at a shard is embedded in the same batches whether or not the run was interrupted.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragq.checks import finite_rows
from ragq.embedders import Embedder
from ragq.errors import InvalidArgumentError
from ragq.pipelines.progress import Progress
from ragq.pipelines.readers import Embeddings, Reader
from ragq.pipelines.spool import Spool
from ragq.storage import storage_errors
from ragq.types import Document, Passage

__all__ = ["Feed", "ReadyFeed", "TextFeed", "check_rows"]

Floats = NDArray[np.float32]
EMBED_ROWS = 1024  # passages handed to the model at once; it sorts them by length, so more means less padding
READ_ROWS = 8192


class Feed(ABC):
    """Passages with embeddings, in a fixed order.

    Attributes
    ----------
    cuts : list of int
        Passage numbers at which shards end; the last is the number of passages.
    dim : int
    """

    cuts: list[int]
    dim: int

    @property
    def rows(self) -> int:
        """Number of passages."""
        return self.cuts[-1] if self.cuts else 0

    @abstractmethod
    def sample(self, rows: NDArray[np.int64], progress: Progress) -> Floats:
        """Return the embeddings of some passages, given in ascending order; kept, so that `read` has them."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[tuple[list[Passage], Floats]]:
        """Yield passages `start` to `stop` with their embeddings, in batches."""


def check_rows(x: Floats, passages: Sequence[Passage], dim: int) -> Floats:
    """Return embeddings of shape (n, dim) that are finite, or name the document whose embedding is not."""
    if x.shape != (len(passages), dim):
        raise InvalidArgumentError(f"Embeddings must have {dim} dimensions. Got shape {x.shape}.")
    finite = finite_rows(x)
    if not finite.all():
        bad = passages[int(np.flatnonzero(~finite)[0])]
        raise InvalidArgumentError(f"The embedding of '{bad.document_id}' holds NaN or infinity.")
    return x


class TextFeed(Feed):
    """Documents cut into passages, written to a scratch file, embedded by a model.

    The scratch file makes the number of passages known before the first one is embedded, lets a one-shot iterable be
    read twice, and lets an interrupted run go on without reading the source again.

    Parameters
    ----------
    spool : Spool
        Where the passages are.
    embedder : Embedder
    sample_path : Path
        File for the embeddings of the sample.
    """

    def __init__(self, spool: Spool, embedder: Embedder, sample_path: Path) -> None:
        self.spool, self.cuts = spool, spool.cuts
        self.embedder, self.dim = embedder, embedder.dim
        self._sample_path = sample_path
        self.know(np.empty(0, np.int64), np.empty((0, self.dim), np.float32))

    def know(self, rows: NDArray[np.int64], vectors: Floats) -> None:
        """Take the embeddings of some passages, in ascending order, as known."""
        self.sampled, self.vectors = rows, vectors

    def sample(
        self,
        rows: NDArray[np.int64],
        progress: Progress,
        embed: Callable[[list[NDArray[np.int64]]], Iterator[Floats]] | None = None,
    ) -> Floats:
        """Return the embeddings of some passages, given in ascending order; kept, so that `read` has them.

        Parameters
        ----------
        embed : callable, optional
            Embeds batches of row numbers, in their order, in place of this feed's own embedder.
        """
        done = 0
        if self._sample_path.exists():  # an interrupted run: whole batches of it are used again
            done = self._sample_path.stat().st_size // (4 * self.dim * EMBED_ROWS) * EMBED_ROWS
        with storage_errors(self._sample_path, "write"), self._sample_path.open("r+b" if done else "w+b") as file:
            file.truncate(done * 4 * self.dim)
            file.seek(0, 2)
            batches = [rows[first : first + EMBED_ROWS] for first in range(done, len(rows), EMBED_ROWS)]
            progress("sample", done, len(rows))
            for x in (embed or self.embed_batches)(batches):
                file.write(x.tobytes())
                file.flush()
                os.fsync(file.fileno())
                progress("sample", done := done + len(x), len(rows))
        if len(rows):
            self.know(rows, np.memmap(self._sample_path, np.float32, "r", shape=(len(rows), self.dim)))
        return self.vectors

    def embed_batches(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[Floats]:
        """Yield the embeddings of batches of passages, given by their numbers."""
        for rows in batches:
            yield self._embed(list(self.spool.passages(rows)))

    def _embed(self, passages: list[Passage]) -> Floats:
        return check_rows(self.embedder.encode_documents([p.embedded_text for p in passages]), passages, self.dim)

    def read(self, start: int, stop: int) -> Iterator[tuple[list[Passage], Floats]]:
        for first in range(start, stop, EMBED_ROWS):
            rows = np.arange(first, min(first + EMBED_ROWS, stop))
            batch = list(self.spool.passages(rows))
            at = np.searchsorted(self.sampled, rows)
            known = np.zeros(len(batch), bool)
            inside = at < len(self.sampled)
            known[inside] = self.sampled[at[inside]] == rows[inside]
            x = np.empty((len(batch), self.dim), np.float32)
            x[known] = self.vectors[at[known]]
            if not known.all():
                x[~known] = self._embed([p for p, k in zip(batch, known, strict=True) if not k])
            yield batch, x


class ReadyFeed(Feed):
    """Documents whose embeddings were computed elsewhere, one each.

    Parameters
    ----------
    embeddings : Embeddings
    reader : Reader, optional
        The documents, in the order of the rows; without it a document is its id alone.
    shard_rows : int
    """

    def __init__(self, embeddings: Embeddings, reader: Reader | None, shard_rows: int) -> None:
        self._embeddings, self._reader = embeddings, reader
        rows, self.dim = embeddings.shape
        self.cuts = [*range(shard_rows, rows, shard_rows), rows] if rows else []
        self._position = -1
        self._documents: Iterator[Document] = iter(())

    def sample(self, rows: NDArray[np.int64], progress: Progress) -> Floats:
        progress("sample", 0, len(rows))
        x = self._embeddings.take(rows)
        if not finite_rows(x).all():
            bad = int(rows[np.flatnonzero(~finite_rows(x))[0]])
            passage = self._passages(bad, 1)
            check_rows(self._embeddings.rows(bad, bad + 1), passage, self.dim)
        progress("sample", len(rows), len(rows))
        return x

    def _passages(self, start: int, count: int) -> list[Passage]:
        if 0 <= self._position < start:  # pass over what another worker has
            passed = sum(1 for _ in islice(self._documents, start - self._position))
            self._position += passed
        if start != self._position:  # else the documents go on where the last batch ended
            self._documents = self._embeddings.documents(start, self._reader and self._reader.documents(start))
        batch = [Passage(d.id, 0, d.text, d.title, d.metadata, d.source) for d in islice(self._documents, count)]
        self._position = start + len(batch)
        if len(batch) < count:
            raise InvalidArgumentError(
                f"There are {self.rows:,} embeddings but only {self._position:,} documents; give one row a document."
            )
        return batch

    def read(self, start: int, stop: int) -> Iterator[tuple[list[Passage], Floats]]:
        for first in range(start, stop, READ_ROWS):
            last = min(first + READ_ROWS, stop)
            passages = self._passages(first, last - first)
            yield passages, check_rows(self._embeddings.rows(first, last), passages, self.dim)
        self.finished(stop)

    def finished(self, stop: int) -> None:
        """Raise `InvalidArgumentError` when documents are left behind the last row."""
        if stop == self.rows and next(self._documents, None) is not None:
            raise InvalidArgumentError(
                f"There are more documents than the {self.rows:,} embeddings; give one row a document."
            )
