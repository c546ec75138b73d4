"""The kernels as formulas: NumPy, the law that every other implementation keeps.

Each function scans rows `start` to `stop` of columns in kernel layout (see `ragq.layouts`) and returns the best `k`
rows of each query, `(scores (q, k) float32, rows (q, k) int64)`, by the tie rule of `ragq.select.topk`. With ``raw``
the score that the function's own docstring defines,

    score[a, i] = scale[i] * raw[a, i] + shift[i] * shift_weight[a] + bias[a]

The arguments that all functions share:

k : int
    How many; padded with -inf and -1 when fewer rows qualify.
rows : int
    Rows of the columns that are real; the rest is padding.
bias : ndarray of float32, shape (q,), optional
scale, shift : ndarray of float16, shape (rows or more,), optional
    The factors of each row.
shift_weight : ndarray of float32, shape (q,), optional
    Needed with `shift`.
above : ndarray of float32, shape (q,), optional
    Only rows that score more than this are returned: the k-th score of what was scanned before.
mask : ndarray of uint8, optional
    Row bitset (see `ragq.select.pack_mask`), 1 = may be returned; row 0 is the first of the column.
start, stop : int
    Rows to scan; `stop` is `rows` by default.
threads : int
    Threads that may be used.
margin : float
    0 gives the exact top k. Otherwise a scan may rule rows out that it has looked at a part of only: `planes` when this
    many standard deviations of the part's measured error speak against a row, `lut8` all but this many times the root
    of k times the rows. A reference never does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.scorers import DenseScorer, RaggedPlanesScorer
from ragq.layouts import bytes_from_blocks, from_blocks
from ragq.select import topk, unpack_mask

__all__ = ["dense", "hamming", "lut4", "lut8", "maxsim", "planes", "select"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Result = tuple[Floats, NDArray[np.int64]]


def _best(
    raw: Floats,
    *,
    k: int,
    rows: int,
    bias: Floats | None = None,
    scale: NDArray[np.float16] | None = None,
    shift: NDArray[np.float16] | None = None,
    shift_weight: Floats | None = None,
    above: Floats | None = None,
    mask: Bytes | None = None,
    start: int = 0,
    stop: int | None = None,
    threads: int = 1,
    margin: float = 0.0,
) -> Result:
    """Apply factors, mask and range to the raw scores of all rows, and select."""
    scores = raw[:, :rows]
    if scale is not None:
        scores = scores * scale[:rows].astype(np.float32)
    if shift is not None:
        assert shift_weight is not None
        scores = scores + shift_weight[:, None] * shift[:rows].astype(np.float32)
    if bias is not None:
        scores = scores + bias[:, None]
    scanned = np.zeros(rows, bool)
    scanned[start : rows if stop is None else stop] = True
    if mask is not None:
        scanned &= unpack_mask(mask, rows)
    if above is not None:
        scanned = scanned & (scores > above[:, None])
    return topk(np.where(scanned, scores, np.float32(-np.inf)).astype(np.float32, copy=False), k)


def lut4(codes: Bytes, tables: Floats, **scan: object) -> Result:
    """``raw = sum over m of tables[:, m, code[m]]``, codes of 4 bits.

    Parameters
    ----------
    codes : ndarray of uint8, shape (rows padded, ceil(M / 2))
        In blocks of 32 rows, two codes a byte.
    tables : ndarray of float32, shape (q, M, 16)
    """
    return _best(_look_up(from_blocks(codes, tables.shape[1]), tables), **scan)  # type: ignore[arg-type]


def lut8(high: Bytes, low: Bytes, tables: Floats, **scan: object) -> Result:
    """``raw = sum over m of tables[:, m, code[m]]``, codes of 8 bits.

    Parameters
    ----------
    high, low : ndarray of uint8, shape (rows padded, ceil(M / 2))
        The nibbles of the codes, in blocks of 32 rows.
    tables : ndarray of float32, shape (q, M, 256)
    """
    m = tables.shape[1]
    codes = (from_blocks(high, m) << 4) | from_blocks(low, m)
    return _best(_look_up(codes, tables), **scan)  # type: ignore[arg-type]


def _look_up(codes: Bytes, tables: Floats) -> Floats:
    raw = np.zeros((len(tables), len(codes)), np.float32)
    for m in range(tables.shape[1]):
        raw += tables[:, m, codes[:, m]]
    return raw


def planes(
    planes: Sequence[Bytes],
    queries: Floats,
    levels: Floats,
    *,
    widths: Sequence[int] | None = None,
    words: Bytes | None = None,
    **scan: object,
) -> Result:
    """``raw = queries @ levels[code]``, a code of ``len(planes)`` bits a dimension, or with `widths` of fewer.

    Parameters
    ----------
    planes : sequence of ndarray of uint8, shape (rows padded, ceil(width / 8))
        Bit planes, most significant first; the first in blocks of 32 rows.
    queries : ndarray of float32, shape (q, dim)
    levels : ndarray of float32, shape (2 ** bits,)
        With `widths`, ``(2 ** (bits + 1) - 2,)``: the levels of 1-bit codes, of 2-bit codes, and so on.
    widths : sequence of int, optional
        Plane `b` has a bit for the first ``widths[b]`` dimensions; descending from `dim`.
    words : ndarray of uint8, shape (rows padded, ceil(dim / 16)), optional
        The last bit of every dimension, one more than the planes hold, as Hamming words (`ragq.layouts.HAMMING_WORDS`).
    """
    if words is not None:
        body = np.concatenate([bytes_from_blocks(planes[0]), *planes[1:], words], axis=1)
        scorer = RaggedPlanesScorer(np.zeros(0, np.float32), queries, levels, tuple(widths or ()), queries.shape[1])
        return _best(scorer.raw(body), **scan)  # type: ignore[arg-type]
    dim = queries.shape[1]
    dims = np.array(widths or (dim,) * len(planes))
    codes = np.zeros((len(planes[0]), dim), np.int64)
    for b, plane in enumerate(planes):
        row_bits = np.asarray(plane) if b else bytes_from_blocks(plane)
        codes[:, : dims[b]] *= 2
        codes[:, : dims[b]] += np.unpackbits(row_bits, axis=1, count=dims[b], bitorder="little")
    if widths:
        codes += 2 ** (np.arange(dim)[:, None] < dims).sum(axis=1) - 2
    return _best(queries @ levels[codes].T, **scan)  # type: ignore[arg-type]


def hamming(codes: Bytes, queries: Bytes, *, dim: int, weight: Floats, blocked: bool = False, **scan: object) -> Result:
    """``raw = weight * (dim - 2 * popcount(code xor query))``.

    Parameters
    ----------
    codes : ndarray of uint8, shape (rows padded, ceil(dim / 8))
        Packed bits: rows, or with `blocked` blocks of 32 rows (a single bit plane).
    queries : ndarray of uint8, shape (q, ceil(dim / 8))
    dim : int
    weight : ndarray of float32, shape (q,)
    """
    body = bytes_from_blocks(codes) if blocked else codes
    distance = np.bitwise_count(body[None, :, :] ^ queries[:, None, :]).sum(axis=2, dtype=np.int32)
    return _best(weight[:, None] * (dim - 2 * distance).astype(np.float32), **scan)  # type: ignore[arg-type]


def dense(codes: Bytes, queries: Floats, *, dtype: str, levels: Floats | None = None, **scan: object) -> Result:
    """``raw = queries @ value(code)``, a number a dimension.

    Parameters
    ----------
    codes : ndarray of uint8, shape (rows padded, dim * bytes of a number)
    queries : ndarray of float32, shape (q, dim)
    dtype : {'f4', 'f2', 'bf2', 'i1', 'u1'}
    levels : ndarray of float32, shape (256,), optional
        The value of each byte, for ``u1``.
    """
    values = _values(codes, queries, dtype, levels)
    return _best(queries @ values.T, **scan)  # type: ignore[arg-type]


def _values(codes: Bytes, queries: Floats, dtype: str, levels: Floats | None) -> Floats:
    return DenseScorer(np.zeros(len(queries), np.float32), queries, dtype, levels).values(codes)


def maxsim(
    codes: Bytes,
    queries: Floats,
    *,
    offsets: NDArray[np.int64],
    query_offsets: NDArray[np.int64],
    dtype: str,
    levels: Floats | None = None,
    token_mask: Bytes | None = None,
    **scan: object,
) -> Result:
    """``raw[a, d] = sum over query tokens t of a of max over tokens j of d of <queries[t], value(codes[j])>``.

    A token whose mask bit is 0 scores -inf, and so does a document that has no other.

    Parameters
    ----------
    codes : ndarray of uint8, shape (tokens, dim * bytes of a number)
        Token rows of all documents, one after the other.
    queries : ndarray of float32, shape (query tokens, dim)
        Token embeddings of all queries, one after the other.
    offsets : ndarray of int64, shape (rows + 1,)
        Document `d` has the token rows ``offsets[d]`` to ``offsets[d + 1]``.
    query_offsets : ndarray of int64, shape (q + 1,)
    dtype, levels
        As in `dense`.
    token_mask : ndarray of uint8, optional
        Bitset of token rows, 1 = counts.
    """
    scores = queries @ _values(codes, queries, dtype, levels).T
    if token_mask is not None:
        scores = np.where(unpack_mask(token_mask, len(codes)), scores, np.float32(-np.inf))
    documents, n_queries = len(offsets) - 1, len(query_offsets) - 1
    raw = np.full((n_queries, documents), -np.inf, np.float32)
    for d in range(documents):
        tokens = scores[:, offsets[d] : offsets[d + 1]]
        if tokens.shape[1] and queries.shape[0]:
            best = tokens.max(axis=1)
            raw[:, d] = [best[query_offsets[a] : query_offsets[a + 1]].sum() for a in range(n_queries)]
            raw[:, d] = np.where(np.isneginf(best[0]), -np.inf, raw[:, d])
    return _best(raw, **scan)  # type: ignore[arg-type]


def select(scores: Floats, *, k: int, mask: Bytes | None = None, threads: int = 1) -> Result:
    """Return the best `k` of scores that are there already, `(q, n)`."""
    return topk(scores, k, mask)
