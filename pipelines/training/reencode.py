"""Another codec for an index that exists: new codes in new shards; no text is read anew and nothing is embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_embeddings, normalized
from ragq.compressors import Compressor
from ragq.errors import InvalidArgumentError
from ragq.pipelines.changes import ShardSeries, live_passages
from ragq.pipelines.codecs import open_codec
from ragq.pipelines.fitting import encode, full_shard, save_compressor
from ragq.pipelines.progress import Progress, silent
from ragq.pipelines.readers import open_embeddings
from ragq.pipelines.training.vectors import Vectors

if TYPE_CHECKING:
    from ragq.pipelines.index import Index

__all__ = ["finest_bits", "index_vectors", "reencode"]

SAMPLE = 32_768  # rows that a spec is fitted on
FINE = 7.5  # bits a dimension from which decoded codes are as good as embeddings


def finest_bits(compressor: Compressor) -> float:
    """Return the bits a dimension that an index keeps of its embeddings."""
    return 8 * compressor.code_size / compressor.dim


def refuse_multi_vector(index: Index) -> None:
    """Raise `InvalidArgumentError` for an index that keeps the tokens of its passages."""
    if index.manifest.multi_vector is not None:
        raise InvalidArgumentError(
            f"{index.path} is a multi-vector index. Learned codecs are for one vector a passage."
        )


def stored_embeddings(index: Index) -> Iterator[NDArray[np.float32]]:
    """Yield the decoded embeddings of what is not deleted, in the order of the rows.

    Raises
    ------
    InvalidArgumentError
        The codes are too coarse to stand for embeddings.
    """
    if index.manifest.multi_vector is not None:
        raise InvalidArgumentError(f"{index.path} keeps several vectors a passage; give an index that keeps one.")
    if finest_bits(index.compressor) < FINE:
        raise InvalidArgumentError(
            f"{index.path} keeps only {finest_bits(index.compressor):.1f} bits a dimension ({index.manifest.spec}), "
            "too few to train or encode from. Give the embeddings: --embeddings x.npy, one row a passage."
        )
    for shard in index._view.snapshot.shards:
        for start in range(0, shard.rows, 8192):
            stop = min(start + 8192, shard.rows)
            kept = np.ones(stop - start, bool) if shard.deleted is None else ~shard.deleted[start:stop]
            yield index.compressor.decode(shard.block.codes(start, stop)[kept])


def index_vectors(index: Index, embeddings: Any, scratch: Path) -> Vectors:
    """Return the embeddings of an index's passages: those given, or the ones that its codes decode to."""
    refuse_multi_vector(index)
    normalize = index.manifest.normalize
    if embeddings is not None:
        vectors = Vectors.open(embeddings, normalize, scratch)
        if len(vectors) != index.manifest.rows or vectors.dim != index.manifest.dim:
            raise InvalidArgumentError(
                f"{index.path} has {index.manifest.rows:,} passages of {index.manifest.dim} dimensions. "
                f"The embeddings are {len(vectors):,} x {vectors.dim}."
            )
        return vectors
    shape = (index.manifest.rows, index.manifest.dim)
    return Vectors.spool(stored_embeddings(index), shape, normalize, scratch)


def reencode(index: Index, codec: str, embeddings: Any = None, *, seed: int = 0, progress: Progress = silent) -> None:
    """Give an index another codec; readers see the old one until the new codes are whole.

    Parameters
    ----------
    index : Index
        Opened with ``mode="w"``. A structure that it has is dropped: `Index.restructure` builds a new one.
    codec : str
        The folder of a trained codec, or a spec, which is then fitted on the embeddings.
    embeddings : path or ndarray, optional
        Ready embeddings, one row a passage that is not deleted, in order. Without them those that the index keeps are
        used, if its codec is fine enough (8 bits a dimension).
    seed : int
        Of the sample that a spec is fitted on.
    progress : callable

    Raises
    ------
    InvalidArgumentError
        Codes too coarse, or embeddings or a codec that do not fit the index.
    """
    refuse_multi_vector(index)
    compressor = open_codec(codec)
    with index._writing() as transaction:
        manifest = index.manifest
        blocks = blocks_of(index, embeddings)
        if compressor.dim_ is None:
            rows_to_fit = check_embeddings(sample(blocks(), manifest.rows, seed), name="embeddings")
            compressor.fit(normalized(rows_to_fit) if manifest.normalize else rows_to_fit, seed=seed)
        if compressor.dim != manifest.dim:
            raise InvalidArgumentError(f"{codec} is for {compressor.dim} dimensions. {index.path} has {manifest.dim}.")
        saved = save_compressor(index._view.snapshot.folder, compressor)
        transaction.manifest = replace(manifest, layout=str(compressor.layout))
        rows, done = Rows(blocks()), 0
        with ShardSeries(transaction, full_shard(compressor.code_size)) as series:
            for shard in index._view.snapshot.shards:
                for passages, _ in live_passages(shard):
                    x = check_embeddings(rows.take(len(passages)), name="embeddings")
                    series.add(passages, encode(compressor, x, manifest.normalize))
                    progress("encode", done := done + len(passages), manifest.rows)
            entries = tuple(series.finish())
        transaction.manifest = replace(
            transaction.manifest, spec=compressor.spec, compressor=saved, structure=None, shards=entries
        )
        transaction.commit()
        index.refresh()


def blocks_of(index: Index, embeddings: Any) -> Callable[[], Iterator[NDArray[np.float32]]]:
    """Return what yields the embeddings of an index's live passages, from the first on at each call."""
    if embeddings is None:
        if finest_bits(index.compressor) < FINE:
            next(stored_embeddings(index))  # raises
        return lambda: stored_embeddings(index)
    opened = open_embeddings(embeddings, dim=index.manifest.dim)
    if len(opened) != index.manifest.rows:
        raise InvalidArgumentError(
            f"{index.path} has {index.manifest.rows:,} passages. There are {len(opened):,} embeddings."
        )
    return opened.batches


def sample(blocks: Iterator[NDArray[np.float32]], total: int, seed: int) -> NDArray[np.float32]:
    """Return `SAMPLE` random rows of `total`, in their order."""
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(SAMPLE, total), replace=False))
    start, parts = 0, []
    for block in blocks:
        parts.append(block[chosen[(chosen >= start) & (chosen < start + len(block))] - start])
        start += len(block)
    return np.concatenate(parts)


class Rows:
    """Rows out of blocks, as many at a time as are asked for."""

    def __init__(self, blocks: Iterator[NDArray[np.float32]]) -> None:
        self._blocks = blocks
        self._held: NDArray[np.float32] | None = None

    def take(self, count: int) -> NDArray[np.float32]:
        """Return the next `count` rows."""
        parts = [] if self._held is None else [self._held]
        while sum(map(len, parts)) < count:
            parts.append(next(self._blocks))
        whole = np.concatenate(parts)
        self._held = whole[count:]
        return whole[:count]
