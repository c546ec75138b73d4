"""The Triton kernels with the signatures of `ragq.retrievers.kernels.reference`, and `topk` for blocks on a device.

Columns may be NumPy arrays, which are copied to the device, or torch tensors, which stay where they are: then the
answer is a pair of tensors on that device. Queries are prepared on the host and moved.

Without a GPU the kernels run in Triton's interpreter, slowly and for tests, when ``TRITON_INTERPRET=1`` was set before
Triton was imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ragq.compressors.scorers import LinearScorer
from ragq.errors import InvalidArgumentError
from ragq.layouts import Block
from ragq.retrievers import kernels
from ragq.retrievers.kernels.triton_kernels import FORMS, VALUES, maxsim_kernel, scan_kernel
from ragq.retrievers.kernels.triton_queries import (
    Prepared,
    level_kind,
    prepare_bits,
    prepare_floats,
    prepare_numbers,
    prepare_tables,
)

__all__ = ["check_device", "choose_tile", "default_device", "dense", "hamming", "lut4", "lut8", "maxsim", "merge",
           "move_block", "planes", "select", "topk"]  # fmt: skip

Floats = NDArray[np.float32]
Pair = tuple[torch.Tensor, torch.Tensor]

MAX_K = 128  # keys kept in registers; above it all scores are written and sorted
LAUNCH_ROWS = 2**30  # rows a launch, so that its row numbers stay int32
SCORE_CELLS = 2**26  # scores written at once when k is above MAX_K
PROGRAMS = 1024  # spans that a scan is cut into: several for each multiprocessor of the largest GPUs
EMPTY_KEY = -(2**63)


def check_device(device: torch.device | str) -> torch.device:
    """Return `device` when the kernels can run on it.

    Raises
    ------
    InvalidArgumentError
        It is the CPU and the interpreter is off.
    """
    device = torch.device(device)
    if device.type == "cpu" and type(scan_kernel).__name__ == "JITFunction":  # compiled, not the interpreter's
        raise InvalidArgumentError(
            "The Triton kernels need a GPU that torch sees. Unset RAGQ_KERNEL to scan on the CPU, "
            "or set TRITON_INTERPRET=1 to run them in Triton's interpreter."
        )
    return device


def default_device() -> torch.device:
    """Return the GPU that torch sees, or the CPU under the interpreter."""
    return check_device("cuda" if torch.cuda.is_available() else "cpu")


def to_tensor(array: Any, device: torch.device) -> torch.Tensor:
    """Return a contiguous tensor on `device`: `array` itself when it is one already, else a copy."""
    if isinstance(array, torch.Tensor):
        if array.device.type != device.type:
            raise InvalidArgumentError(f"All columns must be on {device}. Got one on {array.device}.")
        return array.contiguous()
    return torch.tensor(np.ascontiguousarray(array), device=device)


def read_as(column: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return bytes as numbers of `dtype`, in place."""
    return column.view(dtype) if column.numel() else column


def device_of(column: Any) -> torch.device:
    """Return where a column is, or should go."""
    return column.device if isinstance(column, torch.Tensor) else default_device()


def move_block(block: Block, device: torch.device | str) -> Block:
    """Return `block` with its columns as tensors on `device`."""
    columns = {name: to_tensor(column, torch.device(device)) for name, column in block.columns.items()}
    return Block(block.layout, columns, block.rows)


def answer(pair: Pair, column: Any) -> tuple[Any, Any]:
    """Return tensors for columns that are tensors, else NumPy arrays."""
    if isinstance(column, torch.Tensor):
        return pair
    return pair[0].cpu().numpy(), pair[1].cpu().numpy()


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()


def padded_k(k: int) -> int:
    """Return the keys that a program keeps for the best `k`: a power of two, or 0 for all scores."""
    return 0 if k > MAX_K else max(2, power_of_two(k))


