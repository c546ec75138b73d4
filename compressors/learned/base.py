"""What the learned codebook codecs share: VPQ with a document side and a query side.

The document side is a fitted `VPQ` or `VTQ`: it turns an embedding into codes ``k_1 .. k_M`` and a factor `f`, and it
never needs a query. The query side is a mean `u`, a linear map `A` and a codebook `D`, all trained:

    score(q, x) = <q, u> + f sum_m <(A q)_m, D_m[k_m]> = <q, x^>,     x^ = u + f A' D[k].

`x^` is not the nearest reconstruction of `x` but the vector whose inner products rank as the teacher does; it is what
`decode` returns, so that the law of `ragq.compressors.base` holds. Keeping two codebooks lets documents that are added
after training get the codes that they would have had at build time (JPQ's document-side and query-side centroids).

`fit` gives the start of training: the query side equal to the document side, so that an untrained codec ranks as VPQ
or VTQ does. When it is given queries, VPQ works in coordinates in which these and the documents vary alike, see
`query_aware_maps`. `ragq train` (`ragq.pipelines.training`) moves the parameters.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool
from ragq.compressors import codebooks
from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.floats import F16_MAX
from ragq.compressors.leanvec import closed_form
from ragq.compressors.reduction import second_moment
from ragq.compressors.scorers import LookupScorer, factor
from ragq.compressors.vpq import VPQ
from ragq.compressors.vtq import VTQ
from ragq.layouts import Layout

__all__ = ["FixedCodesPQ", "LearnedPQ"]


class LearnedPQ(Quantizer):
    """Base of the learned codebook codecs.

    Parameters
    ----------
    size : int
        Bytes of a code: ``size - 2`` bytes of codewords and an fp16 factor.
    bits : int
        8, or 4 for codes that a byte shuffle looks up.
    tree : bool
        Start from VTQ, whose first codewords are whole vectors and whose others overlap: better, and slower to fit and
        encode.
    """

    state_names = ("query_mean_", "query_map_", "query_codebook_")
    state_dtypes: ClassVar[dict[str, str]] = {"query_map_": "float16", "query_codebook_": "float16"}

    documents: VPQ
    query_mean_: Floats  # u, (dim,)
    query_map_: NDArray[np.float16]  # A, (kept, dim)
    query_codebook_: NDArray[np.float16]  # D, in the shape of the document side's

    def __init__(self, size: int, bits: int = 8, tree: bool = False) -> None:
        self.tree = check_bool(tree, "tree")
        self.documents = document_side(size, bits, self.tree)
        self.size, self.bits = self.documents.size, self.documents.bits

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return self.documents.minimum_rows

    @property
    def layout(self) -> Layout:
        return self.documents._at(self.dim).layout

    def _check_dim(self, dim: int) -> None:
        self.documents._check_dim(dim)

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """The arrays of both sides, the document side's under its own names."""
        return {**self.documents.state, **super().state} if self.dim_ is not None else super().state

    def load_state(self, state: dict[str, NDArray[Any]]) -> Self:
        self.dim_ = None
        documents = document_side(self.size, self.bits, self.tree)
        self.documents = documents.load_state({k: v for k, v in state.items() if k not in self.state_names})
        return super().load_state({k: v for k, v in state.items() if k in ("dim_", *self.state_names)})

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        kept = len(self.documents.basis_)
        return {
            "query_mean_": (self.dim,),
            "query_map_": (kept, self.dim),
            "query_codebook_": self.documents.codebook_.shape,
        }

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        side = document_side(self.size, self.bits, self.tree)
        mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        query_map, document_map = np.eye(self.dim, dtype=np.float32), np.eye(self.dim, dtype=np.float32)
        if queries is not None and len(queries):
            query_map, document_map = query_aware_maps(x - mean, queries)
        side.fit((x - mean) @ document_map, seed=int(rng.integers(2**31)))
        axes = side.basis_.astype(np.float32)
        self.set_query_side(
            (mean + query_map @ side.mean_).astype(np.float32),
            (axes / side._weights[:, None] @ query_map.T).astype(np.float32),
            side.codebook_,
        )
        # one map and one mean instead of two: the coordinates that `side` sees are those of its own axes
        side.dim_, side.basis_ = self.dim, np.ascontiguousarray(axes @ document_map.T, np.float16)
        side.mean_ = mean
        self.documents = side

    def set_query_side(self, mean: Floats, query_map: Floats, codebook: NDArray[Any]) -> None:
        """Take over trained parameters: `u` (dim,), `A` (kept, dim) and `D`, rounded to what is stored."""
        self.query_mean_ = np.array(mean, np.float32)  # a copy: training goes on with what it gave
        self.query_map_ = np.ascontiguousarray(np.clip(query_map, -F16_MAX, F16_MAX), np.float16)
        self.query_codebook_ = np.ascontiguousarray(np.clip(codebook, -F16_MAX, F16_MAX), np.float16)

    def _encode(self, x: Floats) -> Codes:
        return self.documents._encode(x)

    def codes_of(self, encoded: Codes) -> Codes:
        """Return the codewords' numbers of row codes, (n, M), without the factor."""
        return codebooks.unpack_codes(encoded[:, : self.layout.width], self.documents.m, self.bits)

    def _decode(self, codes: Codes) -> Floats:
        z = self.documents._decoded(self.codes_of(codes), self.query_codebook_.astype(np.float32))
        turned = z @ self.query_map_.astype(np.float32)
        return codebooks.add_mean(self.query_mean_, factor(codes, -1)[:, None] * turned)

    def _scorer(self, queries: Floats) -> LookupScorer:
        folded = queries @ self.query_map_.T.astype(np.float32)
        tables = self.documents._tables(folded, self.query_codebook_.astype(np.float32))
        return LookupScorer(queries @ self.query_mean_, tables, factors=1)


class FixedCodesPQ(LearnedPQ):
    """Base of those whose codes stay in training, so that they may start from what is slow to encode.

    Parameters are those of `LearnedPQ`, with `tree` on: without it, worse, and much faster to fit and encode.
    """

    def __init__(self, size: int, bits: int = 8, tree: bool = True) -> None:
        super().__init__(size, bits, tree)


def document_side(size: int, bits: int, tree: bool) -> VPQ:
    """Return the quantizer to start from."""
    return VTQ(size, bits) if tree else VPQ(size, bits)


def query_aware_maps(centred: Floats, queries: Floats) -> tuple[Floats, Floats]:
    """Return maps `A`, `B` (dim, dim), ``<A'q, B'x> = <q, x>``, in whose coordinates queries and documents vary alike.

    The second moments of both become the same diagonal matrix, of singular values of ``K_Q^(1/2) K_X^(1/2)`` (LeanVec,
    closed form): what VPQ assumes of queries, that they spread like documents, then holds. Few queries do not span the
    space, so that theirs is shrunk towards the documents'.
    """
    n, dim = queries.shape
    k_x, k_q = second_moment(centred), second_moment(queries)
    share = dim / (dim + n)
    k_q = (1 - share) * k_q + share * (np.trace(k_q) / max(np.trace(k_x), 1e-300)) * k_x
    if not k_x.any() or not k_q.any():
        return np.eye(dim, dtype=np.float32), np.eye(dim, dtype=np.float32)
    a, b = closed_form(k_q, k_x, dim)
    return a.astype(np.float32), b.astype(np.float32)
