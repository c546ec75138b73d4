"""The feeds of a multi-vector index: passages with the embeddings of all their tokens, a few megabytes at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import finite_rows
from ragq.errors import InvalidArgumentError
from ragq.pipelines.feeds import EMBED_ROWS, READ_ROWS, ReadyFeed, TextFeed
from ragq.pipelines.progress import Progress
from ragq.pipelines.readers import Reader
from ragq.pipelines.readers.tokens import ReadyTokens
from ragq.storage import storage_errors
from ragq.tokens import TokenEmbeddings
from ragq.types import Passage

__all__ = ["SAMPLE_BYTES", "ReadyTokenFeed", "TokenFeed", "batch_passages", "check_tokens", "sampled_passages"]

BATCH_BYTES = 48 << 20  # of float32 token embeddings that are made or read at once
SAMPLE_BYTES = 512 << 20  # and of those that a compressor is fitted on
UNKNOWN_TOKENS = 256  # a passage, where nobody knows what the model reads


def tokens_of(embedder: Any) -> int:
    """Return the most tokens that a passage of a model has."""
    return int(embedder.max_tokens or UNKNOWN_TOKENS)


def batch_passages(embedder: Any) -> int:
    """Return how many passages are embedded at once."""
    return max(1, min(EMBED_ROWS, BATCH_BYTES // (4 * embedder.dim * tokens_of(embedder))))


def sampled_passages(bytes_each: float, rows: int) -> int:
    """Return how many passages of a size fit into the sample, `rows` at most."""
    return max(1, min(rows, int(SAMPLE_BYTES / max(1.0, bytes_each))))


def check_tokens(tokens: TokenEmbeddings, passages: Sequence[Passage], dim: int) -> TokenEmbeddings:
    """Return token embeddings of as many passages and dimensions, or name the document that is wrong."""
    if len(tokens) != len(passages) or tokens.dim != dim:
        raise InvalidArgumentError(
            f"Token embeddings must be of {len(passages)} passages with {dim} dimensions. "
            f"Got {len(tokens)} with {tokens.dim}."
        )
    finite = finite_rows(tokens.values)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        bad = passages[int(np.searchsorted(tokens.offsets, row, "right")) - 1]
        raise InvalidArgumentError(f"The token embeddings of '{bad.document_id}' hold NaN or infinity.")
    return tokens


class TokenFeed(TextFeed):
    """Passages whose tokens a model embeds; see `TextFeed`. Beside the sample's values lies a file of their counts."""

    tokens: TokenEmbeddings  # of the sample

    @property
    def bytes_each(self) -> float:
        """Bytes of the float32 token embeddings of a passage, at most."""
        return 4.0 * self.dim * tokens_of(self.embedder)

    def sample(self, rows: NDArray[np.int64], progress: Progress, embed: Any = None) -> TokenEmbeddings:  # type: ignore[override]
        path, step = self._sample_path, batch_passages(self.embedder)
        beside = path.with_suffix(".counts")
        counts = self._kept(step, len(rows))
        done, values = len(counts), int(counts.sum())
        with (
            storage_errors(path, "write"),
            path.open("r+b" if done else "w+b") as file,
            beside.open("r+b" if done else "w+b") as numbers,
        ):
            file.truncate(values * 4 * self.dim)
            numbers.truncate(8 * done)
            file.seek(0, 2)
            numbers.seek(0, 2)
            for first in range(done, len(rows), step):
                progress("sample", first, len(rows))
                made = self._embed(list(self.spool.passages(rows[first : first + step])))
                for part, data in ((file, made.values), (numbers, made.counts)):  # counts tell that values are there
                    part.write(data.tobytes())
                    part.flush()
                    os.fsync(part.fileno())
        progress("sample", len(rows), len(rows))
        self._open_sample(rows)
        return self.tokens

    def _kept(self, step: int, wanted: int) -> NDArray[np.int64]:
        """Return the counts of what an interrupted run has sampled: all that is wanted, or whole batches of it."""
        path, beside = self._sample_path, self._sample_path.with_suffix(".counts")
        if not path.exists() or not beside.exists():
            return np.empty(0, np.int64)
        there = beside.stat().st_size // 8
        whole = wanted if there >= wanted else there // step * step
        counts = np.fromfile(beside, np.int64, whole)
        return counts if int(counts.sum()) * 4 * self.dim <= path.stat().st_size else counts[:0]

    def _open_sample(self, rows: NDArray[np.int64]) -> None:
        counts = np.fromfile(self._sample_path.with_suffix(".counts"), np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        shape = (int(offsets[-1]), self.dim)
        values = np.memmap(self._sample_path, np.float32, "r", shape=shape) if offsets[-1] else np.empty(shape, "f4")
        self.sampled, self.tokens = rows, TokenEmbeddings(values, offsets)

    def _embed(self, passages: list[Passage]) -> Any:
        made: Any = self.embedder.encode_documents([p.embedded_text for p in passages])
        return check_tokens(made, passages, self.dim)

    def read(self, start: int, stop: int) -> Iterator[tuple[list[Passage], Any]]:
        step = batch_passages(self.embedder)
        for first in range(start, stop, step):
            rows = np.arange(first, min(first + step, stop))
            batch = list(self.spool.passages(rows))
            known = np.isin(rows, self.sampled)
            parts: list[TokenEmbeddings] = []
            if known.any():
                parts.append(self.tokens.take(np.searchsorted(self.sampled, rows[known])))
            if not known.all():
                parts.append(self._embed([p for p, k in zip(batch, known, strict=True) if not k]))
            joined = TokenEmbeddings.concatenate(parts)
            order = np.concatenate([np.flatnonzero(known), np.flatnonzero(~known)])
            yield batch, joined if len(parts) == 1 else joined.take(np.argsort(order))


class ReadyTokenFeed(ReadyFeed):
    """Documents whose token embeddings were computed elsewhere; see `ReadyFeed`.

    Parameters
    ----------
    embeddings : ReadyTokens
    reader : Reader, optional
    shard_rows : int
    sizes : (int, int)
        Bytes of a vector's code and of a document's first-stage code, which say how many documents a shard's writer can
        hold.
    limit : int
        Bytes that it may hold.
    """

    def __init__(
        self,
        embeddings: ReadyTokens,
        reader: Reader | None,
        shard_rows: int,
        sizes: tuple[int, int] = (0, 0),
        limit: int = 1,
    ) -> None:
        super().__init__(embeddings, reader, shard_rows)
        self._ready = embeddings
        vector, first = sizes
        size = embeddings.offsets * vector + np.arange(len(embeddings) + 1) * first
        self.cuts, start = [], 0
        while start < len(embeddings):
            start = min(
                start + shard_rows, max(start + 1, int(np.searchsorted(size, size[start] + limit, "right")) - 1)
            )
            start = min(start, len(embeddings))
            self.cuts.append(start)

    @property
    def bytes_each(self) -> float:
        """Bytes of the float32 token embeddings of a document, on average."""
        return 4.0 * self.dim * int(self._ready.offsets[-1]) / max(1, self.rows)

    def sample(self, rows: NDArray[np.int64], progress: Progress) -> Any:
        progress("sample", 0, len(rows))
        tokens = self._ready.take_tokens(rows)
        finite = finite_rows(tokens.values)
        if not finite.all():  # name the document
            bad = int(rows[np.searchsorted(tokens.offsets, int(np.flatnonzero(~finite)[0]), "right") - 1])
            check_tokens(self._ready.tokens(bad, bad + 1), self._passages(bad, 1), self.dim)
        progress("sample", len(rows), len(rows))
        return tokens

    def read(self, start: int, stop: int) -> Iterator[tuple[list[Passage], Any]]:
        offsets, most = self._ready.offsets, max(1, BATCH_BYTES // (4 * self.dim))
        first = start
        while first < stop:
            last = int(np.searchsorted(offsets, offsets[first] + most, "right")) - 1
            last = min(max(last, first + 1), first + READ_ROWS, stop)
            passages = self._passages(first, last - first)
            yield passages, check_tokens(self._ready.tokens(first, last), passages, self.dim)
            first = last
        self.finished(stop)
