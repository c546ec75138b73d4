"""The C++ kernels behind the signatures of `ragq.retrievers.kernels.reference`.

Codes are scanned in place, memory-mapped or not, with the GIL released. Threads live no longer than a call, so that a
process may fork at any time. Each function takes the instruction set as its first argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import ragq.retrievers.kernels._cpu as _cpu
from ragq.errors import InvalidArgumentError
from ragq.layouts import padded

__all__ = [
    "available_sets",
    "built_sets",
    "dense",
    "dense_rows",
    "hamming",
    "lut4",
    "lut8",
    "lut_lists",
    "maxsim",
    "planes",
    "select",
]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Result = tuple[Floats, NDArray[np.int64]]

MAX_BITS = 8  # planes
NO_LEVELS = np.zeros(256, np.float32)


@cache
def built_sets() -> tuple[str, ...]:
    """Return the instruction sets that were compiled in."""
    return tuple(_cpu.built_sets())


@cache
def available_sets() -> tuple[str, ...]:
    """Return those that this processor has, slowest first."""
    return tuple(_cpu.available_sets())


def _floats(array: Any) -> Floats:
    return np.ascontiguousarray(array, np.float32)


def _column(array: Bytes, rows: int, name: str, width: int | None = None) -> Bytes:
    """Return a C-contiguous uint8 column of at least `rows` rows; a copy only when it is not contiguous."""
    if array.dtype != np.uint8 or array.ndim != 2 or len(array) < rows:
        raise InvalidArgumentError(
            f"'{name}' must be uint8 with at least {rows} rows. Got {array.dtype} {array.shape}."
        )
    if width is not None and array.shape[1] != width:
        raise InvalidArgumentError(f"'{name}' must have {width} bytes a row. Got {array.shape[1]}.")
    return np.ascontiguousarray(array)


def _factor(array: NDArray[Any] | None, rows: int, name: str) -> NDArray[np.uint16] | None:
    if array is None:
        return None
    if len(array) < padded(rows):  # the loops read whole blocks
        array = np.concatenate([array, np.zeros(padded(rows) - len(array), array.dtype)])
    if array.dtype != np.float16 or array.ndim != 1:
        raise InvalidArgumentError(f"'{name}' must be float16 of shape (rows,). Got {array.dtype} {array.shape}.")
    return np.require(array, requirements=["C", "A"]).view(np.uint16)


def _call(
    instructions: str,
    n_queries: int,
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
) -> tuple[Any, Result]:
    """Check what all scans share and return the C++ call and the arrays that it will fill."""
    stop = rows if stop is None else stop
    if k < 0 or not 0 <= start <= max(start, stop) or stop > rows:
        raise InvalidArgumentError(
            f"'k' must be at least 0 and start .. stop within 0 .. {rows}. Got {k}, {start}, {stop}."
        )
    if shift is not None and (scale is None or shift_weight is None):
        raise InvalidArgumentError("'shift' needs 'scale' and 'shift_weight'. Got it without them.")
    result = np.empty((n_queries, k), np.float32), np.empty((n_queries, k), np.int64)
    call = _cpu.Call(
        instructions,
        start,
        max(start, stop),
        None if mask is None else np.ascontiguousarray(mask, np.uint8),
        _factor(scale, rows, "scale"),
        _factor(shift, rows, "shift"),
        None if shift_weight is None else _floats(shift_weight),
        np.zeros(n_queries, np.float32) if bias is None else _floats(bias),
        None if above is None else _floats(above),
        threads,
        *result,
    )
    return call, result


def lut4(instructions: str, codes: Bytes, tables: Floats, *, margin: float = 0.0, **scan: Any) -> Result:
    """See `reference.lut4`; always exact."""
    call, result = _call(instructions, len(tables), **scan)
    codes = _column(codes, padded(scan["rows"]), "codes", -(-tables.shape[1] // 2))
    _cpu.lut(call, codes, None, _floats(tables), 0.0)
    return result


def lut8(instructions: str, high: Bytes, low: Bytes, tables: Floats, *, margin: float = 0.0, **scan: Any) -> Result:
    """See `reference.lut8`; with a `margin`, the high nibbles pick the rows that are scored, where that is faster."""
    call, result = _call(instructions, len(tables), **scan)
    width, rows = -(-tables.shape[1] // 2), padded(scan["rows"])
    _cpu.lut(call, _column(high, rows, "high", width), _column(low, rows, "low", width), _floats(tables), margin)
    return result


def lut_lists(
    instructions: str,
    codes: Sequence[Bytes],
    tables: Floats,
    offsets: NDArray[np.int64],
    places: NDArray[np.uint32],
    probed: NDArray[np.int64],
    *,
    exact: bool = True,
    candidates: bool = False,
    **scan: Any,
) -> Result:
    """Scan lists that differ from query to query; see `ragq.retrievers.structures.lists`.

    Parameters
    ----------
    codes : sequence of ndarray of uint8
        The column of 4-bit codes in list order, or the two of 8-bit codes.
    tables : ndarray of float32, shape (n_queries, M, 16 or 256)
    offsets : ndarray of int64, shape (nlist + 1,)
        Where the lists begin, multiples of 32.
    places : ndarray of uint32, shape (rows,)
        The row of each place; those that come out are these.
    probed : ndarray of int64, shape (n_queries, nprobe)
        The lists of each query, the most promising first.
    exact : bool
        Never rule a row out by what rounding the tables practically costs, which matters for 4-bit codes.
    candidates : bool
        Return the rows of the largest sums of rounded tables, in no order, for a caller who scores them again.
    """
    call, result = _call(instructions, len(tables), **scan)
    if len(places) < scan["rows"] or offsets[-1] > scan["rows"]:
        raise InvalidArgumentError(f"The lists must lie within {scan['rows']} places. Got {offsets[-1]}.")
    width, rows = -(-tables.shape[1] // 2), padded(scan["rows"])
    columns = [_column(column, rows, "codes", width) for column in codes]
    low = columns[1] if len(columns) > 1 else None
    chosen = np.ascontiguousarray(probed, np.int64)
    _cpu.lut_lists(call, columns[0], low, _floats(tables), offsets, places, chosen, exact, candidates)
    return result


def planes(
    instructions: str,
    planes: Sequence[Bytes],
    queries: Floats,
    levels: Floats,
    *,
    widths: Sequence[int] | None = None,
    words: Bytes | None = None,
    margin: float = 0.0,
    **scan: Any,
) -> Result:
    """See `reference.planes`; with a `margin`, the first plane and then the bits of all pick the rows to score."""
    bits, dim = len(planes) + (words is not None), queries.shape[1]
    offset = 0 if widths else (1 << bits) - 2  # the loops take the tables of fewer bits too
    table = np.concatenate([np.zeros(offset, np.float32), _floats(levels)])
    if not 1 <= bits <= MAX_BITS or len(table) != (2 << bits) - 2:
        raise InvalidArgumentError(f"'planes' must be 1..8 columns, with all their levels. Got {bits}, {len(levels)}.")
    dims = list(widths or (dim,) * len(planes))
    if words is not None:
        dims = [dim, *dims]  # how many have more than 0, 1, ... bits
    if len(dims) != bits or dims[0] != dim or sorted(dims, reverse=True) != dims or dims[-1] < 0:
        raise InvalidArgumentError(f"'widths' must descend from {dim}, one a plane. Got {dims}.")
    call, result = _call(instructions, len(queries), **scan)
    rows = padded(scan["rows"])
    columns = [_column(plane, rows, f"plane{b}", -(-dims[b - len(planes)] // 8)) for b, plane in enumerate(planes)]
    last = None if words is None else _column(words, rows, "words", -(-dim // 16))
    _cpu.planes(call, columns, last, dims, table, _floats(queries), margin)
    return result


def hamming(
    instructions: str, codes: Bytes, queries: Bytes, *, dim: int, weight: Floats, blocked: bool = False, **scan: Any
) -> Result:
    """See `reference.hamming`."""
    call, result = _call(instructions, len(queries), **scan)
    rows = padded(scan["rows"]) if blocked else scan["rows"]
    codes = _column(codes, rows, "codes", queries.shape[1])
    _cpu.hamming(call, codes, blocked, dim, np.ascontiguousarray(queries, np.uint8), _floats(weight))
    return result


class Value(NamedTuple):
    """How the C++ loops decode a number, and what the queries are multiplied by for it."""

    kind: int
    size: int
    levels: Floats = NO_LEVELS
    gain: float = 1.0


F32, F16, BF16, I8, E4M3, E5M2, AFFINE, _, LEVELS = range(9)
PLAIN = {"f4": Value(F32, 4), "f2": Value(F16, 2), "bf2": Value(BF16, 2), "i1": Value(I8, 1)}


@cache
def minifloat(exponent_bits: int, largest: int, bias: int) -> Floats:
    """Return the value of each byte of a minifloat; codes above the `largest` finite one count as it."""
    codes = np.minimum(np.arange(128), largest)
    mantissa_bits = 7 - exponent_bits
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    positive = np.ldexp((exponent > 0) + mantissa / (1 << mantissa_bits), np.maximum(exponent, 1) - bias)
    return np.concatenate([positive, -positive]).astype(np.float32)


def _value(dtype: str, levels: Floats | None) -> Value:
    """Return the fastest way to decode; a table that is a known minifloat times a number is decoded as that."""
    if levels is None:
        if dtype == "u1":
            return Value(AFFINE, 1, np.array([1, 0] + [0] * 254, np.float32))
        if dtype not in PLAIN:
            raise InvalidArgumentError(f"'dtype' must be one of {', '.join(PLAIN)}, u1. Got {dtype!r}.")
        return PLAIN[dtype]
    levels = _floats(levels)
    if levels.shape != (256,):
        raise InvalidArgumentError(f"'levels' must have shape (256,). Got {levels.shape}.")
    for kind, table, unit in ((E4M3, minifloat(4, 0x7E, 7), 256.0), (E5M2, minifloat(5, 0x7B, 15), 1.0)):
        gain = levels[table == 1][0]
        if gain and np.array_equal(levels, table * gain):
            return Value(kind, 1, gain=float(gain) * unit)
    return Value(LEVELS, 1, levels)


def dense(
    instructions: str, codes: Bytes, queries: Floats, *, dtype: str, levels: Floats | None = None, **scan: Any
) -> Result:
    """See `reference.dense`."""
    value = _value(dtype, levels)
    call, result = _call(instructions, len(queries), **scan)
    codes = _column(codes, scan["rows"], "codes", queries.shape[1] * value.size)
    _cpu.dense(call, value.kind, codes, value.levels, _floats(queries) * np.float32(value.gain))
    return result


def dense_rows(
    instructions: str,
    columns: Sequence[Bytes],
    starts: NDArray[np.int64],
    chosen: NDArray[np.int64],
    queries: Floats,
    *,
    dtype: str,
    factors: int = 0,
    levels: Floats | None = None,
    k: int,
    bias: Floats | None = None,
    shift_weight: Floats | None = None,
    threads: int = 1,
) -> Result:
    """Score rows that were chosen for each query; see `reference.dense` for the score.

    Parameters
    ----------
    columns : sequence of ndarray of uint8, shape (rows, dim * size + 2 factors)
        Row codes, the factors behind the numbers, C-contiguous; at least one column.
    starts : ndarray of int64, shape (len(columns) + 1,)
        The first row of each column.
    chosen : ndarray of int64, shape (n_queries, n)
        Rows over all columns; -1 where there is none.
    """
    value = _value(dtype, levels)
    call, result = _call(instructions, len(queries), k=k, rows=0, bias=bias, shift_weight=shift_weight, threads=threads)
    width = queries.shape[1] * value.size + 2 * factors
    if chosen.shape[0] != len(queries) or chosen.max(initial=-1) >= starts[-1]:
        raise InvalidArgumentError(f"'chosen' must name rows below {starts[-1]} for each of {len(queries)} queries.")
    for column in columns:
        if column.shape[1] != width:
            raise InvalidArgumentError(f"'columns' must have {width} bytes a row. Got {column.shape[1]}.")
    rows = np.ascontiguousarray(chosen, np.int64)
    gained = _floats(queries) * np.float32(value.gain)
    _cpu.dense_rows(call, value.kind, columns, starts, rows, factors, value.levels, gained)
    return result


def maxsim(
    instructions: str,
    codes: Bytes,
    queries: Floats,
    *,
    offsets: NDArray[np.int64],
    query_offsets: NDArray[np.int64],
    dtype: str,
    levels: Floats | None = None,
    token_mask: Bytes | None = None,
    **scan: Any,
) -> Result:
    """See `reference.maxsim`."""
    value = _value(dtype, levels)
    rows, n_queries = scan["rows"], len(query_offsets) - 1
    offsets = _offsets(offsets, rows, len(codes), "offsets")
    query_offsets = _offsets(query_offsets, n_queries, len(queries), "query_offsets")
    call, result = _call(instructions, n_queries, **scan)
    codes = _column(codes, 0, "codes", queries.shape[1] * value.size)
    if token_mask is not None and 8 * len(token_mask) < len(codes):
        raise InvalidArgumentError(f"'token_mask' must cover {len(codes)} tokens. Got {len(token_mask)} bytes.")
    mask = None if token_mask is None else np.ascontiguousarray(token_mask, np.uint8)
    gained = _floats(queries) * np.float32(value.gain)
    _cpu.maxsim(call, value.kind, codes, value.levels, gained, offsets, query_offsets, mask)
    return result


def _offsets(offsets: NDArray[np.int64], n: int, total: int, name: str) -> NDArray[np.int64]:
    array = np.ascontiguousarray(offsets, np.int64)
    if array.shape != (n + 1,) or array[0] < 0 or array[-1] > total or (np.diff(array) < 0).any():
        raise InvalidArgumentError(f"'{name}' must be {n + 1} ascending row numbers up to {total}. Got {array!r}.")
    return array


def select(instructions: str, scores: Floats, *, k: int, mask: Bytes | None = None, threads: int = 1) -> Result:
    """See `reference.select`."""
    scores = _floats(scores)
    call, result = _call(instructions, len(scores), k=k, rows=scores.shape[1], mask=mask, threads=threads)
    _cpu.select(call, scores)
    return result
