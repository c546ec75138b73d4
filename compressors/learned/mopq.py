"""MoPQ: product quantization by multinoulli contrastive learning.

A document's codeword is drawn from a multinoulli over the codewords, which training replaces by its likeliest one, and
the query must pick its own document's code out of the batch:

    loss = CE(softmax over the batch of s(q, d) / tau, the query's own d) + lambda |x - x^|^2,   lambda = 1e-8

(the reconstruction weighs next to nothing: the paper shows that it and the ranking do not fall together). Without
labels, a query's own document is the one that the dense scores put first. The document side moves with the query side
(straight-through) and the documents are encoded again each epoch. The batch is the pool of negatives, so that it is
large: 512 queries here, where the paper shares negatives between devices.

Xiao, Liu, Shao, Lian and Xie, "Matching-oriented embedding quantization for ad-hoc retrieval", EMNLP 2021, sections
3.2-3.3.

Bytes per vector: `size`, 2 of them the factor of VPQ.
"""

from __future__ import annotations

from typing import ClassVar

from ragq.compressors.learned.base import LearnedPQ

__all__ = ["MoPQ"]


class MoPQ(LearnedPQ):
    """PQ by contrastive learning: starts as VPQ; train it with ``ragq train --method mopq``."""

    forms: ClassVar[tuple[str, ...]] = ("MoPQ{size}",)
    examples: ClassVar[tuple[str, ...]] = ("MoPQ6(bits=4)",)
    menu: ClassVar[tuple[str, ...]] = ("MoPQ{8}", "MoPQ{16}")
