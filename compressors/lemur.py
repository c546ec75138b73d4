"""LEMUR: one vector a document, fitted so that its inner product with a query's one vector is nearest to MaxSim.

MaxSim of a query and a document `D` is the sum over the query's tokens of ``h_D(t) = max over x in D of <t, x>``, a
function of a single token. LEMUR (Jääsaari, Hyvönen and Roos, "Lemur: learned multi-vector retrieval", ICML 2026, arXiv
2601.21853) learns features ``phi(t)`` in which every `h_D` is nearly linear: the sum of `phi` over a query's tokens is
then the query's vector, and the coefficients of `h_D`, by least squares, are the document's. The paper trains a network
of one hidden layer for `phi`; here it is a kernel's ridge regression, which is solved in one step:

    k(t, a) = exp(-gamma |t - a|^2 / 2)                        for anchors a_1 .. a_A, centroids of tokens
    h_D(t) - mean(t) ~ k(t)' (K + ridge I)^-1 (h_D - mean)     K = k(a_i, a_j), h_D on the anchors

The `dims` directions that hold most of what this predicts at the anchors, over the documents of the sample, are kept:
with ``P`` those predictions and ``P ~ U S V'``, a document has ``F(D) = U' K (K + ridge I)^-1 (h_D - mean)``, and a
query the sum of ``k(t)' K^-1 U``. `mean` is that over the sample's documents: a score is MaxSim less what a query finds
in a document on average, which moves no ranking.

On the token embeddings of MiniLM, the 100 candidates of ``LEMUR640,PQ320x8`` (320 bytes) hold 99 % of exact MaxSim's
ten best on Cranfield and 95 % on SciFact, those of ``MUVERA(20,4,8),PQ320x8`` 90 % and 79 %. At unseen query tokens of
SciFact, least squares on MUVERA's buckets explain half of the variance of `h_D`, the kernel of 4,096 anchors 84 %. The
state is larger than MUVERA's: ``2 anchors (dim + 2 dims + 2)`` bytes, once, as its matrices are stored in float16.

Bytes per document: those of the codec that follows, over `dims` dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors.base import Floats
from ragq.compressors.codebooks import kmeans, sample_rows
from ragq.compressors.exact import exact_matmul
from ragq.compressors.tokens import TokenStage
from ragq.errors import InvalidArgumentError
from ragq.tokens import TokenEmbeddings

__all__ = ["LEMUR"]

ROWS_PER_ANCHOR = 24
ITERATIONS = 5  # of k-means
RIDGE = 0.01
FIT_DOCUMENTS = 4096
SMALLEST = 1e-6  # singular values below this share of the largest are noise
COARSE_BITS = 12  # two factors of 12 bits: sums stay within 2^24, the integers that float32 holds
CHUNK_TOKENS = 1 << 13


class LEMUR(TokenStage):
    """Encodings of multi-vector embeddings, learned by regression on MaxSim with single tokens.

    Parameters
    ----------
    dims : int
        Dimensions of an encoding; those beyond the number of documents in the sample stay 0.
    anchors : int
        Centroids of the sample's tokens that a document is scored with; the more, the nearer to MaxSim and the slower
        to encode.
    gamma : float
        Of the kernel: how fast tokens cease to say something of each other, for tokens of unit length.
    """

    forms = ("LEMUR{dims}",)
    state_names = ("anchors_", "mean_", "query_map_", "document_map_")

    anchors_: Floats  # (anchors, dim)
    mean_: Floats  # (anchors,), MaxSim of the anchors with a document of the sample, on average
    query_map_: Floats  # (anchors, dims), from the kernel with the anchors
    document_map_: Floats  # (anchors, dims), from MaxSim with the anchors

    matrices = ("anchors_", "query_map_", "document_map_")  # rounded to float16, and stored so
    state_dtypes = dict.fromkeys(matrices, "float16")

    def __init__(self, dims: int, anchors: int = 2048, gamma: float = 1.0) -> None:
        self.dims = check_int(dims, "dims", 1, 1 << 14)
        self.anchors = check_int(anchors, "anchors", self.dims, 1 << 16)
        if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 < gamma <= 100:
            raise InvalidArgumentError(f"'gamma' of LEMUR must be a number above 0, at most 100. Got {gamma!r}.")
        self.gamma = float(gamma)

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return self.anchors

    @property
    def dim_out(self) -> int:
        """Dimensions of an encoding."""
        return self.dims

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        return super().state | {name: getattr(self, name).astype(np.float16) for name in self.matrices}

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        super()._check_state(arrays)
        for name in self.matrices:
            setattr(self, name, arrays[name].astype(np.float32))

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        maps = (self.anchors, self.dims)
        return {
            "anchors_": (self.anchors, self.dim),
            "mean_": (self.anchors,),
            "query_map_": maps,
            "document_map_": maps,
        }

    def _fit_tokens(self, tokens: TokenEmbeddings, queries: TokenEmbeddings | None, rng: np.random.Generator) -> None:
        self.anchors_ = to_half(self._spread(tokens.values, rng))
        whole = np.flatnonzero(tokens.counts)
        chosen = np.sort(rng.choice(whole, min(len(whole), FIT_DOCUMENTS), replace=False))
        wholes = self._maxsim(tokens.take(chosen))
        self.mean_ = wholes.mean(axis=0, dtype=np.float64).astype(np.float32)
        kernel = self._kernel(self.anchors_).astype(np.float64)
        ridge = kernel + RIDGE * np.eye(self.anchors)
        weights = np.linalg.solve(ridge, (wholes - self.mean_).astype(np.float64).T)
        predicted = (kernel @ weights).T  # documents x anchors
        directions, squares = main_directions(predicted, self.dims)
        inverse = np.divide(1, squares, out=np.zeros(self.dims), where=squares > 0)
        self.query_map_ = to_half(weights @ (predicted @ directions) * inverse)
        # K (K + ridge I)^-1 = I - ridge (K + ridge I)^-1
        self.document_map_ = to_half(directions - RIDGE * np.linalg.solve(ridge, directions))

    def _spread(self, x: Floats, rng: np.random.Generator) -> Floats:
        """Return anchors: k-means centroids, which lie more evenly than tokens do, as long as tokens on average."""
        rows = sample_rows(x, ROWS_PER_ANCHOR * self.anchors, rng)
        found = kmeans(rows, self.anchors, iterations=ITERATIONS, seed=int(rng.integers(2**31)))
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        usual = np.linalg.norm(rows, axis=1).mean()
        return np.divide(found * usual, lengths, out=found.copy(), where=lengths > 0).astype(np.float32)

    def _kernel(self, x: Floats) -> Floats:
        """Return the kernel of tokens with the anchors, `(n, anchors)`."""
        lengths = np.square(x).sum(axis=1)[:, None] + np.square(self.anchors_).sum(axis=1)
        distances = np.maximum(lengths - 2 * (x @ self.anchors_.T), 0)
        kernel: Floats = np.exp(np.float32(-self.gamma / 2) * distances)
        return kernel

    def _maxsim(self, documents: TokenEmbeddings) -> Floats:
        """Return MaxSim of each anchor with each document, `(n, anchors)`, 0 without tokens; the same in any batch."""
        anchors = coarse(self.anchors_)
        best = np.full((len(documents), self.anchors), -np.inf, np.float32)
        number = np.repeat(np.arange(len(documents)), documents.counts)
        for start in range(0, documents.total, CHUNK_TOKENS):
            part = slice(start, min(start + CHUNK_TOKENS, documents.total))
            starts = np.flatnonzero(np.diff(number[part], prepend=-1))
            products = anchors @ coarse(documents.values[part]).T
            here = number[part][starts]
            best[here] = np.maximum(best[here], np.maximum.reduceat(products, starts, axis=1).T)
        best[documents.counts == 0] = 0
        return best

    def encode_documents(self, documents: TokenEmbeddings) -> Floats:
        """Return the encodings of documents, `(n, dims)` float32, each from its own tokens; zeros without any."""
        self._check_tokens(documents)
        encodings = exact_matmul(self._maxsim(documents) - self.mean_, self.document_map_)
        encodings[documents.counts == 0] = 0
        return encodings

    def encode_queries(self, queries: TokenEmbeddings) -> Floats:
        """Return the encodings of queries, `(n, dims)` float32; a query without tokens gives zeros."""
        self._check_tokens(queries, "queries")
        sums = np.zeros((len(queries), self.anchors), np.float32)
        number = np.repeat(np.arange(len(queries)), queries.counts)
        for start in range(0, queries.total, CHUNK_TOKENS):
            part = slice(start, min(start + CHUNK_TOKENS, queries.total))
            starts = np.flatnonzero(np.diff(number[part], prepend=-1))
            kernel = np.ascontiguousarray(self._kernel(queries.values[part]).T)
            sums[number[part][starts]] += np.add.reduceat(kernel, starts, axis=1).T
        return sums @ self.query_map_


def to_half(x: NDArray[Any]) -> Floats:
    """Round to what float16 holds, the largest for what is beyond."""
    most = np.finfo(np.float16).max
    rounded: Floats = x.clip(-most, most).astype(np.float16).astype(np.float32)
    return rounded


def main_directions(x: NDArray[np.float64], m: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the `m` main right singular vectors of `x` and the squares of their singular values.

    Parameters
    ----------
    x : ndarray of float64, shape (n, d)
    m : int
        At most `d`.

    Returns
    -------
    directions : ndarray of float64, shape (d, m)
        Zeros beyond the rank of `x`.
    squares : ndarray of float64, shape (m,)
        0 there.
    """
    wide = len(x) < x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    squares, vectors = squares[::-1][:m], vectors[:, ::-1][:, :m]
    kept = int((squares > SMALLEST**2 * squares[:1]).sum())
    directions = np.zeros((x.shape[1], m))
    directions[:, :kept] = x.T @ (vectors[:, :kept] / np.sqrt(squares[:kept])) if wide else vectors[:, :kept]
    return directions, np.concatenate([squares[:kept], np.zeros(m - kept)])


def coarse(x: Floats) -> Floats:
    """Round each row to multiples of a power of two so that its length is at most 2^12 of them.

    Every partial sum of an inner product of two such rows is then a whole number that float32 holds, so that a product
    of matrices adds exactly, in any order. The product of two unit vectors is within about 0.0002 of the true one.
    """
    lengths = np.sqrt(np.square(x, dtype=np.float64).sum(axis=1))
    _, exponent = np.frexp(1.5 * lengths)
    step = np.ldexp(np.float32(1), exponent - COARSE_BITS)[:, None].astype(np.float32)
    rounded: NDArray[np.float32] = np.rint(x / step) * step
    return rounded