def choose_tile(form: str, value: str, n_queries: int, rows: int, k: int) -> dict[str, int]:
    """Choose what a program holds: `Q` queries by `N` rows, `STEP` dimensions at a time, and its warps.

    Matrix units take no fewer than 16 of each. The sizes are the largest that compile with (next to) no spilled
    registers; see `ragq.retrievers.kernels.compile_gpu`.
    """
    rows = max(16, power_of_two(rows), k)
    if form in ("dense", "planes"):
        step = 64 if value.startswith("float") else 32
        return {"K": k, "Q": 16, "N": min(rows, max(64, k)), "STEP": step, "num_warps": 8}
    most = 8 if form == "hamming" else 4
    queries = max(1, min(most, power_of_two(n_queries), 256 // max(k, 1)))
    return {"K": k, "Q": queries, "N": min(rows, max(256, k)), "STEP": 64, "num_warps": 4}


class Launch:
    """Columns, queries and row factors of one call, lined up as the kernels take them.

    Parameters
    ----------
    ready : Prepared
    columns : sequence of (ndarray or tensor)
        One code column, or the planes of a code.
    blocked : bool
        The first column is in blocks of 32 rows.
    scan
        The arguments that all functions share; see `ragq.retrievers.kernels.reference`.
    """

    def __init__(
        self,
        ready: Prepared,
        columns: Sequence[Any],
        blocked: bool,
        *,
        n_queries: int,
        k: int,
        rows: int,
        bias: Floats | None = None,
        scale: Any = None,
        shift: Any = None,
        shift_weight: Floats | None = None,
        mask: Any = None,
        start: int = 0,
        stop: int | None = None,
        threads: int = 1,
        margin: float = 0.0,
    ) -> None:
        self.ready, self.device, self.k = ready, ready.gain.device, k
        self.n_queries, self.start, self.stop = n_queries, start, rows if stop is None else min(stop, rows)
        codes = [read_as(to_tensor(column, self.device), ready.code_dtype) for column in columns]
        zero = torch.zeros(n_queries, device=self.device) if bias is None else to_tensor(bias, self.device)
        # an argument that is not there is any tensor: the kernel is compiled without the load
        factors = [zero if column is None else to_tensor(column, self.device) for column in (scale, shift)]
        weight = zero if shift_weight is None else to_tensor(shift_weight, self.device)
        bits = codes[0] if mask is None else to_tensor(mask, self.device)
        padding = [codes[0]] * (8 - len(codes))
        self.tensors = [
            *codes,
            *padding,
            ready.query,
            ready.rest,
            ready.levels,
            ready.gain,
            *factors,
            weight,
            zero,
            bits,
        ]
        self.constants = {
            "FORM": FORMS[ready.form],
            "DIM": ready.dim,
            "WIDTH": ready.width,
            "BITS": len(columns),
            "VALUE": VALUES[ready.value],
            "BLOCKED": blocked,
            "FACTORS": (scale is not None) + (shift is not None),
            "MASKED": mask is not None,
        }

    def tile(self, n_queries: int, rows: int, size: int) -> dict[str, int]:
        return choose_tile(self.ready.form, self.ready.value, n_queries, rows, size)

    def output(self, size: int, programs: int, rows: int) -> torch.Tensor:
        """Allocate keys (n_queries, programs * size), or scores (n_queries, rows) when `size` is 0."""
        shape, dtype = (
            ((self.n_queries, programs * size), torch.int64) if size else ((self.n_queries, rows), torch.float32)
        )
        return torch.empty(shape, dtype=dtype, device=self.device)

    def scan(self) -> Pair:
        """Run `scan_kernel` over the range of rows, some at a time."""
        size, n = padded_k(self.k), self.n_queries
        step = LAUNCH_ROWS if size else max(1, SCORE_CELLS // max(n, 1))
        parts = []
        for first in range(self.start, self.stop if n and self.k else self.start, step):
            rows = min(step, self.stop - first)
            tile = self.tile(n, rows, size)
            tiles = -(-rows // (tile["N"] * PROGRAMS))
            programs = -(-rows // (tile["N"] * tiles))
            out = self.output(size, programs, rows)
            grid = (programs, -(-n // tile["Q"]))
            scan_kernel[grid](*self.tensors, out, first, rows, n, tiles, **self.constants, **tile)
            parts.append(read(out, self.k, size, first))
        return merge(parts, n, self.k, self.device)

    def maxsim(self, offsets: Any, query_offsets: Any, token_mask: Any) -> Pair:
        """Run `maxsim_kernel` over the range of documents."""
        docs, n, size = self.stop - self.start, self.n_queries, padded_k(self.k)
        if docs <= 0 or not n or not self.k:
            return merge([], n, self.k, self.device)
        tile = self.tile(16, 64, size) | {"Q": 16, "N": 64, "D": max(8, size)}
        programs = -(-docs // tile["D"])
        out = self.output(size, programs, docs)
        tokens = self.tensors[0] if token_mask is None else to_tensor(token_mask, self.device)
        maxsim_kernel[programs, n](
            *self.tensors, out, to_tensor(offsets, self.device), to_tensor(query_offsets, self.device), tokens,
            self.start, docs, **self.constants, TOKENS_MASKED=token_mask is not None, **tile,
        )  # fmt: skip
        return merge([read(out, self.k, size, self.start)], n, self.k, self.device)


def read(out: torch.Tensor, k: int, size: int, start: int) -> Pair:
    """Turn what a launch wrote, keys or (when `size` is 0) all scores, into scores and rows, at most `k` of a query."""
    if size == 0:
        found, rows = torch.sort(out, dim=1, descending=True, stable=True)
        found, rows = found[:, :k], rows[:, :k]
    else:
        best = torch.topk(out, min(k, out.shape[1]), dim=1).values
        order = best >> 32
        found = (order ^ ((order >> 31) & 0x7FFFFFFF)).to(torch.int32).view(torch.float32)
        found = found.where(best != EMPTY_KEY, -torch.inf)
        rows = (2**31 - 1) - (best & 0xFFFFFFFF)
    real = found > -torch.inf
    return found.where(real, -torch.inf), (rows + start).where(real, -1)


def merge(parts: Sequence[Pair], n_queries: int, k: int, device: torch.device) -> Pair:
    """Merge answers given in row order, and pad to `k`."""
    empty = torch.full((n_queries, k), -torch.inf, device=device)
    parts = [*parts, (empty, torch.full((n_queries, k), -1, dtype=torch.int64, device=device))]
    found = torch.cat([scores for scores, _ in parts], dim=1)
    rows = torch.cat([numbers for _, numbers in parts], dim=1)
    best, position = torch.sort(found, dim=1, descending=True, stable=True)
    return best[:, :k], torch.gather(rows, 1, position[:, :k])


def lut4(codes: Any, tables: Floats, **scan: Any) -> tuple[Any, Any]:
    """See `ragq.retrievers.kernels.reference.lut4`."""
    ready = prepare_tables("lut4", tables, device_of(codes))
    return answer(Launch(ready, [codes], True, n_queries=len(tables), **scan).scan(), codes)


def lut8(high: Any, low: Any, tables: Floats, **scan: Any) -> tuple[Any, Any]:
    """See `ragq.retrievers.kernels.reference.lut8`; a `margin` is not needed, the scan is always exact."""
    ready = prepare_tables("lut8", tables, device_of(high))
    return answer(Launch(ready, [high, low], True, n_queries=len(tables), **scan).scan(), high)


def planes(planes: Sequence[Any], queries: Floats, levels: Floats, **scan: Any) -> tuple[Any, Any]:
    """See `ragq.retrievers.kernels.reference.planes`; a `margin` is not needed, the scan is always exact."""
    value, table = level_kind(levels)
    ready = prepare_floats("planes", value, torch.uint8, queries, table, device_of(planes[0]))
    return answer(Launch(ready, planes, True, n_queries=len(queries), **scan).scan(), planes[0])


def hamming(
    codes: Any, queries: NDArray[np.uint8], *, dim: int, weight: Floats, blocked: bool = False, **scan: Any
) -> tuple[Any, Any]:
    """See `ragq.retrievers.kernels.reference.hamming`."""
    ready = prepare_bits(queries, dim, weight, blocked, device_of(codes))
    return answer(Launch(ready, [codes], blocked, n_queries=len(queries), **scan).scan(), codes)


def dense(codes: Any, queries: Floats, *, dtype: str, levels: Floats | None = None, **scan: Any) -> tuple[Any, Any]:
    """See `ragq.retrievers.kernels.reference.dense`."""
    ready = prepare_numbers(queries, dtype, levels, device_of(codes))
    return answer(Launch(ready, [codes], False, n_queries=len(queries), **scan).scan(), codes)


def maxsim(
    codes: Any,
    queries: Floats,
    *,
    offsets: NDArray[np.int64],
    query_offsets: NDArray[np.int64],
    dtype: str,
    levels: Floats | None = None,
    token_mask: NDArray[np.uint8] | None = None,
    **scan: Any,
) -> tuple[Any, Any]:
    """See `ragq.retrievers.kernels.reference.maxsim`."""
    ready = prepare_numbers(queries, dtype, levels, device_of(codes))
    launch = Launch(ready, [codes], False, n_queries=len(query_offsets) - 1, **scan)
    return answer(launch.maxsim(offsets, query_offsets, token_mask), codes)


def select(scores: Any, *, k: int, mask: NDArray[np.uint8] | None = None, threads: int = 1) -> tuple[Any, Any]:
    """See `ragq.retrievers.kernels.reference.select`."""
    device = device_of(scores)
    values = to_tensor(scores, device)
    if mask is not None:
        rows = torch.arange(values.shape[1], device=device)
        allowed = (to_tensor(mask, device)[rows >> 3] >> (rows & 7).to(torch.uint8)) & 1
        values = values.where(allowed.bool(), -torch.inf)
    return answer(merge([read(values, k, 0, 0)], len(values), k, device), scores)


def topk(
    scorer: LinearScorer, block: Block, k: int, mask: Any = None, *, start: int = 0, stop: int | None = None
) -> tuple[Any, Any]:
    """Return the best `k` rows of a block, whose columns are tensors on one device, for each query.

    See `ragq.retrievers.kernels.topk`; the answer is a pair of tensors on the device.

    Raises
    ------
    InvalidArgumentError
        There is no kernel for the scorer's form over the block's layout.
    """
    prepared = kernels._prepare(scorer, block)
    if prepared is None or "widths" in prepared[2]:  # planes of falling width have no kernel here
        raise InvalidArgumentError(f"No Triton kernel scans {type(scorer).__name__} over the layout '{block.layout}'.")
    name, args, options = prepared
    device = device_of(next(iter(block.columns.values())))
    factors: dict[str, Any] = {
        name: read_as(to_tensor(block.columns[f"factor{i}"], device), torch.float16)
        for i, name in enumerate(("scale", "shift")[: scorer.factors])
    }
    functions: dict[str, Callable[..., tuple[Any, Any]]] = {
        "hamming": hamming, "lut4": lut4, "lut8": lut8, "planes": planes, "dense": dense,
    }  # fmt: skip
    return functions[name](
        *args, **options, **factors, shift_weight=scorer.shift_weight, k=k, rows=block.rows, bias=scorer.bias,
        mask=mask, start=start, stop=stop,
    )  # fmt: skip
