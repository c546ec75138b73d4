"""How a run knows whether it helps: held-out queries against the codec, exactly as it would be searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import Compressor
from ragq.compressors.codebooks import cpu_threads
from ragq.layouts import Block
from ragq.pipelines.training.data import Labels
from ragq.pipelines.training.vectors import Vectors
from ragq.retrievers import kernels

__all__ = ["Encoded", "Measured", "Validation"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
K = 10
TIE = 1e-6


@dataclass(frozen=True)
class Encoded:
    """The documents as a codec stores them.

    Attributes
    ----------
    codes : ndarray of uint8, shape (n, code_size)
        Row codes.
    block : Block
        The same as they are scanned.
    """

    codes: NDArray[np.uint8]
    block: Block

    @classmethod
    def of(cls, codec: Compressor, vectors: Vectors) -> Encoded:
        """Encode every document."""
        codes = np.empty((len(vectors), codec.code_size), np.uint8)
        for start, block in vectors.blocks():
            codes[start : start + len(block)] = codec.encode(block)
        return cls(codes, Block.from_codes(codec.layout, codes))

    def search(self, codec: Compressor, queries: Floats, k: int) -> Rows:
        """Return the best `k` rows of each query by the codes, (n_queries, k)."""
        k = min(k, len(self.codes))
        parts = [
            kernels.topk(codec.scorer(queries[start : start + 256]), self.block, k, threads=cpu_threads())[1]
            for start in range(0, len(queries), 256)
        ]
        return np.concatenate([np.empty((0, k), np.int64), *parts])


@dataclass(frozen=True)
class Measured:
    """What a codec reaches on the validation queries.

    Attributes
    ----------
    name : str
        ``mixed-ndcg@10`` where queries are labelled, else ``dense-ndcg@10``; see `Validation`.
    by_query : ndarray of float64, shape (v,)
    more : dict of str to float
        Means of all there is to tell: ``agreement@10``, the tie-aware share of the exact top 10 that the codec returns,
        ``dense-ndcg@10``, and with labels ``ndcg@10``.
    """

    name: str
    by_query: NDArray[np.float64]
    more: dict[str, float]

    @property
    def line(self) -> dict[str, float]:
        """What the log says, rounded."""
        return {name: round(value, 5) for name, value in {self.name: self.mean, **self.more}.items()}

    @property
    def mean(self) -> float:
        """What decides."""
        return float(self.by_query.mean())


class Validation:
    """Queries that never train.

    The measure is nDCG@10 with the exact ranking for labels (``dense-ndcg@10``): the exact document of rank `r` has
    the gain ``1 / r``, so that the first places count most, as they do in labels. (A plain overlap of the top tens
    stays the same while the first places get better.) With labels it is the mean of that and of nDCG@10 by the labels
    (``mixed-ndcg@10``), over the labelled queries: a hundred labels alone are too few to tell codecs apart, and a gate
    that asked only them would refuse good codecs by chance.

    Parameters
    ----------
    vectors : Vectors
    queries : ndarray of float32, shape (v, dim)
    labels : mapping
        Query to document row to grade.
    """

    def __init__(self, vectors: Vectors, queries: Floats, labels: Labels) -> None:
        self.vectors, self.queries, self.labels = vectors, queries, labels
        self.exact, self.rows = vectors.search(queries, K)

    def measure(self, codec: Compressor, encoded: Encoded) -> Measured:
        """Search the codes with the queries and compare."""
        found = encoded.search(codec, self.queries, K)
        pairs = list(zip(self.queries, found, self.exact, strict=True))
        agreement = np.array([(self.vectors.take(rows) @ q >= best[-1] - TIE).mean() for q, rows, best in pairs])
        gains = [{int(row): 1 / rank for rank, row in enumerate(best, 1)} for best in self.rows]
        values = np.array([ndcg(rows.tolist(), grades) for rows, grades in zip(found, gains, strict=True)])
        shared = {"agreement@10": float(agreement.mean()), "dense-ndcg@10": float(values.mean())}
        if not self.labels:
            return Measured("dense-ndcg@10", values, shared)
        judged = np.array([ndcg(found[query].tolist(), grades) for query, grades in self.labels.items()])
        both = (judged + values[list(self.labels)]) / 2
        return Measured("mixed-ndcg@10", both, shared | {"ndcg@10": float(judged.mean())})


def ndcg(found: list[int], grades: Mapping[int, float]) -> float:
    """Return nDCG@10 of a ranking, the grade being the gain; 0 where nothing is relevant."""
    discounts = 1 / np.log2(np.arange(2, K + 2))
    gains = [max(0, grades.get(row, 0)) for row in found[:K]]
    best = sorted((g for g in grades.values() if g > 0), reverse=True)[:K]
    return float(np.dot(gains, discounts[: len(gains)]) / np.dot(best, discounts[: len(best)])) if best else 0.0
