"""The health of codebooks: even assignment, codewords that nobody uses, and gradients through a quantizer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["reseed", "rotation_trick", "sinkhorn"]

EPSILON = 0.003  # RepCONC's
ITERATIONS = 100


def sinkhorn(distances: NDArray[Any], epsilon: float = EPSILON, iterations: int = ITERATIONS) -> NDArray[np.int64]:
    """Assign rows to columns so that every column gets about the same number (RepCONC, section 3.3).

    Parameters
    ----------
    distances : ndarray of float, shape (B, K)
        Squared distances of B vectors to K codewords; B should be 2 K or more for all to get their share.
    epsilon : float
        How strictly: small values assign almost by distance alone within the constraint.

    Returns
    -------
    ndarray of int64, shape (B,)
    """
    d = distances.astype(np.float64)  # exp(-1 / .003) is still above the smallest float64
    low, high = d.min(), d.max()
    kernel = np.exp(-((d - (low + high) / 2) / max((high - low) / 2, 1e-30)) / epsilon)
    kernel /= kernel.sum()
    for _ in range(iterations):
        kernel /= np.maximum(kernel.sum(axis=0, keepdims=True), 1e-300) * d.shape[1]
        kernel /= np.maximum(kernel.sum(axis=1, keepdims=True), 1e-300) * d.shape[0]
    return np.asarray(kernel.argmax(axis=1), np.int64)


def reseed(
    codebook: NDArray[np.float32],
    codes: NDArray[np.uint8],
    rows: NDArray[np.float32],
    offsets: NDArray[np.int64],
    rng: np.random.Generator,
) -> int:
    """Move codewords that no document has to where documents are; return how many.

    Parameters
    ----------
    codebook : ndarray of float32, shape (K, kept)
        Written to.
    codes : ndarray of uint8, shape (n, M)
        Of all documents.
    rows : ndarray of float32, shape (m, kept)
        Some documents' coordinates; those far from their codewords are taken first.
    offsets : ndarray of int64, shape (M + 1,)
    rng : numpy.random.Generator
        Draws among the rows.
    """
    moved = 0
    for m, (start, stop) in enumerate(pairwise(offsets)):
        dead = np.flatnonzero(np.bincount(codes[:, m], minlength=len(codebook)) == 0)
        if not len(dead) or not len(rows):
            continue
        part, words = rows[:, start:stop], codebook[:, start:stop]
        squares = (part**2).sum(1)[:, None] - 2 * part @ words.T + (words**2).sum(1)
        errors = np.maximum(squares.min(axis=1).astype(np.float64), 0) + 1e-12
        count = min(len(dead), len(rows))
        chosen = rng.choice(len(rows), count, replace=False, p=errors / errors.sum())
        codebook[dead[:count], start:stop] = part[chosen]
        moved += count
    return moved


def rotation_trick(y: Tensor, quantized: Tensor, offsets: list[int]) -> Tensor:
    """Return `quantized` with gradients that reach `y` through a rotation instead of unchanged.

    In each sub-quantizer the codeword is ``c = (|c| / |y|) R y`` for the rotation `R` in the plane of both; `R` and the
    ratio are held constant, so that the gradient of `y` keeps its angle to `y` as it had to `c` (Fifty et al.,
    "Restructuring vector quantization with the rotation trick", ICLR 2025, eq. 4-6).

    Parameters
    ----------
    y, quantized : Tensor (P, kept)
    offsets : list of int
        Where each sub-quantizer's columns begin, and their number.
    """
    parts = []
    for start, stop in pairwise(offsets):
        part, word = y[:, start:stop], quantized[:, start:stop]
        with torch.no_grad():
            lengths = part.norm(dim=1, keepdim=True).clamp_min(1e-12)
            ratio = word.norm(dim=1, keepdim=True) / lengths
            a, b = part / lengths, word / word.norm(dim=1, keepdim=True).clamp_min(1e-12)
            middle = (a + b) / (a + b).norm(dim=1, keepdim=True).clamp_min(1e-12)
        turned = part - 2 * (part * middle).sum(1, keepdim=True) * middle + 2 * (part * a).sum(1, keepdim=True) * b
        parts.append(ratio * turned)
    rotated = torch.cat(parts, dim=1)
    return quantized + (rotated - rotated.detach())
