"""The query side of the Triton kernels: what each kernel's queries become on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ragq.compressors.minifloat import E4M3

__all__ = ["Prepared", "prepare_bits", "prepare_floats", "prepare_numbers", "prepare_tables"]

Floats = NDArray[np.float32]
E4M3_ONE = 0x38  # the code of 1.0

# dtype of a code -> how the kernel turns it into a number, and what the column is read as
NUMBERS = {
    "f4": ("float", torch.float32),
    "f2": ("half", torch.float16),
    "bf2": ("float", torch.bfloat16),
    "i1": ("half", torch.int8),
}


@dataclass(frozen=True)
class Prepared:
    """Queries on a device, in the form of one kernel.

    Attributes
    ----------
    form, value : str
        Keys of `triton_kernels.FORMS` and `triton_kernels.VALUES`.
    dim : int
        Numbers a row (bits for ``hamming``).
    width : int
        Steps that the kernel walks along a row's code: bytes, or words for ``hamming`` on plain rows.
    code_dtype : torch.dtype
        What the code columns are read as.
    query, rest : Tensor
        Bits, tables, or floats; for the half precisions ``query + rest`` is the scaled query.
    levels : Tensor of fp16 or float32, shape (entries,)
    gain : Tensor of float32, shape (n_queries,)
        What raw scores are multiplied by.
    """

    form: str
    value: str
    dim: int
    width: int
    code_dtype: torch.dtype
    query: torch.Tensor
    rest: torch.Tensor
    levels: torch.Tensor
    gain: torch.Tensor


def on(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy an array to the device."""
    return torch.tensor(np.ascontiguousarray(array), device=device)


def prepare_tables(form: str, tables: Floats, device: torch.device) -> Prepared:
    """Tables (q, M, entries) for codes that lie in pairs; an odd one gets a partner of zeros."""
    n, m, entries = tables.shape
    if m % 2:
        tables = np.concatenate([tables, np.zeros((n, 1, entries), np.float32)], axis=1)
    query = on(tables.astype(np.float32, copy=False), device)
    gain = torch.ones(n, device=device)
    return Prepared(form, "half", m, tables.shape[1] // 2, torch.uint8, query, query, gain, gain)


def prepare_bits(queries: NDArray[np.uint8], dim: int, weight: Floats, blocked: bool, device: torch.device) -> Prepared:
    """Packed bits (q, bytes): words of 32 where plain rows are a whole number of them, else bytes."""
    dtype = torch.int32 if not blocked and queries.shape[1] % 4 == 0 else torch.uint8
    query, gain = on(queries, device).view(dtype), on(weight, device)
    return Prepared("hamming", "half", dim, query.shape[1], dtype, query, query, gain, gain)


def prepare_numbers(queries: Floats, dtype: str, levels: Floats | None, device: torch.device) -> Prepared:
    """Float queries for the codes of ``dense``; see `ragq.retrievers.kernels.reference.dense`."""
    if levels is not None:
        value, table = level_kind(levels)
        return prepare_floats("dense", value, torch.uint8, queries, table, device)
    value, code_dtype = NUMBERS[dtype]
    return prepare_floats("dense", value, code_dtype, queries, np.ones(2, np.float32), device)


def level_kind(levels: Floats) -> tuple[str, Floats]:
    """Say how a table of levels can be computed: as E4M3 bits, exactly in fp16 but for a constant, or in float32.

    Returns
    -------
    value : str
    levels : ndarray of float32
        ``levels[0]`` is the constant that the kernel's numbers are multiplied by, the rest is the kernel's table.
    """
    if len(levels) == 256 and np.array_equal(levels, E4M3.levels * levels[E4M3_ONE]):
        return "e4m3", np.array([levels[E4M3_ONE], 0], np.float32)
    if np.isfinite(levels).all() and levels[-1] != levels[0]:  # evenly spaced: half-integers but for their step
        step = np.float32((levels[-1] - levels[0]) / (len(levels) - 1))
        spaced = np.rint(2 * levels / step) / 2
        error = np.abs(spaced * step - levels).max()
        if np.abs(spaced).max() <= 1024 and error <= 1e-7 * np.abs(levels).max():
            return "half_levels", np.append(step, spaced).astype(np.float32)
    one = np.float32(1)
    if np.array_equal(levels.astype(np.float16).astype(np.float32), levels, equal_nan=True):
        return "half_levels", np.append(one, levels)
    return "float_levels", np.append(one, levels)


def prepare_floats(
    form: str, value: str, code_dtype: torch.dtype, queries: Floats, levels: Floats, device: torch.device
) -> Prepared:
    """Float queries, split into two fp16 halves when the codes are exact in fp16.

    Each query is scaled by a power of two to a largest entry in [128, 256), where neither half loses bits to fp16's
    small exponents; the gain takes it back. `levels` is what `level_kind` returned.
    """
    q = np.ascontiguousarray(queries, np.float32)
    n, dim = q.shape
    gain, query, rest = np.ones(n, np.float32), q, q
    if value in ("half", "e4m3", "half_levels"):
        _, exponent = np.frexp(np.abs(q).max(axis=1, initial=0.0))
        scaled = np.ldexp(q, 8 - exponent[:, None])
        query = scaled.astype(np.float16)
        rest = (scaled - query).astype(np.float16)
        gain = np.ldexp(gain, exponent - 8)
    gain = (gain * levels[0]).astype(np.float32)
    table = levels[1:].astype(np.float16 if value == "half_levels" else np.float32)
    width = -(-dim // 8) if form == "planes" else dim
    return Prepared(
        form, value, dim, width, code_dtype, on(query, device), on(rest, device), on(table, device), on(gain, device)
    )
