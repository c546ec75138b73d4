"""The Triton kernels with the signature of the other implementations: `topk`, `scores`, `maxsim`.

Columns may be NumPy arrays, which are copied to the device, or torch tensors, which stay where they are: then the
answer is a pair of tensors on that device. Queries are prepared on the host and moved.

Without a GPU the kernels run in Triton's interpreter, slowly and for tests, when ``TRITON_INTERPRET=1`` was set before
this module was imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from triton.runtime import JITFunction

from ragq.compressors.scorers import LinearScorer
from ragq.errors import InvalidArgumentError
from ragq.layouts import Block, Layout
from ragq.retrievers.kernels.triton_kernels import FORMS, VALUES, maxsim_kernel, scan_kernel
from ragq.retrievers.kernels.triton_queries import Prepared, prepare

__all__ = ["check_device", "default_device", "maxsim", "merge", "move_block", "scores", "topk"]

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
    if device.type == "cpu" and isinstance(scan_kernel, JITFunction):  # compiled, not the interpreter's
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
        return array if array.is_contiguous() else array.contiguous()
    return torch.tensor(np.ascontiguousarray(array), device=device)


def move_block(block: Block, device: torch.device | str) -> Block:
    """Return `block` with its columns as tensors on `device`."""
    columns = {name: to_tensor(column, torch.device(device)) for name, column in block.columns.items()}
    return Block(block.layout, columns, block.rows)  # type: ignore[arg-type]


def block_device(block: Block) -> torch.device:
    """Return where a block's columns are, or should go."""
    first = next(iter(block.columns.values()), None)
    return first.device if isinstance(first, torch.Tensor) else default_device()


@dataclass(frozen=True)
class Operands:
    """Everything a launch takes apart from its range: the tensors in the kernel's order, the constants, the queries."""

    tensors: list[torch.Tensor]
    constants: dict[str, Any]
    ready: Prepared

    @classmethod
    def gather(
        cls, ready: Prepared, layout: Layout, columns: dict[str, torch.Tensor], mask: torch.Tensor | None
    ) -> Operands:
        """Line up a prepared query with the columns of a block."""
        codes = [columns[name] for name in layout.columns if not name.startswith("factor")]
        codes = [column.view(ready.code_dtype) for column in codes]
        factors = [columns[f"factor{i}"].view(torch.float16) for i in range(layout.factors)]
        nothing = ready.bias  # any tensor: the kernel is compiled without the load
        tensors = [
            *codes,
            *[codes[0]] * (8 - len(codes)),
            ready.query,
            ready.rest,
            ready.levels,
            ready.gain,
            factors[0] if factors else nothing,
            factors[1] if len(factors) > 1 else nothing,
            ready.weight,
            ready.bias,
            nothing if mask is None else mask,
        ]
        constants = {
            "FORM": FORMS[ready.form],
            "DIM": ready.dim,
            "WIDTH": ready.width,
            "BITS": layout.bits if layout.kind == "planes" else 1,
            "VALUE": VALUES[ready.value],
            "BLOCKED": layout.kind != "rows",
            "FACTORS": layout.factors,
            "MASKED": mask is not None,
        }
        return cls(tensors, constants, ready)


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()


