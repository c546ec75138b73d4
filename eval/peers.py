"""Other libraries, each behind one function: build from the same vectors or codes, search with one thread.

A builder returns a `Peer`, whose ``search(queries, k)`` gives row numbers ``(n_queries, k)``. It raises
`MissingExtraError` when its library is not installed; `ragq.eval.bench` then leaves it out and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.errors import missing_extra

__all__ = [
    "Peer",
    "faiss_binary",
    "faiss_encoder",
    "faiss_fast_scan",
    "faiss_pq",
    "faiss_pq_trainer",
    "faiss_scalar",
    "numkong_dense",
    "numkong_hamming",
    "rabitqlib_encoder",
    "rabitqlib_flat",
    "turbovec_flat",
    "usearch_hamming",
]

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Search = Callable[[Any, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Peer:
    """A library's index that holds the same rows.

    Attributes
    ----------
    name : str
        Library and index type.
    search : callable
        ``search(queries, k) -> rows``: floats, or packed bits for the Hamming peers.
    """

    name: str
    search: Search


def load(library: str) -> Any:
    """Import a library, or raise `MissingExtraError` with the line that installs it."""
    try:
        module = import_module(library)
    except ImportError as error:
        raise missing_extra(library, "bench") from error
    if library == "faiss":
        module.omp_set_num_threads(1)
    return module


def faiss_binary(bits: Codes) -> Peer:
    """``IndexBinaryFlat`` over packed bits (n, bytes)."""
    faiss = load("faiss")
    index = faiss.IndexBinaryFlat(8 * bits.shape[1])
    index.add(bits)
    return Peer("faiss IndexBinaryFlat", lambda queries, k: index.search(queries, k)[1])


def usearch_hamming(bits: Codes) -> Peer:
    """Usearch's exact search over packed bits."""
    usearch = load("usearch.index")
    kind = {"metric": usearch.MetricKind.Hamming, "dtype": usearch.ScalarKind.B1, "exact": True, "threads": 1}

    def search(queries: Codes, k: int) -> NDArray[np.int64]:
        found = usearch.search(bits, queries, k, **kind)
        return np.asarray(found.keys, np.int64).reshape(len(queries), k)

    return Peer("usearch exact b1", search)


