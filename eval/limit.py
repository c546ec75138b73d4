"""LIMIT's stress test: how many documents a code can hold when every pair of them must be some query's top two.

Weller et al., "On the Theoretical Limitations of Embedding-Based Retrieval" (arXiv 2508.21038), section 4: for `n`
documents, one free query for each of the ``n (n - 1) / 2`` pairs, both sides optimised directly (no text, no model) by
InfoNCE over all documents, temperature 0.1, Adam with learning rate 0.01, unit norm after every step. The critical `n`
is the largest for which every query finds its pair. Here the queries see the documents as a codec decodes them (the
gradient passes straight through it), which gives the critical `n` of a code, and its *effective dimension*: the
dimension whose float32 vectors hold as many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int, normalized
from ragq.compressors import from_spec
from ragq.errors import RagqError

__all__ = ["Capacity", "capacities", "critical_n", "holds"]

Floats = NDArray[np.float32]

TEMPERATURE = 0.1
LEARNING_RATE = 0.01
STEPS = 2000  # of one attempt; it ends at the first step at which every query is answered
REFIT = 100  # steps between two fits of the codec
TRIES = 2  # seeds before a size counts as too large
LARGEST = 128


@dataclass(frozen=True)
class Capacity:
    """What a code holds.

    Attributes
    ----------
    spec : str
    code_bytes : int
    critical_n : int
        Documents of which any two can be the top two.
    effective_dim : float
        Dimension of float32 vectors that hold as many, between whole dimensions by linear interpolation.
    error : str, optional
        Why there is no number.
    """

    spec: str
    code_bytes: int
    critical_n: int
    effective_dim: float
    error: str | None = None


class Adam:
    """Adam (Kingma and Ba 2015) for one array."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean, self.square, self.steps = np.zeros(shape, np.float32), np.zeros(shape, np.float32), 0

    def step(self, x: Floats, gradient: Floats) -> Floats:
        """Return `x` after one step down the gradient."""
        self.steps += 1
        self.mean += 0.1 * (gradient - self.mean)
        self.square += 0.001 * (gradient**2 - self.square)
        mean, square = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.999**self.steps)
        return x - np.float32(LEARNING_RATE) * mean / (np.sqrt(square) + 1e-8)


def holds(n: int, dim: int, spec: str | None = None, *, seed: int = 0) -> bool:
    """Whether free embeddings answer every pair of `n` documents, the documents seen through `spec` (None: exactly).

    Raises
    ------
    InvalidArgumentError
        The codec needs more documents to fit, or cannot work at `dim` dimensions.
    """
    pairs = np.array(list(combinations(range(n), 2)))
    if len(pairs) < 2:
        return True
    rng = np.random.default_rng(seed)
    documents = normalized(rng.normal(size=(n, dim)).astype(np.float32))
    queries = normalized(documents[pairs].sum(axis=1))
    sides = Adam(queries.shape), Adam(documents.shape)
    target = np.zeros((len(pairs), n), np.float32)
    np.put_along_axis(target, pairs, 0.5, axis=1)
    seen: Callable[[Floats], Floats] = lambda x: x  # noqa: E731
    for step in range(STEPS):
        if spec is not None and step % REFIT == 0:
            codec = from_spec(spec).fit(documents, seed=seed)
            seen = lambda x, codec=codec: codec.decode(codec.encode(x))  # type: ignore[misc]  # noqa: E731
        decoded = seen(documents)
        scores = queries @ decoded.T
        wanted = np.take_along_axis(scores, pairs, axis=1).min(axis=1)
        if (wanted > np.where(target > 0, -np.inf, scores).max(axis=1)).all():
            return True
        weights = np.exp((scores - scores.max(axis=1, keepdims=True)) / TEMPERATURE)
        gradient = (weights / weights.sum(axis=1, keepdims=True) - target).astype(np.float32)
        queries, documents = (
            normalized(sides[0].step(queries, gradient @ decoded)),
            normalized(sides[1].step(documents, gradient.T @ queries)),
        )
    return False


def critical_n(dim: int, spec: str | None = None, *, seed: int = 0) -> int:
    """Return the largest `n` that free embeddings of `dim` dimensions hold, found by doubling, then halving."""
    check_int(dim, "dim", 2)

    def fits(n: int) -> bool:
        return any(holds(n, dim, spec, seed=seed + 1000 * attempt) for attempt in range(TRIES))

    low, high = 2, 4
    while high <= LARGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def capacities(specs: Sequence[str], dim: int, *, seed: int = 0) -> list[Capacity]:
    """Return what each spec holds at `dim` dimensions, float32 first; a spec that fails has its error.

    The float32 numbers of all smaller dimensions are measured too: they are the scale of the effective dimension.
    """
    scale = [critical_n(d, seed=seed) for d in range(2, check_int(dim, "dim", 2, 16) + 1)]
    found = [Capacity("F32", 4 * dim, scale[-1], float(dim))]
    for spec in dict.fromkeys(specs):
        try:
            codec = from_spec(spec)
            size, n = codec.code_size_at(dim), critical_n(dim, spec, seed=seed)
        except RagqError as error:
            found.append(Capacity(spec, 0, 0, 0.0, str(error)))
            continue
        if str(codec) != "F32":
            effective = float(np.interp(n, np.maximum.accumulate(scale), np.arange(2, dim + 1)))
            found.append(Capacity(str(codec), size, n, effective))
    return found
