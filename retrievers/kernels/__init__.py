"""Kernels: the inner loops of a scan, one signature each, several implementations.

`reference` is NumPy and reads as the formula; `cpu` is C++ with SIMD; `triton` runs on a GPU. What runs is decided at
the first call: the widest instruction set of the processor, or what the environment variable ``RAGQ_KERNEL`` names
(``reference``, ``scalar``, ``avx2``, ``avx512``, ``neon`` or ``triton``). `report` tells.

`topk` is the entry for scorers and blocks; the functions named like the kernels are the entries for arrays, and
`ragq.retrievers.kernels.reference` documents their arguments.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.refine import RefinedScorer
from ragq.compressors.scorers import (
    DenseScorer,
    HammingScorer,
    LinearScorer,
    LookupScorer,
    PlanesScorer,
    RaggedPlanesScorer,
    Scorer,
)
from ragq.errors import InvalidArgumentError, missing_extra
from ragq.layouts import Block

__all__ = ["KERNELS", "dense", "hamming", "lut4", "lut8", "maxsim", "planes", "report", "select", "topk"]

Result = tuple[NDArray[np.float32], NDArray[np.int64]]

KERNELS = ("hamming", "lut4", "lut8", "planes", "dense", "maxsim", "select")
SETS = ("scalar", "avx2", "avx512", "neon")
VARIABLE = "RAGQ_KERNEL"

# How far `topk` looks where it need not be exact, and the rows from which that pays. planes: standard deviations of an
# estimate's measured error that rule a row out. lut8: rows that are looked at beyond their high nibbles, as a multiple
# of the root of k times the rows.
MARGINS = {"lut8": 1.4, "planes": 2.75}
MARGIN_ROWS = 16384
MAX_PLANES = 8


@cache
def _module(name: str) -> ModuleType:
    return import_module(f"ragq.retrievers.kernels.{name}")


def _available() -> tuple[str, ...]:
    """Return the implementations that can run here, slowest first; Triton only when asked for by name."""
    return ("reference", *_module("cpu").available_sets())


def implementation() -> str:
    """Return the name of the implementation that runs; see `RAGQ_KERNEL`.

    Raises
    ------
    InvalidArgumentError
        The environment variable names one that is unknown or that this machine cannot run.
    MissingExtraError
        It names ``triton``, which is not installed.
    """
    forced = os.environ.get(VARIABLE, "")
    if not forced:
        return _available()[-1]
    if forced == "triton":
        if find_spec("triton") is None:
            raise missing_extra("triton", "gpu")
        return forced
    if forced not in _available():
        names = ", ".join((*_available(), "triton"))
        raise InvalidArgumentError(f"The environment variable {VARIABLE} must be one of {names} here. Got '{forced}'.")
    return forced


@cache
def _kernel(name: str, chosen: str) -> Callable[..., Result]:
    if chosen in SETS:
        return partial(getattr(_module("cpu"), name), chosen)
    function: Callable[..., Result] = getattr(_module("triton_scan" if chosen == "triton" else chosen), name)
    return function


def _run(name: str, *args: Any, **scan: Any) -> Result:
    return _kernel(name, implementation())(*args, **scan)


hamming = partial(_run, "hamming")
lut4 = partial(_run, "lut4")
lut8 = partial(_run, "lut8")
planes = partial(_run, "planes")
dense = partial(_run, "dense")
maxsim = partial(_run, "maxsim")
select = partial(_run, "select")


def report() -> dict[str, dict[str, Any]]:
    """Return, for each kernel, which implementations are ``built``, ``available`` on this machine, and ``used``."""
    built = ("reference", *_module("cpu").built_sets())
    available = _available()
    if find_spec("triton") is not None:
        built, available = (*built, "triton"), (*available, "triton")
    used = implementation()
    return {name: {"built": list(built), "available": list(available), "used": used} for name in KERNELS}


def topk(
    scorer: Scorer,
    block: Block,
    k: int,
    mask: NDArray[np.uint8] | None = None,
    *,
    threads: int = 1,
    exact: bool = False,
    above: NDArray[np.float32] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Result:
    """Return the best `k` rows of a block for each query, by the fastest kernel for the scorer's form.

    Parameters
    ----------
    scorer : Scorer
    block : Block
    k : int
    mask : ndarray of uint8, optional
        Row bitset of the block, 1 = may be returned.
    threads : int
        Threads that may be used.
    exact : bool
        Rule a row out only by what its score cannot exceed. Otherwise a large block of planes is scanned by its first
        plane, and what that leaves by weighted sums of the bits of all planes; only rows that come within `MARGINS`
        standard deviations of the top k are scored, the standard deviation being that of each estimate's error over a
        sample of rows. A large block of 8-bit codes of separate dimensions (`LookupScorer.separate`) is scanned by its
        high nibbles, with the means of the 16 table entries that share one; the best ``1.4 sqrt(k rows) + 15 k`` rows
        are looked at more closely, with the whole bytes of half of the codes, and a sixteenth of these and ``10 k``
        more are scored; of M < 48 codes it takes ``(48 / M)**2`` as many rows as the root says. Where all bytes are
        looked up as fast, as small blocks are with AVX-512, the scan stays exact. On real embeddings either loses less
        than 0.5 % of the top 10.
    above : ndarray of float32, shape (n_queries,), optional
        Rows that do not score more than this need not be returned: the k-th score of blocks scanned before.
    start, stop : int
        Rows to scan.

    Returns
    -------
    scores : ndarray of float32, shape (n_queries, k)
        Descending, padded with -inf.
    rows : ndarray of int64, shape (n_queries, k)
        Row numbers in the block, padded with -1; equal scores in row order.
    """
    stop = block.rows if stop is None else stop
    if scorer.n_queries == 0:  # the native kernels share rows out among the queries
        return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
    if isinstance(scorer, RefinedScorer):
        wide = k * scorer.oversample
        _, rows = topk(scorer.coarse, block.coarse, wide, mask, threads=threads, exact=exact, start=start, stop=stop)
        return scorer.refine(block, rows, k)
    prepared = _prepare(scorer, block)
    if prepared is None:
        return _by_scorer(scorer, block, k, mask, start, stop)
    name, args, options = prepared
    assert isinstance(scorer, LinearScorer)
    estimated = name in MARGINS and (not isinstance(scorer, LookupScorer) or scorer.separate)
    if estimated and not exact and stop - start >= MARGIN_ROWS:
        options["margin"] = MARGINS[name]
    if above is not None and implementation() != "triton":
        options["above"] = above
    return _run(
        name,
        *args,
        **options,
        **factors_of(scorer, block),
        k=k,
        rows=block.rows,
        bias=scorer.bias,
        mask=mask,
        start=start,
        stop=stop,
        threads=threads,
    )


def _prepare(scorer: Scorer, block: Block) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
    """Return the kernel for a scorer and a layout, and its own arguments; None when there is none."""
    kind, columns = block.layout.kind, block.columns
    if isinstance(scorer, DenseScorer) and kind == "rows":
        return "dense", (columns["codes"], scorer.queries), {"dtype": scorer.dtype, "levels": scorer.levels}
    if isinstance(scorer, LookupScorer) and kind == "blocks" and scorer.tables.shape[2] == 16:
        return "lut4", (columns["codes"], scorer.tables), {}
    if isinstance(scorer, LookupScorer) and kind == "nibbles" and scorer.tables.shape[2] == 256:
        return "lut8", (columns["high"], columns["low"], scorer.tables), {}
    if isinstance(scorer, PlanesScorer) and kind == "planes":
        bits = [columns[f"plane{b}"] for b in range(block.layout.bits)]
        return "planes", (bits, scorer.queries, scorer.levels), {}
    if isinstance(scorer, RaggedPlanesScorer) and kind == "planes" and _fits_planes(scorer):
        bits = [columns[f"plane{b}"] for b in range(len(scorer.widths))]
        words = {"words": columns["words"]} if scorer.coded else {}
        return "planes", (bits, scorer.queries, scorer.levels), {"widths": scorer.widths, **words}
    if isinstance(scorer, HammingScorer) and (kind == "rows" or (kind == "planes" and block.layout.bits == 1)):
        codes = columns["codes" if kind == "rows" else "plane0"]
        return "hamming", (codes, scorer.codes), {"dim": scorer.dim, "weight": scorer.weight, "blocked": kind != "rows"}
    return None


def _fits_planes(scorer: RaggedPlanesScorer) -> bool:
    """Whether the C++ loops take the scorer: 1 to 8 bits a dimension, at least one of them in a plane."""
    bits = len(scorer.widths) + (scorer.coded > 0)
    return bool(scorer.widths) and bits <= MAX_PLANES and implementation() != "triton"


def factors_of(scorer: LinearScorer, block: Block) -> dict[str, Any]:
    """Return the factors of a block's rows as the kernels take them."""
    if not scorer.factors:
        return {}
    factors = [block.columns[f"factor{i}"].view(np.float16)[:, 0] for i in range(scorer.factors)]
    shift = factors[1] if scorer.factors == 2 else None
    return {"scale": factors[0], "shift": shift, "shift_weight": scorer.shift_weight}


def _by_scorer(scorer: Scorer, block: Block, k: int, mask: NDArray[np.uint8] | None, start: int, stop: int) -> Result:
    """Scan with the scorer's own reference; a range of rows becomes a mask."""
    if (start, stop) != (0, block.rows):
        inside = np.zeros(block.rows, bool)
        inside[start:stop] = True
        bits = np.packbits(inside, bitorder="little")
        mask = bits if mask is None else bits & mask[: len(bits)]
    return scorer.topk(block, k, mask)
