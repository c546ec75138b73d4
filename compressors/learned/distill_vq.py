"""Distill-VQ: product quantization that learns to score like the embeddings themselves.

The dense scores are the teacher, so that queries without any label are enough. For a query `q` over candidates `d`,

    loss = - sum_d softmax(<q, d> / tau) log softmax(s(q, d) / tau),

the listwise cross-entropy of ListNet; the candidates of a batch are all documents of a small corpus, of others those
of the teacher's top, those that the current index puts first, and random ones. Trained are the query side's codewords,
map and mean; with the setting ``reassign`` the document side follows the query side, and the documents are encoded
again after every epoch.

Documents that are added later get the codes that they would have had. They rank worse than those of the fit all the
same as long as these are few, as with every codec that is fitted: 256 codewords of ten documents each know these ten.
Fitted on either half of SciFact (2,592 documents), the nDCG@10 of queries is lower when what they look for lies in the
other half, by .083 for OPQ at 24 bytes, .078 for VTQ and .080 here, and by .038, .031 and .026 at 48 bytes. Training
adds .008 and .005 to what its own start loses, both within a 95 % interval around nothing. VTQ loses half of that on
halves of 10,000 texts and a tenth on 50,000. Of 10,000 texts that were added to 85,000 after training, as many are
found as of those that trained and were not in the sample of the fit (.799 of the ten best, 48 bytes). A small corpus
that has grown by much is best trained again.

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
