"""The exhaustive retriever on a GPU: codes are moved once and stay there.

>>> scan = DeviceScan(blocks).to("cuda")                     # doctest: +SKIP
>>> scores, rows = scan.search(compressor.scorer(q), k=10)   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors.scorers import LinearScorer, Scorer
from ragq.errors import InvalidArgumentError, missing_extra
from ragq.layouts import Block

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceScan"]


class DeviceScan:
    """Blocks of codes on a device, scanned by the Triton kernels.

    Parameters
    ----------
    blocks : sequence of Block
        Columns as NumPy arrays (memory-mapped ones are read once, by `to`) or as tensors on one device.

    Attributes
    ----------
    device : torch.device or None
        Where the codes are; None before `to`, while they are NumPy arrays.
    rows : int
        Rows of all blocks.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = list(blocks)
        columns = [column for block in self.blocks for column in block.columns.values()]
        self.device: torch.device | None = getattr(columns[0], "device", None) if columns else None
        if isinstance(self.device, str):  # NumPy arrays say "cpu" since version 2
            self.device = None

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)

    def to(self, device: torch.device | str) -> Self:
        """Return a retriever with the codes on `device`, copied there unless they are there.

        Raises
        ------
        MissingExtraError
            Triton is not installed.
        InvalidArgumentError
            The kernels cannot run on this device.
        """
        try:
            from ragq.retrievers.kernels import triton_scan
        except ImportError as error:
            raise missing_extra("triton", "gpu") from error
        triton_scan.check_device(device)
        return type(self)([triton_scan.move_block(block, device) for block in self.blocks])

    def search(
        self, scorer: Scorer, k: int = 10, masks: Sequence[NDArray[np.uint8] | None] | None = None
    ) -> tuple[Any, Any]:
        """Return the best `k` rows of all blocks for each query.

        Parameters
        ----------
        scorer : Scorer
            Prepared queries, of the inner product.
        k : int
        masks : sequence of (ndarray or tensor of uint8, or None), optional
            A row bitset a block, 1 = may be returned.

        Returns
        -------
        scores : Tensor of float32, shape (n_queries, k)
            On the device; descending, padded with -inf.
        rows : Tensor of int64, shape (n_queries, k)
            Row numbers over the concatenation of the blocks, padded with -1; equal scores in row order.

        Raises
        ------
        InvalidArgumentError
            `to` was not called, a negative `k`, not one mask a block, or a scorer without a kernel.
        """
        check_int(k, "k", 0)
        if self.device is None:
            raise InvalidArgumentError("The codes are not on a device yet. Call .to('cuda') first.")
        if not isinstance(scorer, LinearScorer):
            raise InvalidArgumentError(
                f"A device scan needs an inner-product scorer. Got {type(scorer).__name__}; normalise the embeddings "
                "and ask for the metric 'ip', or search on the CPU."
            )
        masks = [None] * len(self.blocks) if masks is None else list(masks)
        if len(masks) != len(self.blocks):
            raise InvalidArgumentError(f"'masks' must have one entry a block. Got {len(masks)} for {len(self.blocks)}.")
        from ragq.retrievers.kernels import triton_scan

        parts, first = [], 0
        for block, mask in zip(self.blocks, masks, strict=True):
            scores, rows = triton_scan.topk(scorer, block, k, mask)
            parts.append((scores, (rows + first).where(rows >= 0, -1)))
            first += block.rows
        return triton_scan.merge(parts, scorer.n_queries, k, self.device)