def faiss_quantizer(books: Floats, codes: Codes) -> Any:
    """Return an ``IndexPQ`` of given codebooks (m, entries, dim / m) and row codes: both sides scan the same."""
    faiss = load("faiss")
    m, entries, width = books.shape
    index = faiss.IndexPQ(m * width, m, entries.bit_length() - 1, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(np.ascontiguousarray(books).ravel(), index.pq.centroids)
    index.is_trained = True
    index.add_sa_codes(codes)
    return index


def faiss_pq(books: Floats, codes: Codes) -> Peer:
    """``IndexPQ`` over given codes."""
    index = faiss_quantizer(books, codes)
    return Peer("faiss IndexPQ", lambda queries, k: index.search(queries, k)[1])


def faiss_fast_scan(books: Floats, codes: Codes) -> Peer:
    """``IndexPQFastScan`` over given 4-bit codes, two a byte."""
    source = faiss_quantizer(books, codes)
    index = load("faiss").IndexPQFastScan(source)
    return Peer("faiss IndexPQFastScan", lambda queries, k: index.search(queries, k)[1])


def faiss_scalar(kind: str, sample: Floats, chunks: Iterable[Floats]) -> Peer:
    """``IndexScalarQuantizer``: ``SQ8``, ``SQ4`` or ``SQfp16``, its ranges learned from `sample`."""
    faiss = load("faiss")
    index = faiss.index_factory(sample.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(sample)
    for chunk in chunks:
        index.add(chunk)
    return Peer(f"faiss {kind}", lambda queries, k: index.search(queries, k)[1])


def faiss_encoder(kind: str, sample: Floats) -> Peer:
    """``sa_encode`` of an index of faiss's factory, trained on `sample`; for ``{dim}`` stands the dimension."""
    faiss = load("faiss")
    spec = kind.format(dim=sample.shape[1])
    index = faiss.index_factory(sample.shape[1], spec, faiss.METRIC_INNER_PRODUCT)
    index.train(sample)
    return Peer(f"faiss {spec}", lambda vectors, k: index.sa_encode(vectors))


def faiss_pq_trainer(m: int) -> Peer:
    """``ProductQuantizer.train`` of 8 bits, which uses all rows up to 65,536. Its ``search`` returns the quantizer."""
    faiss = load("faiss")

    def train(vectors: Floats, k: int) -> Any:
        quantizer = faiss.ProductQuantizer(vectors.shape[1], m, 8)
        quantizer.train(vectors)
        return quantizer

    return Peer("faiss ProductQuantizer", train)


def rabitqlib_encoder(bits: int, sample: Floats) -> Peer:
    """RaBitQLib encodes where it builds: rotation, codes and factors of all vectors, in one cluster."""

    def encode(vectors: Floats, k: int) -> Any:
        return rabitqlib_flat(bits, vectors)

    load("rabitqlib")
    return Peer(f"rabitqlib IVF1, {bits} bits", encode)


def turbovec_flat(bits: int, dim: int, chunks: Iterable[Floats]) -> Peer:
    """Turbovec's flat index; its threads are rayon's (``RAYON_NUM_THREADS``)."""
    index = load("turbovec").TurboQuantIndex(dim, bits)
    for chunk in chunks:
        index.add(chunk)
    return Peer(f"turbovec {bits}-bit", lambda queries, k: np.asarray(index.search(queries, k)[1], np.int64))


def rabitqlib_flat(bits: int, vectors: Floats) -> Peer:
    """RaBitQLib has no flat index: its IVF with one cluster, centred on the mean, is a scan."""
    index = load("rabitqlib").IvfIndex(vectors.shape[1], len(vectors), 1, bits, metric="ip")
    centre = vectors.mean(axis=0, keepdims=True)
    index.build(vectors, centre, np.zeros(len(vectors), np.uint32), num_threads=1)
    return Peer(
        f"rabitqlib IVF1, {bits} bits", lambda queries, k: ordered(index.search(queries, k, nprobe=1, num_threads=1))
    )


def ordered(found: tuple[Any, ...]) -> NDArray[np.int64]:
    """Return the row numbers of an answer of rows and scores in either order."""
    rows = next(part for part in found if np.issubdtype(np.asarray(part).dtype, np.integer))
    return np.asarray(rows, np.int64)


def numkong_hamming(bits: Codes) -> Peer:
    """Numkong's distances to all rows, then NumPy's selection: it has kernels, not an index."""
    numkong = load("numkong")
    packed = numkong.hammings_pack(bits)

    def search(queries: Codes, k: int) -> NDArray[np.int64]:
        return np.stack([smallest(np.asarray(numkong.hammings_packed(query[None], packed))[0], k) for query in queries])

    return Peer("numkong hammings + argpartition", search)


def numkong_dense(codes: NDArray[np.int8], encode: Callable[[Floats], NDArray[np.int8]]) -> Peer:
    """Numkong's dot products of int8 rows (n, dim) and int8 queries, then NumPy's selection.

    `encode` makes the queries int8: its kernels take both sides in one type.
    """
    numkong = load("numkong")
    packed = numkong.dots_pack(codes)

    def search(queries: Floats, k: int) -> NDArray[np.int64]:
        scores = (np.asarray(numkong.dots_packed(encode(query[None]), packed))[0] for query in queries)
        return np.stack([smallest(-row.astype(np.float32), k) for row in scores])

    return Peer("numkong dots i8 + argpartition", search)


def smallest(values: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the positions of the `k` smallest values, in order."""
    k = min(k, len(values))
    best = np.argpartition(values, k - 1)[:k]
    return best[np.argsort(values[best], kind="stable")].astype(np.int64)
