"""Linear maps to fewer dimensions: PCA, random projection, Matryoshka truncation.

The number of dimensions that stay is given as a count (``PCA192``) or as a share (``PCA50%``). Bytes per vector are
those of the quantizer that follows, at the smaller dimension.

====  ========================================  =================================================================
PCA   ``z = W'(x - mean)``                      `W`: leading eigenvectors of the covariance; least squared error
RP    ``z = sqrt(dim / m) R'x``                 `R`: random orthonormal columns; ``E <q, R z> = <q, x>``, no data needed
MRL   ``z = |x| x[:m] / |x[:m]|``               for models trained so that a prefix of the embedding is an embedding
====  ========================================  =================================================================

PCA before 8-bit floats is the recipe of Huerga-Pérez et al., arXiv 2505.00105; random projections: Johnson and
Lindenstrauss (1984); MRL: Kusupati et al., "Matryoshka Representation Learning", arXiv 2205.13147 (not the Gaussian
representations of Zamani and Bendersky, also called MRL).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ragq.checks import check_bool, check_int
from ragq.compressors.base import Floats, Transform
from ragq.compressors.exact import exact_matmul
from ragq.errors import InvalidArgumentError

__all__ = ["MRL", "PCA", "RP", "Reduction"]


class Reduction(Transform):
    """A transform to `n_components` dimensions.

    Parameters
    ----------
    n_components : int or str
        A count, or a share such as ``'50%'``.
    """

    def __init__(self, n_components: int | str) -> None:
        if isinstance(n_components, str):
            self.n_components: int | str = check_share(n_components)
        else:
            self.n_components = check_int(n_components, "n_components", 1)

    @property
    def dim_out(self) -> int:
        if isinstance(self.n_components, str):
            return max(1, round(self.dim * float(self.n_components[:-1]) / 100))
        return self.n_components

    def _check_dim(self, dim: int) -> None:
        if not isinstance(self.n_components, str) and self.n_components > dim:
            raise InvalidArgumentError(f"{self} keeps {self.n_components} dimensions. The embeddings have {dim}.")


def check_share(text: str) -> str:
    """Return a share such as ``50%`` in its shortest spelling."""
    number = text.removesuffix("%")
    try:
        share = float(number) if text.endswith("%") and number.replace(".", "", 1).isdecimal() else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share <= 100 or f"{share:g}" == "0":
        raise InvalidArgumentError(f"'n_components' must be an integer or a share in 0%..100%. Got {text!r}.")
    return f"{share:g}%"


class LinearReduction(Reduction):
    """What PCA and RP share: ``z = matrix_' (x - mean_)``, and back ``mean_ + matrix_ z``."""

    state_names = ("matrix_", "mean_")

    matrix_: Floats  # (dim, dim_out)
    mean_: Floats  # (dim,)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"matrix_": (self.dim, self.dim_out), "mean_": (self.dim,)}

    def apply(self, x: Floats) -> Floats:
        return exact_matmul(x - self.mean_, self.matrix_)

    def inverse(self, z: Floats) -> Floats:
        return z @ self.matrix_.T + self.mean_

    def fold(self, queries: Floats) -> tuple[Floats, Floats]:
        return queries @ self.matrix_, queries @ self.mean_


class PCA(LinearReduction):
    """Principal component analysis.

    Parameters
    ----------
    n_components : int or str
        A count, or a share such as ``'50%'``.
    centred : bool
        Subtract the mean first; it returns as a constant of each query, so scores stay inner products of embeddings.
        False takes the eigenvectors of the second moment instead.
    """

    forms = ("PCA{n_components}",)
    examples = ("PCA16,FP8", "PCA50%,F32", "PCA24(centred=false),INT8", "PCA64,BIN")
    menu = ("PCA{2},FP8", "PCA{3},FP8", "PCA{4},FP8", "PCA{2},FP4")

    def __init__(self, n_components: int | str, centred: bool = True) -> None:
        super().__init__(n_components)
        self.centred = check_bool(centred, "centred")

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        mean = x.mean(axis=0, dtype=np.float64) if self.centred else np.zeros(self.dim)
        self.mean_ = mean.astype(np.float32)
        _, vectors = np.linalg.eigh(second_moment(x - self.mean_))
        leading = vectors[:, ::-1][:, : self.dim_out]
        signs = np.sign(leading[np.abs(leading).argmax(axis=0), np.arange(self.dim_out)])  # eigenvectors have no sign
        self.matrix_ = np.ascontiguousarray(leading * signs, np.float32)


def second_moment(x: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return ``x'x / n`` in float64, in pieces that need little memory."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), 8192):
        part = x[start : start + 8192].astype(np.float64)
        total += part.T @ part
    return total / len(x)


class RP(LinearReduction):
    """Random projection on orthonormal directions, scaled so that inner products are unbiased.

    Parameters
    ----------
    n_components : int or str
        A count, or a share such as ``'50%'``.
    """

    forms = ("RP{n_components}",)
    examples = ("RP32,F32", "RP50%,FP8")
    menu = ("RP{2},FP8",)

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        basis, triangle = np.linalg.qr(rng.normal(size=(self.dim, self.dim_out)))
        uniform = basis * np.sign(np.diagonal(triangle))  # makes the distribution of QR's basis rotation-invariant
        self.matrix_ = (uniform * np.sqrt(self.dim / self.dim_out)).astype(np.float32)
        self.mean_ = np.zeros(self.dim, np.float32)


class MRL(Reduction):
    """Keep the first dimensions and give the rest's length back.

    Parameters
    ----------
    n_components : int or str
        A count, or a share such as ``'50%'``.
    renormalise : bool
        Scale what is left to the length of the whole embedding (1 for a unit vector).
    """

    forms = ("MRL{n_components}",)
    examples = ("MRL32,F32", "MRL50%,FP8", "MRL32(renormalise=false),INT8")
    menu = ("MRL{2},FP8",)

    def __init__(self, n_components: int | str, renormalise: bool = True) -> None:
        super().__init__(n_components)
        self.renormalise = check_bool(renormalise, "renormalise")

    def apply(self, x: Floats) -> Floats:
        kept = np.ascontiguousarray(x[:, : self.dim_out])
        if self.renormalise:
            whole = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
            part = np.sqrt(np.square(kept).sum(axis=1, keepdims=True))
            kept = kept * np.divide(whole, part, out=np.zeros_like(part), where=part > 0)
        return kept

    def inverse(self, z: Floats) -> Floats:
        x = np.zeros((len(z), self.dim), np.float32)
        x[:, : self.dim_out] = z
        return x

    def fold(self, queries: Floats) -> tuple[Floats, Floats]:
        return queries[:, : self.dim_out], np.zeros(len(queries), np.float32)
