"""The suites of `ragq bench` that time codecs rather than scans: `encode` and `train`, on one processor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import from_spec
from ragq.compressors.base import Compressor
from ragq.eval import peers
from ragq.eval.bench import Bench, Contender, Row

__all__ = ["encoding", "training"]

Floats = NDArray[np.float32]
ENCODERS: dict[str, tuple[Callable[[Floats], peers.Peer], ...]] = {
    "TQ4": (partial(peers.faiss_encoder, "RR{dim},SQtqmse4"),),
    "RBQ4": (partial(peers.faiss_encoder, "RR{dim},RaBitQ4"), partial(peers.rabitqlib_encoder, 4)),
    "SAQ4": (),
}
TRAINED = "PQ{m}x8"
PATIENCE = 60.0  # seconds: training takes some in one round


@contextmanager
def one_processor() -> Iterator[None]:
    """Hold this process to one processor, so that our loops start one thread; to nothing where that cannot be."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def whole(name: str, run: Callable[[Any, int], Any], vectors: Floats) -> Contender:
    """Return a contender that takes all vectors in one call."""
    return Contender(name, lambda batch, k: run(batch[0], k), [vectors])


def encoded(codec: Compressor, vectors: Floats, k: int) -> Any:
    return codec.encode(vectors)


def encoding(bench: Bench) -> Iterator[Row]:
    """Time the encoding of vectors by fitted codecs."""
    data = bench.data(20_000)
    vectors = data[:]
    with one_processor():
        for spec, builders in ENCODERS.items():
            codec = from_spec(spec).fit(data.sample)
            built = bench.peers(*(partial(build, data.sample) for build in builders))
            against = [whole(peer.name, peer.search, vectors) for peer in built]
            yield from bench.compare(
                "encode",
                f"{spec}, {codec.code_size} B",
                whole("ragq", partial(encoded, codec), vectors),
                against,
                k=0,
                rows=len(vectors),
                code_bytes=codec.code_size,
                data=data.name,
            )


def training(bench: Bench) -> Iterator[Row]:
    """Time the training of product codebooks; the case says what they err by, ours first."""
    data = bench.data(20_000)
    vectors = data[:]
    m = vectors.shape[1] // 8
    with one_processor():
        codec = from_spec(TRAINED.format(m=m)).fit(vectors)
        built = bench.peers(partial(peers.faiss_pq_trainer, m))
        theirs: list[Any] = [peer.search(vectors, 0) for peer in built]
        decoded = [codec.decode(codec.encode(vectors)), *(pq.decode(pq.compute_codes(vectors)) for pq in theirs)]
        errors = " / ".join(f"{np.square(vectors - each).sum(axis=1).mean():.4f}" for each in decoded)
        label = f"{codec.spec}, squared error {errors}"
        against = [whole(peer.name, peer.search, vectors) for peer in built]
        ours = whole("ragq", lambda x, k: from_spec(codec.spec).fit(x), vectors)
        facts: dict[str, Any] = {"rows": len(vectors), "code_bytes": codec.code_size, "data": data.name}
        yield from bench.compare("train", label, ours, against, k=0, patience=PATIENCE, **facts)
