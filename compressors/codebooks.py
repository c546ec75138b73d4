"""Codebooks: k-means, and what every quantizer with look-up tables shares.

A codebook is an array ``(K, dim)`` cut into M sub-quantizers by `offsets`: sub-quantizer `m` reads the columns
``offsets[m] .. offsets[m + 1]``, and its K codewords are those columns of the K rows.

k-means: seeds by k-means++ (Arthur and Vassilvitskii, SODA 2007), Lloyd's iterations, and an emptied cluster takes over
the row farthest from its own centroid. Centroids move beyond the means and meet them in the last iteration. In up to
24 dimensions they move as heavy balls do (Polyak, 1964), and 8 iterations err less than 25 plain ones; all but the last
find the nearest of up to 256 centroids in 16-bit whole numbers. In more dimensions they overshoot the means
(over-relaxation), and 11 iterations do. The loops are in C++ and give the same bits with any number of threads and on
every processor.
"""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_embeddings, check_int
from ragq.compressors import _cpu
from ragq.compressors.reduction import second_moment
from ragq.errors import InvalidArgumentError

__all__ = ["cpu_threads", "even_offsets", "fit_codebook", "kmeans", "nibble_order", "sample_rows"]

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
ROWS_PER_CODEWORD = 256  # more rows move a centroid by less than they cost
EXCHANGES = 8  # sweeps over all pairs of codewords, the last of which find next to none
POWER_STEPS = 8  # of the power iteration for a first principal axis
FEW_PRODUCTS = 256  # queries times codewords up to which a call a sub-quantizer costs more than its arithmetic
SEEDING_ROWS = 16  # a codeword; k-means++ needs only the shape of the data
PROGRESSIVE_RUNS = 10  # of k-means, in 1 dimension to all


def cpu_threads() -> int:
    """Return how many threads the C++ loops use: the processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sample_rows(x: Floats, rows: int, rng: np.random.Generator) -> Floats:
    """Return `rows` rows of `x` in their order, or all of them when there are no more."""
    if len(x) <= rows:
        return x
    return x[np.sort(rng.choice(len(x), rows, replace=False))]


def kmeans(
    x: Floats,
    k: int,
    *,
    iterations: int = 25,
    seed: int = 0,
    initial: Floats | None = None,
    threads: int | None = None,
) -> Floats:
    """Return `k` centroids of the rows of `x`.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dim)
        At least `k` rows.
    k : int
    iterations : int
        Lloyd's iterations at most; it stops when no row changes its cluster.
    seed : int
        The same seed gives the same centroids, whatever `threads` is.
    initial : ndarray of float32, shape (k, dim), optional
        Where to start, instead of k-means++.
    threads : int, optional
        As many as there are processors when None.

    Returns
    -------
    ndarray of float32, shape (k, dim)

    Raises
    ------
    InvalidArgumentError
        Fewer than `k` rows.
    """
    x = check_embeddings(x)
    check_int(k, "k", 1)
    if len(x) < k:
        raise InvalidArgumentError(f"k-means with {k} centroids needs at least {k} rows. Got {len(x)}.")
    return lloyd(x, k, iterations, seed, initial, threads or cpu_threads())


def lloyd(x: Floats, k: int, iterations: int, seed: int, initial: Floats | None, threads: int) -> Floats:
    """`kmeans` of rows that were checked."""
    if initial is None:
        seeding = sample_rows(x, SEEDING_ROWS * k, np.random.default_rng(seed))
        initial = _cpu.seed_centroids(seeding, k, seed)
    return _cpu.lloyd(x, np.ascontiguousarray(initial, np.float32), iterations, threads)[0]


def progressive_kmeans(x: Floats, k: int, *, iterations: int, seed: int) -> Floats:
    """Return `k` centroids of rows in many dimensions: k-means in the first principal axes, then in more, up to all.

    Rows such as the residuals of a residual quantizer are nearly as far from each other as from their mean, so that
    k-means in all dimensions stays where it starts; in few dimensions it finds the clusters there are, and those start
    the next run. Liu, Lu and Li, "Improved residual vector quantization for high-dimensional approximate nearest
    neighbor search", 2015, section 3.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dim)
        Centred, at least `k` rows.
    k : int
    iterations : int
        Of each run.
    seed : int

    Returns
    -------
    ndarray of float32, shape (k, dim)
    """
    dim, threads = x.shape[1], cpu_threads()
    axes = np.linalg.eigh(second_moment(x))[1][:, ::-1].astype(np.float32)
    rotated = x @ axes
    centroids: Floats | None = None
    for run in range(1, PROGRESSIVE_RUNS + 1):
        width = round(dim ** (run / PROGRESSIVE_RUNS))
        start = None if centroids is None else np.pad(centroids, ((0, 0), (0, width - centroids.shape[1])))
        centroids = lloyd(np.ascontiguousarray(rotated[:, :width]), k, iterations, seed, start, threads)
    assert centroids is not None
    return np.ascontiguousarray(centroids @ axes.T)


def even_offsets(dim: int, m: int) -> NDArray[np.int64]:
    """Cut `dim` columns into `m` runs of equal width; where `m` does not divide `dim`, the first ones are one wider."""
    width, wider = divmod(dim, m)
    return np.cumsum([0] + [width + 1] * wider + [width] * (m - wider)).astype(np.int64)


def fit_codebook(
    x: Floats,
    offsets: NDArray[np.int64],
    k: int,
    *,
    iterations: int,
    rng: np.random.Generator,
    initial: Floats | None = None,
) -> Floats:
    """Run k-means in the columns of each sub-quantizer.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dim)
    offsets : ndarray of int64, shape (M + 1,)
    k : int
        Codewords of each.
    initial : ndarray of float32, shape (k, dim), optional
        Codebook to start from.

    Returns
    -------
    ndarray of float32, shape (k, dim)
    """
    codebook = np.empty((k, x.shape[1]), np.float32)
    for start, stop in pairwise(offsets):
        part = np.ascontiguousarray(x[:, start:stop])
        known = None if initial is None else initial[:, start:stop]
        codebook[:, start:stop] = lloyd(part, k, iterations, int(rng.integers(2**63)), known, cpu_threads())
    return codebook


def nibble_order(codewords: Floats) -> NDArray[np.int64]:
    """Order 256 codewords so that 16 that are near each other share a high nibble.

    A scan can then tell a score from the high nibbles alone, but for what the 16 differ by: half of the variance. The
    codewords are halved four times at the median of their first principal axis, then two of different groups change
    places as long as that brings them nearer to the means of their groups.

    Parameters
    ----------
    codewords : ndarray of float32, shape (..., 256, width)
        Of one sub-quantizer, or of several.

    Returns
    -------
    ndarray of int64, shape (..., 256)
        Rows of `codewords` in their new order.
    """
    leading, width = codewords.shape[:-2], codewords.shape[-1]
    order = np.broadcast_to(np.arange(256), (*leading, 256))
    for halvings in range(4):
        groups = (*leading, 2**halvings, -1)
        points = np.take_along_axis(codewords, order[..., None], axis=-2).astype(np.float64).reshape(*groups, width)
        points -= points.mean(axis=-2, keepdims=True)
        longest = np.argmax(np.sum(points**2, axis=-1), axis=-1)
        axis = np.take_along_axis(points, longest[..., None, None], axis=-2).swapaxes(-1, -2)  # (..., width, 1)
        for _ in range(POWER_STEPS):
            axis = points.swapaxes(-1, -2) @ (points @ axis)
            axis /= np.maximum(np.abs(axis).max(axis=-2, keepdims=True), 1e-300)
        along = np.argsort((points @ axis)[..., 0], axis=-1, kind="stable")
        order = np.take_along_axis(order.reshape(groups), along, axis=-1).reshape(*leading, 256)
    words = np.ascontiguousarray(codewords, np.float32).reshape(-1, 256, width)
    return _cpu.exchange(words, order.reshape(-1, 256), EXCHANGES).reshape(order.shape)


def in_nibble_order(codebook: Floats, offsets: NDArray[np.int64]) -> Floats:
    """Return a codebook of 256 codewords with each sub-quantizer's in `nibble_order`; a smaller one as it is."""
    if len(codebook) != 256:
        return codebook
    parts = np.split(codebook, offsets[1:-1], axis=1)
    widest = int(np.diff(offsets).max())
    order = nibble_order(np.stack([np.pad(part, ((0, 0), (0, widest - part.shape[1]))) for part in parts]))
    return np.concatenate([part[rows] for part, rows in zip(parts, order, strict=True)], axis=1)


