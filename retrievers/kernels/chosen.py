"""MaxSim of documents that were chosen for each query, on coded vectors where they lie: the C++ side of a rerank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.errors import InvalidArgumentError
from ragq.layouts import padded
from ragq.retrievers.kernels import cpu

__all__ = ["CodedVectors", "maxsim_chosen"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Offsets = NDArray[np.int64]
NO_CODEBOOK, NO_CUTS = np.zeros((1, 1), np.float32), np.zeros(1, np.int64)


@dataclass(frozen=True)
class CodedVectors:
    """What the vectors of a block are, and the queries' side of them.

    Either numbers (`codes`, `dtype`, `levels`) or codewords (`codes` in blocks, `low` for 8 bits, `codebook`, `cuts`).

    Attributes
    ----------
    codes : ndarray of uint8, shape (vectors, bytes)
        Rows of numbers, or the column of 4-bit codes (of high nibbles, with `low`) in blocks of 32 rows.
    queries : ndarray of float32, shape (query tokens, dim)
    dtype, levels
        As in `ragq.retrievers.kernels.reference.dense`.
    low : ndarray of uint8, optional
        Low nibbles of 8-bit codes.
    codebook : ndarray of float32, shape (16 or 256, dim), optional
    cuts : ndarray of int64, shape (M + 1,), optional
        Sub-quantizer `j` has the columns ``cuts[j]`` to ``cuts[j + 1]``.
    scale, shift : ndarray of float16, shape (vectors or more,), optional
    shift_weight : ndarray of float32, shape (query tokens,), optional
    """

    codes: Bytes
    queries: Floats
    dtype: str = "f4"
    levels: Floats | None = None
    low: Bytes | None = None
    codebook: Floats | None = None
    cuts: Offsets | None = None
    scale: NDArray[np.float16] | None = None
    shift: NDArray[np.float16] | None = None
    shift_weight: Floats | None = None


def maxsim_chosen(
    instructions: str,
    vectors: CodedVectors,
    *,
    offsets: Offsets,
    query_offsets: Offsets,
    documents: Offsets,
    k: int,
    bias: Floats | None = None,
    threads: int = 1,
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the best `k` of the documents chosen for each query; see `ragq.retrievers.kernels.reference.maxsim`.

    Parameters
    ----------
    instructions : str
    vectors : CodedVectors
    offsets : ndarray of int64, shape (n + 1,)
        Document `d` has the vectors ``offsets[d]`` to ``offsets[d + 1]``.
    query_offsets : ndarray of int64, shape (q + 1,)
    documents : ndarray of int64, shape (q, m)
        Document numbers below `n`, ascending in each row; negative ones are none.
    k : int
    bias : ndarray of float32, shape (q,), optional
    threads : int

    Raises
    ------
    InvalidArgumentError
        Shapes that do not belong together, or documents that do not ascend.
    """
    n_queries, total = len(query_offsets) - 1, int(offsets[-1])
    offsets = cpu._offsets(offsets, len(offsets) - 1, total, "offsets")
    query_offsets = cpu._offsets(query_offsets, n_queries, len(vectors.queries), "query_offsets")
    documents = np.ascontiguousarray(documents, np.int64)
    if documents.shape[0] != n_queries or documents.max(initial=-1) >= len(offsets) - 1:
        raise InvalidArgumentError(f"'documents' must be below {len(offsets) - 1}, a row a query.")
    if ((np.diff(documents, axis=1) <= 0) & (documents[:, 1:] >= 0)).any():
        raise InvalidArgumentError("'documents' must ascend in every row.")
    call, result = cpu._call(instructions, n_queries, k=k, rows=documents.shape[1], bias=bias, threads=threads)
    cpu._cpu.maxsim_chosen(
        call,
        **_source(vectors, total),
        scale=cpu._factor(vectors.scale, total, "scale"),
        shift=cpu._factor(vectors.shift, total, "shift"),
        shift_weight=None if vectors.shift_weight is None else cpu._floats(vectors.shift_weight),
        offsets=offsets,
        query_offsets=query_offsets,
        documents=documents,
    )
    return result


def _source(vectors: CodedVectors, total: int) -> dict[str, Any]:
    """Return the arguments that say what the vectors are, checked."""
    dim = vectors.queries.shape[1]
    if vectors.codebook is None or vectors.cuts is None:
        value = cpu._value(vectors.dtype, vectors.levels)
        return {
            "value": value.kind,
            "codes": cpu._column(vectors.codes, total, "codes", dim * value.size),
            "high": None,
            "low": None,
            "levels": value.levels,
            "codebook": NO_CODEBOOK,
            "cuts": NO_CUTS,
            "queries": cpu._floats(vectors.queries) * np.float32(value.gain),
        }
    m, entries = len(vectors.cuts) - 1, 16 if vectors.low is None else 256
    if vectors.codebook.shape != (entries, dim) or vectors.cuts[0] != 0 or vectors.cuts[-1] != dim:
        raise InvalidArgumentError(
            f"'codebook' must have shape ({entries}, {dim}), cut from 0 to {dim}. Got {vectors.codebook.shape}."
        )
    low = None if vectors.low is None else cpu._column(vectors.low, padded(total), "low", -(-m // 2))
    return {
        "value": 0,
        "codes": None,
        "high": cpu._column(vectors.codes, padded(total), "codes", -(-m // 2)),
        "low": low,
        "levels": cpu.NO_LEVELS,
        "codebook": cpu._floats(vectors.codebook),
        "cuts": np.ascontiguousarray(vectors.cuts, np.int64),
        "queries": cpu._floats(vectors.queries),
    }
