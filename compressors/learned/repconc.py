"""RepCONC: product quantization with codewords that are used alike.

Training assigns the documents of a batch to codewords so that each codeword gets the same share of them. In every
sub-quantizer the squared distances, scaled to -1..1, become ``exp(-distance / eps)``, whose rows and columns Sinkhorn's
iterations scale in turns until each row sums to 1/B and each column to 1/K; the largest entry of a row is its codeword.
The contrastive loss pulls the codewords by the documents that they got, and ``lambda |x - x^|^2`` (lambda = 1e-4) holds
them near these. Searching and appending assign without the constraint, to the nearest codeword.

Zhan, Mao, Liu, Guo, Zhang and Ma, "Learning discrete representations via constrained clustering for effective and
efficient dense retrieval", WSDM 2022, sections 3.2-3.4.

Bytes per vector: `size`, 2 of them the factor of VPQ.
"""

from __future__ import annotations

from typing import ClassVar

from ragq.compressors.learned.base import LearnedPQ

__all__ = ["RepCONC"]


class RepCONC(LearnedPQ):
    """PQ with evenly used codewords: starts as VPQ; train it with ``ragq train --method repconc``."""

    forms: ClassVar[tuple[str, ...]] = ("RepCONC{size}",)
    examples: ClassVar[tuple[str, ...]] = ("RepCONC6(bits=4)",)
    menu: ClassVar[tuple[str, ...]] = ("RepCONC{8}", "RepCONC{16}")
