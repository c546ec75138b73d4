"""LeanVec: fewer dimensions, chosen for the inner products with the queries.

Tepper et al., "LeanVec: searching vectors faster by making them fit", arXiv 2312.16335. Queries and documents get maps
of their own to `d` dimensions, ``<q, x> ~ <q, mean> + <A'q, B'(x - mean)>``, so as to minimise (LeanVec-OOD)

    |Q (A B' - I) X'|^2 = tr(K_Q (A B' - I) K_X (A B' - I)'),    K_Q = Q'Q,  K_X = X'X.

======  ==============================================================================================================
id      no queries: ``K_Q ~ K_X``, ``A = B`` = the leading eigenvectors (PCA)
fw      Frank-Wolfe over matrices of spectral norm 1 (their algorithm 1): ``A <- (1 - g) A + g U V'`` with ``-grad = U S
        V'``, ``g = 1 / (t + 1)^0.999``, then `B` likewise, until the loss falls by less than a thousandth
closed  without the constraint that A and B be orthonormal: with ``U S V' = K_Q^(1/2) K_X^(1/2)``, ``A = K_Q^(-1/2) U_d
        S_d^(1/2)`` and ``B = K_X^(-1/2) V_d S_d^(1/2)`` (Eckart and Young), the global optimum: its loss is the lowest
======  ==============================================================================================================

Few queries do not span the space: ``K_Q`` is shrunk towards ``K_X`` by ``dim / (dim + n_queries)``. The coordinates of
the closed form have unequal variances: follow it by SAQ or PQ, or rotate (``LeanVec160,RR,LVQ8``). The transform costs
no bytes per vector; the quantizer behind it sees `d` dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors.base import Floats, Transform
from ragq.compressors.exact import exact_matmul
from ragq.compressors.reduction import second_moment
from ragq.errors import InvalidArgumentError

__all__ = ["LeanVec", "closed_form", "frank_wolfe", "loss"]

Matrix = NDArray[np.float64]
METHODS = ("auto", "id", "fw", "closed")
RIDGE = 1e-6  # of the largest eigenvalue, in inverse roots
STEPS = 500  # of Frank-Wolfe, at most


def root(k: Matrix) -> tuple[Matrix, Matrix]:
    """Return the square root of a positive semidefinite matrix, and its regularised inverse."""
    values, vectors = np.linalg.eigh(k)
    values = np.maximum(values, max(RIDGE * values[-1], 1e-300))
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T


def loss(a: Matrix, b: Matrix, k_q: Matrix, k_x: Matrix) -> float:
    """Return ``tr(K_Q E K_X E')`` with ``E = A B' - I``."""
    error = a @ b.T - np.eye(len(k_x))
    return float(np.trace(k_q @ error @ k_x @ error.T))


def leading(k: Matrix, d: int) -> Matrix:
    """Return the `d` leading eigenvectors as columns."""
    return np.linalg.eigh(k)[1][:, ::-1][:, :d]


def closed_form(k_q: Matrix, k_x: Matrix, d: int) -> tuple[Matrix, Matrix]:
    """Return the maps `A`, `B` of shape (dim, d) that minimise `loss` over all pairs."""
    (q, q_inverse), (x, x_inverse) = root(k_q), root(k_x)
    u, s, vt = np.linalg.svd(q @ x)
    half = np.sqrt(s[:d])
    return q_inverse @ (u[:, :d] * half), x_inverse @ (vt[:d].T * half)


def frank_wolfe(k_q: Matrix, k_x: Matrix, d: int) -> tuple[Matrix, Matrix]:
    """Return the maps of LeanVec's algorithm 1, of spectral norm at most 1."""
    k_q, k_x = k_q / max(np.trace(k_q), 1e-300), k_x / max(np.trace(k_x), 1e-300)

    def towards(matrix: Matrix, gradient: Matrix, g: float) -> Matrix:
        u, _, vt = np.linalg.svd(-gradient, full_matrices=False)
        return (1 - g) * matrix + g * (u @ vt)

    a, b = leading(k_q + k_x, d), leading(k_q + k_x, d)  # from 0, as published, the first gradient is 0
    before = loss(a, b, k_q, k_x)
    for t in range(1, STEPS + 1):
        g = 1 / (t + 1) ** 0.999
        a = towards(a, k_q @ (a @ (b.T @ k_x @ b) - k_x @ b), g)
        b = towards(b, k_x @ (b @ (a.T @ k_q @ a) - k_q @ a), g)
        now = loss(a, b, k_q, k_x)
        if abs(before - now) <= 1e-3 * before:
            break
        before = now
    return a, b


class LeanVec(Transform):
    """Query-aware linear dimension reduction.

    Parameters
    ----------
    n_components : int
        Dimensions that stay.
    method : {'auto', 'id', 'fw', 'closed'}
        See the module; 'auto' is 'closed' when `fit` is given queries, and 'id' otherwise.
    """

    forms = ("LeanVec{n_components}",)
    examples = ("LeanVec24,F32", "LeanVec32(method=fw),INT8", "LeanVec16(method=id),F32", "LeanVec32,RR,LVQ8")
    menu = ("LeanVec{2},RR,LVQ8", "LeanVec{2},SAQ4")
    state_names = ("document_map_", "query_map_", "mean_")

    document_map_: Floats  # B, (dim, n_components)
    query_map_: Floats  # A, (dim, n_components)
    mean_: Floats  # (dim,)

    def __init__(self, n_components: int, method: str = "auto") -> None:
        self.n_components = check_int(n_components, "n_components", 1)
        if method not in METHODS:
            raise InvalidArgumentError(f"'method' must be one of {', '.join(METHODS)}. Got {method!r}.")
        self.method = method

    @property
    def dim_out(self) -> int:
        return self.n_components

    def _check_dim(self, dim: int) -> None:
        if self.n_components > dim:
            raise InvalidArgumentError(f"{self} keeps {self.n_components} dimensions. The embeddings have {dim}.")

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        self.mean_ = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        k_x = second_moment(x - self.mean_)
        if queries is None:
            if self.method in ("fw", "closed"):
                raise InvalidArgumentError(f"{self} needs queries: fit(x, queries=...). Without any, use 'id'.")
            k_q = k_x
        else:
            share = self.dim / (self.dim + len(queries))
            k_q = second_moment(queries)
            k_q = (1 - share) * k_q + share * (np.trace(k_q) / max(np.trace(k_x), 1e-300)) * k_x
        if self.method == "fw":
            a, b = frank_wolfe(k_q, k_x, self.n_components)
        elif self.method == "id" or queries is None or not k_x.any():
            a = b = leading(k_x, self.n_components)
        else:
            a, b = closed_form(k_q, k_x, self.n_components)
        self.query_map_, self.document_map_ = a.astype(np.float32), b.astype(np.float32)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        both = (self.dim, self.n_components)
        return {"document_map_": both, "query_map_": both, "mean_": (self.dim,)}

    def apply(self, x: Floats) -> Floats:
        return exact_matmul(x - self.mean_, self.document_map_)

    def inverse(self, z: Floats) -> Floats:
        """Return ``mean + A z``: what the scores see, not the nearest embedding."""
        return self.mean_ + z @ self.query_map_.T

    def fold(self, queries: Floats) -> tuple[Floats, Floats]:
        return queries @ self.query_map_, queries @ self.mean_
