"""`TokenView`: one generation of a multi-vector index, searched by MaxSim after a first stage."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors.multivector import MultiVectorCompressor
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.manifest import MANIFEST, Manifest, MultiVectorEntry
from ragq.pipelines.fitting import full_shard
from ragq.pipelines.view import TUNED, Masks, View
from ragq.retrievers.multivector import MultiVectorBlock, search
from ragq.retrievers.structures.base import Probe
from ragq.snapshot import Snapshot
from ragq.token_shards import TokenShard
from ragq.tokens import TokenEmbeddings

__all__ = ["CANDIDATES", "TokenView", "as_tokens", "multi_vector_entry", "open_view"]

CANDIDATES = 100  # of the first stage


def open_view(snapshot: Snapshot) -> View:
    """Return the view of an index of either kind."""
    return View(snapshot) if snapshot.manifest.multi_vector is None else TokenView(snapshot)


def multi_vector_entry(compressor: MultiVectorCompressor) -> MultiVectorEntry:
    """Return what the manifest says of a compressor's first stage."""
    first = compressor.first_codec
    return MultiVectorEntry(compressor.first_stage, None if first is None else str(first.layout))


def as_tokens(x: Any, dim: int, *, name: str = "queries") -> TokenEmbeddings:
    """Return what a caller gives as token embeddings.

    Parameters
    ----------
    x : TokenEmbeddings, array_like of shape (tokens, dim) or (n, tokens, dim), or list of array_like (tokens, dim)
        A two-dimensional array is one query.

    Raises
    ------
    InvalidArgumentError
        Something else, or another dimension.
    """
    if not isinstance(x, TokenEmbeddings):
        if isinstance(x, np.ndarray) and x.ndim == 2:
            x = [x]
        if not isinstance(x, (list, tuple)) and not (isinstance(x, np.ndarray) and x.ndim == 3):
            got = f"an array of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise InvalidArgumentError(
                f"'{name}' of a multi-vector index must be TokenEmbeddings or arrays of shape (tokens, {dim}). "
                f"Got {got}."
            )
        x = TokenEmbeddings.from_list(x, dim)
    if x.dim != dim:
        raise InvalidArgumentError(f"'{name}' must have {dim} dimensions. Got {x.dim}.")
    return x


class TokenView(View):
    """What a search of a multi-vector index reads; see `View`."""

    compressor: MultiVectorCompressor  # type: ignore[assignment]

    def _load(self) -> MultiVectorCompressor:  # type: ignore[override]
        manifest, folder = self.manifest, self.snapshot.folder
        assert manifest.multi_vector is not None
        path = folder / manifest.compressor.name
        try:
            compressor = MultiVectorCompressor.from_spec(manifest.spec, manifest.multi_vector.first_stage)
        except InvalidArgumentError as error:
            raise CorruptIndexError(
                f"{folder / MANIFEST} names a codec that this ragq does not know: {error}"
            ) from None
        try:
            compressor.load_state(self.snapshot.state())
        except (CorruptIndexError, InvalidArgumentError) as error:
            raise CorruptIndexError(f"{path}: {error}") from None
        layouts = (str(compressor.token_codec.layout), multi_vector_entry(compressor))
        if compressor.dim != manifest.dim or layouts != (manifest.layout, manifest.multi_vector):
            raise CorruptIndexError(
                f"{path} is the state of another compressor than {compressor} of {manifest.dim} dimensions."
            )
        return compressor

    @cached_property
    def blocks(self) -> list[MultiVectorBlock]:
        """The codes of all shards, memory-mapped."""
        shards = self.snapshot.shards
        return [MultiVectorBlock(s.block, s.offsets, s.first) for s in shards if isinstance(s, TokenShard)]

    @property
    def shard_rows(self) -> int:
        """Passages of a full shard, by the bytes that a passage has on average."""
        return full_shard(max(1, round(average_bytes(self.manifest))))

    def scan(
        self, x: Any, k: int, masks: Masks, threads: int | None = None, probe: Probe = TUNED
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return MaxSim scores and rows of the best `k` passages for each query, each of shape (n, k).

        The first stage hands `probe.candidates` passages (100) to MaxSim; all with `probe.exact`, or without a first
        stage. A query without tokens finds nothing, and a passage without vectors is never found.
        """
        check_int(k, "k", 1)
        if probe.nprobe is not None or probe.ef_search is not None:
            raise InvalidArgumentError(
                "A multi-vector index has no 'nprobe' or 'ef_search'; 'candidates' is how far its first stage looks."
            )
        queries = as_tokens(x, self.manifest.dim)
        if self.manifest.normalize:
            queries = queries.normalized()
        rows = max(1, sum(shard.rows for shard in self.snapshot.shards))
        candidates = rows if probe.exact else min(probe.candidates or CANDIDATES, rows)
        most = min(k, max(1, self.manifest.rows))
        return search(self.compressor, queries, self.blocks, most, masks, candidates=candidates, threads=threads)

    def tokens(self, rows: NDArray[np.int64]) -> TokenEmbeddings:
        """Return the decoded vectors of rows."""
        parts: list[TokenEmbeddings] = []
        order: list[NDArray[np.int64]] = []
        for number, where, local in self.snapshot.locate(rows):
            shard = self.snapshot.shards[number]
            parts.extend(self.compressor.decode(shard.codes(row, row + 1)) for row in local.tolist())
            order.append(where)
        if not parts:
            return TokenEmbeddings.from_list([], self.manifest.dim)
        return TokenEmbeddings.concatenate(parts).take(np.argsort(np.concatenate(order)))

    def decode(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the mean of the decoded vectors of rows, float32 (n, dim): what stages compare passages by."""
        return self.tokens(rows).means()

    def reconstruct(self, rows: NDArray[np.int64]) -> TokenEmbeddings:
        """Return the decoded vectors of rows."""
        return self.tokens(rows)

    def near(self, rows: NDArray[np.int64], k: int, masks: Masks) -> NDArray[np.int64]:
        """Return the rows that are nearest to some rows by MaxSim, -1 where there are fewer, of shape (n, k)."""
        return self.scan(self.tokens(rows), k, masks)[1]


def average_bytes(manifest: Manifest) -> float:
    """Return the bytes of codes that a passage has on average, the first stage included."""
    shards = [(shard, shard.tokens) for shard in manifest.shards if shard.tokens]
    total = sum(shard.codes.size + (tokens.first.size if tokens.first else 0) for shard, tokens in shards)
    return total / max(1, sum(shard.rows for shard, _ in shards))
