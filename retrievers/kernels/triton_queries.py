"""The query side of the Triton kernels: what each scorer form becomes on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ragq.compressors.minifloat import E4M3
from ragq.compressors.scorers import DenseScorer, HammingScorer, LinearScorer, LookupScorer, PlanesScorer
from ragq.errors import InvalidArgumentError
from ragq.layouts import Layout

__all__ = ["Prepared", "prepare"]

Floats = NDArray[np.float32]
E4M3_ONE = 0x38  # the code of 1.0
NUMBERS = {"f4": ("float", torch.float32), "bf2": ("float", torch.bfloat16), "f2": ("half", torch.float16),
           "i1": ("half", torch.int8)}  # fmt: skip


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
    weight, bias : Tensor of float32, shape (n_queries,)
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
    weight: torch.Tensor
    bias: torch.Tensor


def prepare(scorer: LinearScorer, layout: Layout, device: torch.device) -> Prepared:
    """Put the queries of `scorer` on `device`, ready to scan codes of `layout`.

    Raises
    ------
    InvalidArgumentError
        There is no Triton kernel for this form and layout.
    """
    ones = torch.ones(scorer.n_queries, device=device)
    bias = on(scorer.bias, device)
    shared = {"weight": bias if scorer.shift_weight is None else on(scorer.shift_weight, device), "bias": bias}
    if isinstance(scorer, LookupScorer):
        return prepare_tables(scorer, layout, device, shared | {"gain": ones})
    if isinstance(scorer, DenseScorer) and layout.kind == "rows":
        value, dtype, levels = number_kind(scorer)
        return prepare_floats("dense", value, dtype, scorer.queries, levels, layout.width, device, shared)
    if isinstance(scorer, PlanesScorer) and layout.kind == "planes":
        value, dtype, levels = level_kind(scorer.levels)
        return prepare_floats("planes", value, dtype, scorer.queries, levels, -(-layout.count // 8), device, shared)
    if isinstance(scorer, HammingScorer) and len(layout.columns) == 1 + layout.factors:
        return prepare_bits(scorer, layout, device, shared)
    raise InvalidArgumentError(f"No Triton kernel scans {type(scorer).__name__} over the layout '{layout}'.")


def on(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy an array to the device."""
    return torch.tensor(np.ascontiguousarray(array), device=device)


def prepare_tables(
    scorer: LookupScorer, layout: Layout, device: torch.device, shared: dict[str, torch.Tensor]
) -> Prepared:
    """Tables for codes that are bytes, nibble pairs, or two columns of nibbles; an odd one of a pair is filled up."""
    n, m, entries = scorer.tables.shape
    form = "pairs" if entries == 16 else "nibbles" if layout.kind == "nibbles" else "bytes"
    tables = scorer.tables
    if form != "bytes" and m % 2:
        tables = np.concatenate([tables, np.zeros((n, 1, entries), np.float32)], axis=1)
    query = on(tables.astype(np.float32, copy=False), device)
    width = tables.shape[1] if form == "bytes" else tables.shape[1] // 2
    return Prepared(form, "half", m, width, torch.uint8, query, query, query, **shared)


def prepare_bits(
    scorer: HammingScorer, layout: Layout, device: torch.device, shared: dict[str, torch.Tensor]
) -> Prepared:
    """Packed bits: words of 32 where plain rows are a whole number of them, else bytes."""
    words = layout.kind == "rows" and scorer.codes.shape[1] % 4 == 0
    dtype = torch.int32 if words else torch.uint8
    query = on(scorer.codes, device).view(dtype)
    gain = on(scorer.weight, device)
    return Prepared("hamming", "half", scorer.dim, query.shape[1], dtype, query, query, gain, gain, **shared)


def number_kind(scorer: DenseScorer) -> tuple[str, torch.dtype, Floats]:
    """Return how the codes of a dense scorer become numbers, what to read them as, and the levels over them."""
    if scorer.levels is None:
        return *NUMBERS[scorer.dtype], np.ones(2, np.float32)
    return level_kind(scorer.levels)


def level_kind(levels: Floats) -> tuple[str, torch.dtype, Floats]:
    """Say how a table of levels can be computed: as E4M3 bits, exactly in fp16 but for a constant, or in float32.

    Returns
    -------
    value : str
    dtype : torch.dtype
    levels : ndarray of float32
        ``levels[0]`` is the constant that the kernel's numbers are multiplied by, the rest is the kernel's table.
    """
    one = np.ones(1, np.float32)
    if len(levels) == 256 and np.array_equal(levels, E4M3.levels * levels[E4M3_ONE]):
        return "e4m3", torch.uint8, np.array([levels[E4M3_ONE], 0], np.float32)
    if (
        np.isfinite(levels).all() and levels[-1] != levels[0]
    ):  # evenly spaced levels are half-integers but for their step
        step = np.float32((levels[-1] - levels[0]) / (len(levels) - 1))
        spaced = np.rint(2 * levels / step) / 2
        if np.abs(spaced).max() <= 1024 and np.allclose(
            spaced * step, levels, rtol=0, atol=1e-7 * np.abs(levels).max()
        ):
            return "half_levels", torch.uint8, np.concatenate([step * one, spaced.astype(np.float32)])
    if np.array_equal(levels.astype(np.float16).astype(np.float32), levels, equal_nan=True):
        return "half_levels", torch.uint8, np.concatenate([one, levels])
    return "float_levels", torch.uint8, np.concatenate([one, levels])


def prepare_floats(
    form: str,
    value: str,
    dtype: torch.dtype,
    queries: Floats,
    levels: Floats,
    width: int,
    device: torch.device,
    shared: dict[str, torch.Tensor],
) -> Prepared:
    """Float queries, split into two fp16 halves when the codes are exact in fp16.

    Each query is scaled by a power of two to a largest entry in [128, 256), where neither half loses bits to fp16's
    small exponents; the gain takes it back.
    """
    q = np.ascontiguousarray(queries, np.float32)
    gain = np.ones(len(q), np.float32)
    query, rest = q, q
    if value in ("half", "e4m3", "half_levels"):
        _, exponent = np.frexp(np.abs(q).max(axis=1, initial=0.0))
        scaled = np.ldexp(q, 8 - exponent[:, None])
        query = scaled.astype(np.float16)
        rest = (scaled - query).astype(np.float16)
        gain = np.ldexp(gain, exponent - 8)
    gain = gain * levels[0]
    table = on(levels[1:].astype(np.float16 if value == "half_levels" else np.float32), device)
    return Prepared(
        form, value, q.shape[1], width, dtype, on(query, device), on(rest, device), table,
        on(gain.astype(np.float32), device), **shared,
    )  # fmt: skip
