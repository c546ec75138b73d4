"""Optimised product quantization: a rotation that makes product quantization err least.

``min over R, C of sum |R'x - pq(R'x)|^2``. It starts from the principal axes, dealt to the M parts so that the
products of their variances are balanced (the parametric solution, "OPQ-P"), then takes turns ("OPQ-NP"): with the
rotation fixed, one round of k-means in every part; with the codes fixed, the rotation ``R = U V'`` of the singular
value decomposition ``X'Y = U S V'`` (orthogonal Procrustes), `Y` being the decoded ``R'x``.

Ge, He, Ke and Sun, "Optimized product quantization", TPAMI 2014.

Bytes per vector: those of the quantizer that follows, as in ``OPQ48,PQ48x8``. The rotation adds
dim^2 floats to the index.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ragq.checks import check_int
from ragq.compressors import codebooks
from ragq.compressors.base import Floats, Transform
from ragq.compressors.exact import exact_matmul
from ragq.errors import InvalidArgumentError

__all__ = ["OPQ"]


class OPQ(Transform):
    """Rotation learned for product quantization with as many parts.

    Parameters
    ----------
    m : int
        Sub-quantizers of the PQ that follows.
    bits : int
        Its bits, 4 or 8.
    iterations : int
        Turns of codebook and rotation.
    """

    forms = ("OPQ{m}",)
    examples = ("OPQ8(bits=4,iterations=4),PQ8x4", "OPQ7(iterations=2),PQ7x8(length)")
    menu = ("OPQ{4},PQ{4}x8", "OPQ{8},PQ{8}x8", "OPQ{16},PQ{16}x8")
    state_names = ("rotation_",)

    rotation_: Floats  # (dim, dim); z = x @ rotation_

    def __init__(self, m: int, bits: int = 8, iterations: int = 20) -> None:
        self.m = check_int(m, "m", 1)
        if bits not in (4, 8):
            raise InvalidArgumentError(f"'bits' of OPQ must be 4 or 8. Got {bits!r}.")
        self.bits = int(bits)
        self.iterations = check_int(iterations, "iterations", 1)

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return int(2**self.bits)

    @property
    def dim_out(self) -> int:
        return self.dim

    def _check_dim(self, dim: int) -> None:
        if self.m > dim:
            raise InvalidArgumentError(f"{self} prepares {self.m} parts. The embeddings have {dim} dimensions.")

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"rotation_": (self.dim, self.dim)}

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        k, offsets = 2**self.bits, codebooks.even_offsets(self.dim, self.m)
        rows = codebooks.sample_rows(x, codebooks.ROWS_PER_CODEWORD * k, rng)
        centred = (rows - rows.mean(axis=0, dtype=np.float64)).astype(np.float64)
        variances, axes = np.linalg.eigh(centred.T @ centred / len(rows))
        order = np.concatenate(balance(variances, np.diff(offsets)))
        rotation = axes[:, order].astype(np.float32)
        codebook = None
        for turn in range(self.iterations):
            z = rows @ rotation
            codebook = codebooks.fit_codebook(
                z, offsets, k, iterations=4 if turn == 0 else 1, rng=rng, initial=codebook
            )
            decoded = codebooks.decode(codebooks.encode(z, codebook, offsets), codebook, offsets)
            rotation = procrustes(rows, decoded)
        self.rotation_ = np.ascontiguousarray(rotation)

    def apply(self, x: Floats) -> Floats:
        return exact_matmul(x, self.rotation_)

    def inverse(self, z: Floats) -> Floats:
        return z @ self.rotation_.T

    def fold(self, queries: Floats) -> tuple[Floats, Floats]:
        return queries @ self.rotation_, np.zeros(len(queries), np.float32)


def balance(variances: np.ndarray[Any, Any], widths: np.ndarray[Any, Any]) -> list[list[int]]:
    """Deal dimensions to parts of the given widths so that the products of their variances come out alike.

    Each dimension, the largest variance first, goes to the part with the smallest product that still has room
    (Ge et al. 2014, eigenvalue allocation).
    """
    parts: list[list[int]] = [[] for _ in widths]
    logs = np.log(np.maximum(variances, variances.max() * 1e-12 + 1e-300))
    sums = np.zeros(len(widths))
    for i in np.argsort(-variances, kind="stable"):
        room = [m for m in range(len(parts)) if len(parts[m]) < widths[m]]
        m = min(room, key=lambda part: (sums[part] if parts[part] else -np.inf, part))
        parts[m].append(int(i))
        sums[m] += logs[i] - logs.min() + 1
    return parts


def procrustes(x: Floats, y: Floats) -> Floats:
    """Return the rotation `R` that brings ``x @ R`` nearest to `y` in squared error."""
    u, _, vt = np.linalg.svd(x.astype(np.float64).T @ y)
    return (u @ vt).astype(np.float32)
