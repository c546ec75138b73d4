"""Distill-VQ: product quantization that learns to score like the embeddings themselves.

The dense scores are the teacher, so that queries without any label are enough. For a query `q` over candidates `d`,

    loss = - sum_d softmax(<q, d> / tau) log softmax(s(q, d) / tau),

the listwise cross-entropy of ListNet; the candidates of a batch are all documents of a small corpus, of others those
of the teacher's top, those that the current index puts first, and random ones. Trained are the query side's codewords,
map and mean; with the setting ``reassign`` the document side follows the query side, and the documents are encoded
again after every epoch.

With fixed codes the codewords learn to make up for the errors of the documents that they train on. Documents that are
added later get codes that no training has seen, and gain less by it: train again when many were added.

Xiao, Liu, Han, Zhang, Lian, Gong, Chen, Yang, Sun, Shao and Xie, "Distill-VQ: learning retrieval oriented vector
quantization by distilling knowledge from dense embeddings", SIGIR 2022, sections 3.2-3.4.

Bytes per vector: `size`, 2 of them the factor of VTQ.
"""

from __future__ import annotations

from typing import ClassVar

from ragq.compressors.learned.base import FixedCodesPQ

__all__ = ["DistillVQ"]


class DistillVQ(FixedCodesPQ):
    """PQ distilled from the dense scores: starts as VTQ; train it with ``ragq train --method distill-vq``."""

    forms: ClassVar[tuple[str, ...]] = ("DistillVQ{size}",)
    examples: ClassVar[tuple[str, ...]] = ("DistillVQ6(bits=4)", "DistillVQ6(bits=4,tree=false)")
    menu: ClassVar[tuple[str, ...]] = ("DistillVQ{8}", "DistillVQ{16}")
