"""JPQ: product quantization trained for the ranking, with the codes fixed.

The document side (see `ragq.compressors.learned.base`) stays as it was fitted, and so do all codes. Trained are the
query side's codewords and map, by a ranking loss over negatives that are searched in the current index: for a query
with a relevant document `i` and an irrelevant one `j` at the current ranks ``p_i`` and ``p_j``,

    loss = mean over i, j of |1/p_i - 1/p_j| log(1 + exp((s_j - s_i) / tau)),

with ``1/p = 0`` beyond a cutoff. Without labels, the documents that the dense scores put first are the relevant ones.
As the codes never change, nothing is encoded twice, and documents added later get codes like all others.

Zhan, Mao, Liu, Guo, Zhang and Ma, "Jointly optimizing query encoder and product quantization to improve retrieval
performance", CIKM 2021, sections 3.2-3.4.

Bytes per vector: `size`, 2 of them the factor of VTQ.
"""

from __future__ import annotations

from typing import ClassVar

from ragq.compressors.learned.base import FixedCodesPQ

__all__ = ["JPQ"]


class JPQ(FixedCodesPQ):
    """PQ trained by a ranking loss with fixed codes: starts as VTQ; train it with ``ragq train --method jpq``."""

    forms: ClassVar[tuple[str, ...]] = ("JPQ{size}",)
    examples: ClassVar[tuple[str, ...]] = ("JPQ6(bits=4)",)
    menu: ClassVar[tuple[str, ...]] = ("JPQ{8}", "JPQ{16}")