def choose_tile(form: str, value: str, n_queries: int, rows: int, k: int) -> dict[str, int]:
    """Choose what a program holds: `Q` queries by `N` rows, `STEP` dimensions at a time, and its warps.

    Matrix units take no fewer than 16 of each. The sizes are the largest that compile without spilled registers; see
    `ragq.retrievers.kernels.compile_gpu`.
    """
    rows = max(16, power_of_two(rows), k)
    if form in ("dense", "planes"):
        step = 64 if value.startswith("float") else 32
        return {"K": k, "Q": 16, "N": min(rows, max(64, k)), "STEP": step, "num_warps": 8}
    most = 8 if form == "hamming" else 4
    queries = max(1, min(most, power_of_two(n_queries), 256 // max(k, 1)))
    return {"K": k, "Q": queries, "N": min(rows, max(256, k)), "STEP": 64, "num_warps": 4}


def padded_k(k: int) -> int:
    """Return the keys that a program keeps for the best `k`: a power of two, or 0 for all scores."""
    return 0 if k > MAX_K else max(2, power_of_two(k))


def launch_scan(operands: Operands, n_queries: int, start: int, rows: int, k: int) -> torch.Tensor:
    """Scan a range of rows: return keys (n_queries, programs * K), or scores (n_queries, rows) when `k` is 0."""
    tile = choose_tile(operands.ready.form, operands.ready.value, n_queries, rows, k)
    tiles = -(-rows // (tile["N"] * PROGRAMS))
    programs = -(-rows // (tile["N"] * tiles))
    device = operands.tensors[0].device
    shape, dtype = ((n_queries, programs * k), torch.int64) if k else ((n_queries, rows), torch.float32)
    out = torch.empty(shape, dtype=dtype, device=device)
    grid = (programs, -(-n_queries // tile["Q"]))
    scan_kernel[grid](*operands.tensors, out, start, rows, n_queries, tiles, **operands.constants, **tile)
    return out


def read_keys(keys: torch.Tensor, k: int, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge keys (q, n) into the best scores and rows (q, <= k), padded with -inf and -1."""
    best = torch.topk(keys, min(k, keys.shape[1]), dim=1).values
    order = best >> 32
    bits = (order ^ ((order >> 31) & 0x7FFFFFFF)).to(torch.int32)
    found = bits.view(torch.float32)
    rows = (2**31 - 1) - (best & 0xFFFFFFFF) + start
    real = (best != EMPTY_KEY) & (found > -torch.inf)
    return found.where(real, -torch.inf), rows.where(real, -1)


def sort_scores(values: torch.Tensor, k: int, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best `k` of all scores (q, n), ties in row order."""
    found, rows = torch.sort(values, dim=1, descending=True, stable=True)
    found, rows = found[:, :k], rows[:, :k] + start
    real = found > -torch.inf
    return found.where(real, -torch.inf), rows.where(real, -1)


def merge(parts: list[tuple[torch.Tensor, torch.Tensor]], n_queries: int, k: int, device: torch.device) -> Any:
    """Merge the answers of launches in row order, and pad to `k`."""
    empty = torch.full((n_queries, k), -torch.inf, device=device)
    parts = [*parts, (empty, torch.full((n_queries, k), -1, dtype=torch.int64, device=device))]
    found = torch.cat([s for s, _ in parts], dim=1)
    rows = torch.cat([r for _, r in parts], dim=1)
    best, position = torch.sort(found, dim=1, descending=True, stable=True)
    return best[:, :k], torch.gather(rows, 1, position[:, :k])


def answer(tensors: Sequence[torch.Tensor], block: Block) -> Any:
    """Return the tensors for a block of tensors, else NumPy arrays."""
    if isinstance(next(iter(block.columns.values()), None), torch.Tensor):
        return tuple(tensors)
    return tuple(tensor.cpu().numpy() for tensor in tensors)


def open_block(scorer: LinearScorer, block: Block, mask: NDArray[np.uint8] | None) -> tuple[torch.device, Operands]:
    """Move what is not on the block's device yet, and line up the operands."""
    device = block_device(block)
    columns = {name: to_tensor(column, device) for name, column in block.columns.items()}
    bits = None if mask is None else to_tensor(mask, device)
    return device, Operands.gather(prepare(scorer, block.layout, device), block.layout, columns, bits)


def topk(
    scorer: LinearScorer,
    block: Block,
    k: int,
    mask: NDArray[np.uint8] | None = None,
    *,
    threads: int = 1,
    exact: bool = False,
    start: int = 0,
    stop: int | None = None,
) -> tuple[Any, Any]:
    """Return the best `k` rows of a block for each query.

    Parameters
    ----------
    scorer : LinearScorer
        A form of `ragq.compressors.scorers`.
    block : Block
        Its columns are NumPy arrays, or tensors on one device.
    k : int
    mask : ndarray or tensor of uint8, optional
        Row bitset over the block, 1 = may be returned.
    threads, exact
        Of the other implementations: a GPU scan has no threads to choose, and is always exact.
    start, stop : int, optional
        Range of rows.

    Returns
    -------
    scores : float32, shape (n_queries, k)
        Descending, padded with -inf.
    rows : int64, shape (n_queries, k)
        Row numbers in the block, padded with -1; equal scores in row order.

    Raises
    ------
    InvalidArgumentError
        The scorer's form cannot scan this layout, or there is no GPU and the interpreter is off.
    """
    n, stop = scorer.n_queries, block.rows if stop is None else min(stop, block.rows)
    if not n or not k or stop <= start:
        return answer(merge([], n, k, block_device(block)), block)
    device, operands = open_block(scorer, block, mask)
    size = padded_k(k)
    step = LAUNCH_ROWS if size else max(1, SCORE_CELLS // n)
    parts = []
    for first in range(start, stop, step):
        found = launch_scan(operands, n, first, min(step, stop - first), size)
        parts.append(read_keys(found, k, first) if size else sort_scores(found, k, first))
    return answer(merge(parts, n, k, device), block)


def scores(scorer: LinearScorer, block: Block, start: int = 0, stop: int | None = None) -> Any:
    """Return the scores of all rows, float32 (n_queries, stop - start), on the block's device."""
    n, stop = scorer.n_queries, block.rows if stop is None else min(stop, block.rows)
    if not n or stop <= start:
        return answer([torch.empty((n, max(0, stop - start)), device=block_device(block))], block)[0]
    _, operands = open_block(scorer, block, None)
    return answer([launch_scan(operands, n, start, stop - start, 0)], block)[0]


def maxsim(
    scorer: LinearScorer,
    block: Block,
    offsets: NDArray[np.int64],
    query_offsets: NDArray[np.int64],
    k: int,
    mask: NDArray[np.uint8] | None = None,
    token_mask: NDArray[np.uint8] | None = None,
) -> tuple[Any, Any]:
    """Return the best `k` documents of each query by ``sum over query tokens of max over document tokens``.

    Parameters
    ----------
    scorer : LinearScorer
        Its queries are query tokens.
    block : Block
        Its rows are document tokens.
    offsets : ndarray of int64, shape (n_docs + 1,)
        Document i is rows ``offsets[i] .. offsets[i + 1]``; one without tokens scores -inf.
    query_offsets : ndarray of int64, shape (n_queries + 1,)
        Query a is the tokens ``query_offsets[a] .. query_offsets[a + 1]``.
    k : int
    mask : ndarray of uint8, optional
        Document bitset, 1 = may be returned.
    token_mask : ndarray of uint8, optional
        Row bitset; a token that is 0 counts as -inf.

    Returns
    -------
    scores : float32, shape (n_queries, k)
    docs : int64, shape (n_queries, k)
    """
    n, n_docs, size = len(query_offsets) - 1, len(offsets) - 1, padded_k(k)
    if not n or not n_docs or not k or not block.rows:
        return answer(merge([], n, k, block_device(block)), block)
    device, operands = open_block(scorer, block, token_mask)
    tile = choose_tile(operands.ready.form, operands.ready.value, 16, 64, size)
    tile |= {"Q": 16, "N": 64, "D": max(8, size)}
    programs = -(-n_docs // tile["D"])
    shape, dtype = ((n, programs * size), torch.int64) if size else ((n, n_docs), torch.float32)
    out = torch.empty(shape, dtype=dtype, device=device)
    doc_mask = operands.tensors[0] if mask is None else to_tensor(mask, device)
    maxsim_kernel[(programs, n)](
        *operands.tensors, out, to_tensor(offsets, device), to_tensor(query_offsets, device), doc_mask, n_docs, n,
        **operands.constants, DOCS_MASKED=mask is not None, **tile,
    )  # fmt: skip
    part = read_keys(out, k, 0) if size else sort_scores(out, k, 0)
    return answer(merge([part], n, k, device), block)
