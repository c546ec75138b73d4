"""MaxSim over coded vectors: ``sum over query tokens t of max over the document's vectors x of <t, x>``.

Numbers (F32, F16, BF16, FP8, INT8) and codewords (PQ) are scored where they lie, by C++ loops; the vectors of any other
codec by its own scorer. A transform before the codec is folded into the query tokens, once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.base import Chain, Compressor
from ragq.compressors.pq import PQ
from ragq.compressors.refine import Refined
from ragq.compressors.scorers import DenseScorer, LinearScorer, LookupScorer
from ragq.layouts import Block
from ragq.retrievers import kernels
from ragq.retrievers.kernels.chosen import CodedVectors, maxsim_chosen
from ragq.select import topk, unpack_mask
from ragq.tokens import TokenEmbeddings, run_rows

__all__ = ["QueryTokens"]

Bitset = NDArray[np.uint8]
Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
Result = tuple[Floats, Numbers]
CHUNK_SCORES = 1 << 24  # query tokens times vectors that are scored at once


@dataclass(frozen=True)
class QueryTokens:
    """The tokens of queries, prepared for the vectors of one codec.

    Attributes
    ----------
    offsets : ndarray of int64, shape (n_queries + 1,)
        Query `a` has the tokens ``offsets[a]`` to ``offsets[a + 1]``.
    quantizer : Compressor
        The codec, less the transforms.
    scorer : LinearScorer
        The tokens, folded through the transforms; without tables where the C++ loops decode codewords.
    folded : ndarray of float32, shape (total, dim)
    bias : ndarray of float32, shape (n_queries,)
        What the transforms and the codec add to every score.
    """

    offsets: Numbers
    quantizer: Compressor
    scorer: LinearScorer
    folded: Floats
    bias: Floats

    @classmethod
    def prepare(cls, codec: Compressor, queries: TokenEmbeddings) -> QueryTokens:
        """Fold query tokens through the transforms of a codec and prepare them for its codes."""
        folded, added, quantizer = queries.values, np.zeros(queries.total, np.float32), codec
        if isinstance(codec, Chain):
            quantizer = codec.quantizer
            for transform in codec.transforms:
                folded, part = transform.fold(folded)
                added = added + part
        folded = np.ascontiguousarray(folded, np.float32)
        scorer = _light(quantizer, folded) or quantizer._scorer(folded)
        number = np.repeat(np.arange(len(queries)), queries.counts)
        bias = np.bincount(number, weights=scorer.bias + added, minlength=len(queries)).astype(np.float32)
        return cls(queries.offsets, quantizer, scorer, folded, bias)

    @property
    def n_queries(self) -> int:
        return len(self.offsets) - 1

    def all(self, block: Block, offsets: Numbers, k: int, mask: Bitset | None, threads: int) -> Result:
        """Return the best `k` documents of a block for each query.

        Parameters
        ----------
        block : Block
            Vectors of the documents, one document after the other.
        offsets : ndarray of int64, shape (n + 1,)
        k : int
        mask : ndarray of uint8, optional
            Bitset of documents, 1 = may be returned.
        threads : int

        Returns
        -------
        scores, documents : ndarray, shape (n_queries, k)
            As `ragq.select.topk` gives them. A query without tokens, and a document without vectors, gives nothing.
        """
        n = len(offsets) - 1
        if not self._dense(block):
            live = np.arange(n) if mask is None else np.flatnonzero(unpack_mask(mask, n))
            return self.chosen(block, offsets, np.tile(live, (self.n_queries, 1)), k, threads)
        assert isinstance(self.scorer, DenseScorer)
        scores, documents = kernels.maxsim(
            block.columns["codes"],
            self.scorer.queries,
            offsets=offsets,
            query_offsets=self.offsets,
            dtype=self.scorer.dtype,
            levels=self.scorer.levels,
            k=k,
            rows=n,
            bias=self.bias,
            mask=mask,
            threads=threads,
        )
        empty = (np.diff(self.offsets) == 0)[:, None]
        return np.where(empty, np.float32(-np.inf), scores), np.where(empty, -1, documents)

    def chosen(self, block: Block, offsets: Numbers, documents: Numbers, k: int, threads: int) -> Result:
        """Return the best `k` of the documents chosen for each query.

        Parameters
        ----------
        block, offsets, k, threads
            As for `all`.
        documents : ndarray of int64, shape (n_queries, m)
            Ascending in each row; negative ones are none.
        """
        vectors = self._vectors(block)
        if vectors is None:
            return self._by_scorer(block, offsets, documents, k)
        return maxsim_chosen(
            kernels.implementation(),
            vectors,
            offsets=offsets,
            query_offsets=self.offsets,
            documents=documents,
            k=k,
            bias=self.bias,
            threads=threads,
        )

    def _dense(self, block: Block) -> bool:
        """Whether the codes are a number a dimension, and nothing else."""
        layout = block.layout
        return isinstance(self.scorer, DenseScorer) and layout.kind == "rows" and not (layout.factors or layout.fine)

    def _vectors(self, block: Block) -> CodedVectors | None:
        """Return a block's vectors as the C++ loops read them, or None."""
        if kernels.implementation() not in kernels.SETS:
            return None
        columns = block.columns
        if self._dense(block):
            assert isinstance(self.scorer, DenseScorer)
            return CodedVectors(columns["codes"], self.scorer.queries, self.scorer.dtype, self.scorer.levels)
        if type(self.quantizer) is not PQ:  # a subclass may score otherwise
            return None
        high, low = (columns["high"], columns["low"]) if "high" in columns else (columns["codes"], None)
        vectors = CodedVectors(
            high, self.folded, low=low, codebook=self.quantizer.codebook_, cuts=self.quantizer.offsets
        )
        return replace(vectors, **kernels.factors_of(self.scorer, block))

    def _by_scorer(self, block: Block, offsets: Numbers, documents: Numbers, k: int) -> Result:
        """Score chosen documents by the codec's own scorer, query by query."""
        scores = np.full((self.n_queries, k), -np.inf, np.float32)
        best = np.full((self.n_queries, k), -1, np.int64)
        for query, row in enumerate(documents):
            counts = np.diff(offsets)
            chosen = row[row >= 0]
            chosen = chosen[counts[chosen] > 0]
            if not len(chosen) or self.offsets[query] == self.offsets[query + 1]:
                continue
            sums = self._sums(query, block, offsets, chosen)
            scores[query], order = (part[0] for part in topk(sums[None], k))
            best[query, order >= 0] = chosen[order[order >= 0]]
        return scores, best

    def _sums(self, query: int, block: Block, offsets: Numbers, chosen: Numbers) -> Floats:
        """Return the MaxSim of one query with documents that have vectors, `(len(chosen),)`."""
        tokens = slice(int(self.offsets[query]), int(self.offsets[query + 1]))
        scorer = replace(self.scorer, bias=np.zeros_like(self.scorer.bias)).part(tokens)
        step = max(1, CHUNK_SCORES // (scorer.n_queries * max(1, int(np.diff(offsets).max()))))
        sums = []
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            ends = run_rows(offsets, part)[1]
            codes = np.concatenate([block.codes(int(offsets[d]), int(offsets[d + 1])) for d in part])
            if isinstance(self.quantizer, Refined):
                codes = np.ascontiguousarray(codes[:, self.quantizer.coarse_size :])
            most = np.maximum.reduceat(scorer.score(codes), ends[:-1], axis=1)
            sums.append(most.sum(axis=0, dtype=np.float32))
        return np.concatenate(sums) + self.bias[query]


def _light(quantizer: Compressor, tokens: Floats) -> LinearScorer | None:
    """Return a scorer without tables for codewords that the C++ loops decode: they need its bias and factors only."""
    if type(quantizer) is not PQ or kernels.implementation() not in kernels.SETS:
        return None
    bias = tokens @ quantizer.mean_ if quantizer.length else np.zeros(len(tokens), np.float32)
    return LookupScorer(bias, np.empty((len(tokens), 0, 256), np.float32), factors=int(quantizer.length))
