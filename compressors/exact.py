"""Matrix products whose rows do not depend on their neighbours.

A BLAS adds up in an order that depends on the number of rows, the row's position, the threads and the processor, so the
last bits of ``x @ w`` change with the batch, and with them a code that lies near a boundary. Here both factors are
rounded to a grid on which every partial sum is a whole number below 2^53: float64 then adds exactly, in any order, and
an embedding gets the same code alone, in a batch, and on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["exact_matmul"]

GRID_BITS = 26  # two factors of 26 bits: sums stay below 2^53, the integers that float64 holds
CHUNK_ROWS = 4096  # keeps the float64 copies in cache


def to_grid(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Round each row to multiples of a power of two so that its length is at most 2^26 of them."""
    largest = np.abs(x).max(axis=1, initial=0).astype(np.float64)
    _, exponent = np.frexp(largest * np.sqrt(x.shape[1]))  # |row| <= sqrt(d) max|row| <= 2^exponent
    step = np.ldexp(1.0, exponent - GRID_BITS)[:, None]
    return np.rint(x / step) * step


def exact_matmul(x: NDArray[np.floating], w: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return `x @ w`, each row computed as if it were alone.

    Parameters
    ----------
    x : ndarray of float, shape (n, d)
    w : ndarray of float, shape (d, k)

    Returns
    -------
    ndarray of float32, shape (n, k)
        Within a few float32 roundings of the true product, relative to ``|x_i| |w_j|``.
    """
    columns = np.ascontiguousarray(to_grid(w.T).T)
    product = np.empty((len(x), w.shape[1]), np.float32)
    for start in range(0, len(x), CHUNK_ROWS):
        product[start : start + CHUNK_ROWS] = to_grid(x[start : start + CHUNK_ROWS]) @ columns
    return product