def encode(x: Floats, codebook: Floats, offsets: NDArray[np.int64]) -> Codes:
    """Return the nearest codeword of each sub-quantizer, `(n, M)`; of equals the first."""
    return _cpu.encode_pq(np.ascontiguousarray(x), np.ascontiguousarray(codebook), offsets, cpu_threads())


def decode(codes: Codes, codebook: Floats, offsets: NDArray[np.int64]) -> Floats:
    """Return the codewords that `codes` name, side by side: `(n, dim)`."""
    x = np.empty((len(codes), codebook.shape[1]), np.float32)
    for m, (start, stop) in enumerate(pairwise(offsets)):
        x[:, start:stop] = codebook[:, start:stop][codes[:, m]]
    return x


def tables(queries: Floats, codebook: Floats, offsets: NDArray[np.int64]) -> Floats:
    """Return the inner products of queries with every codeword, `(n_queries, M, K)`."""
    if len(queries) == 1 and (np.diff(offsets) == offsets[1]).all():  # equal parts: one call for all
        parts, words = (a.reshape(len(a), len(offsets) - 1, -1) for a in (queries, codebook))
        return np.matmul(words.transpose(1, 0, 2), parts.transpose(1, 2, 0))[None, :, :, 0]
    if len(queries) * len(codebook) <= FEW_PRODUCTS:
        return np.add.reduceat(queries[:, :, None] * codebook.T, offsets[:-1], axis=1)
    found = np.empty((len(queries), len(offsets) - 1, len(codebook)), np.float32)
    for m, (start, stop) in enumerate(pairwise(offsets)):
        found[:, m] = queries[:, start:stop] @ codebook[:, start:stop].T
    return found


def pack_codes(codes: Codes, bits: int) -> Codes:
    """Put 4-bit codes two in a byte, the first in the low nibble; leave 8-bit codes as they are."""
    if bits == 8:
        return codes
    even = codes if codes.shape[1] % 2 == 0 else np.pad(codes, ((0, 0), (0, 1)))
    return even[:, 0::2] | (even[:, 1::2] << np.uint8(4))


def unpack_codes(body: Codes, m: int, bits: int) -> Codes:
    """Undo `pack_codes`."""
    if bits == 8:
        return body
    return np.stack([body & 15, body >> 4], axis=2).reshape(len(body), 2 * body.shape[1])[:, :m]


def add_mean(mean: Floats, z: Floats) -> Floats:
    """Return ``mean + z``, with exact zeros where `z` cancels the mean and only rounding would be left."""
    x = mean + z
    x[np.sum(x**2, axis=1) <= 1e-12 * np.sum(mean**2)] = 0
    return x
