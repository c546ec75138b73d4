"""Random rotations: what makes every coordinate of any embedding follow the same law.

====== =================================  ==============================  =======================================
RR     ``z = H D3 P3 H D2 P2 H D1 P1 x``  O(dim log dim) a row            permutations `P`, signs `D`, Hadamard `H`
dense  ``z = R x``                        O(dim^2) a row, dim^2 floats    `R`: QR of a Gaussian matrix, Haar-uniform
====== =================================  ==============================  =======================================

`H` is block-diagonal: the orthonormal Walsh-Hadamard transforms of the powers of two that add up to `dim` (384 = 256 +
128). The permutation comes first, or the energy of PCA-ordered and Matryoshka embeddings would stay inside a block.
Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform" (2009). A rotation costs no bytes per vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool
from ragq.compressors import _cpu
from ragq.compressors.base import Floats, Stage, Transform
from ragq.compressors.codebooks import cpu_threads
from ragq.errors import CorruptIndexError

__all__ = ["RR", "RandomRotation"]

ROUNDS = 3  # two leave traces of the block structure in the tails


class RandomRotation(Stage):
    """A stage that rotates: its state, `rotate` and `unrotate`.

    Subclasses have a constructor argument `dense`, and name what else they learn in `learned`.
    """

    dense: bool
    learned: tuple[str, ...] = ()
    rotations = 1  # how many independent ones
    state_dtypes = {"order_": "int32", "signs_": "int8"}  # noqa: RUF012

    order_: NDArray[np.int32]  # (rounds, dim): position j takes coordinate order_[j]
    signs_: NDArray[np.int8]  # (rounds, dim)
    matrix_: Floats  # (rotations * dim, dim), of a dense rotation

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*(("matrix_",) if self.dense else ("order_", "signs_")), *self.learned)

    def _draw_rotation(self, rng: np.random.Generator) -> None:
        dim, rounds = self.dim, self.rotations * ROUNDS
        if self.dense:
            parts = [haar(dim, rng) for _ in range(self.rotations)]
            self.matrix_ = np.concatenate(parts).astype(np.float32)
        else:
            self.order_ = np.stack([rng.permutation(dim) for _ in range(rounds)]).astype(np.int32)
            self.signs_ = rng.choice(np.array([-1, 1], np.int8), (rounds, dim))

    def rotate(self, x: Floats, which: int = 0) -> Floats:
        """Rotate the rows of `x`, (n, dim), each by itself."""
        return self._apply(x, which, inverse=False)

    def unrotate(self, z: Floats, which: int = 0) -> Floats:
        """Undo `rotate`."""
        return self._apply(z, which, inverse=True)

    def _apply(self, x: Floats, which: int, *, inverse: bool) -> Floats:
        x = np.ascontiguousarray(x, np.float32)
        if self.dense:
            matrix = self.matrix_[which * self.dim : (which + 1) * self.dim]
            return _cpu.project(x, np.ascontiguousarray(matrix.T if inverse else matrix), threads=cpu_threads())
        part = slice(which * ROUNDS, (which + 1) * ROUNDS)
        signs = self.signs_[part].astype(np.float32)
        return _cpu.hadamard(x, np.ascontiguousarray(self.order_[part]), signs, inverse, threads=cpu_threads())

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        rounds = (self.rotations * ROUNDS, self.dim)
        return {"order_": rounds, "signs_": rounds, "matrix_": (self.rotations * self.dim, self.dim)}

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        super()._check_state(arrays)
        if self.dense:
            return
        if (np.sort(self.order_, axis=1) != np.arange(self.dim)).any():
            raise CorruptIndexError(f"'order_' of {self} must hold permutations of 0..{self.dim - 1}.")
        if (np.abs(self.signs_) != 1).any():
            raise CorruptIndexError(f"'signs_' of {self} must be 1 or -1.")


def haar(dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a rotation matrix, uniform over all of them."""
    basis, triangle = np.linalg.qr(rng.normal(size=(dim, dim)))
    return basis * np.sign(np.diagonal(triangle))  # without the signs, QR prefers some bases


class RR(RandomRotation, Transform):
    """Random rotation.

    Parameters
    ----------
    dense : bool
        A dense random matrix in place of the randomised Hadamard transform.
    """

    forms = ("RR",)
    examples = ("RR,INT4", "RR(dense),INT4")

    def __init__(self, dense: bool = False) -> None:
        self.dense = check_bool(dense, "dense")

    @property
    def dim_out(self) -> int:
        return self.dim

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        self._draw_rotation(rng)

    def apply(self, x: Floats) -> Floats:
        return self.rotate(x)

    def inverse(self, z: Floats) -> Floats:
        return self.unrotate(z)

    def fold(self, queries: Floats) -> tuple[Floats, Floats]:
        return self.rotate(queries), np.zeros(len(queries), np.float32)
