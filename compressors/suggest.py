"""The best codec within a budget, by trial on a sample.

Every candidate that fits the budget is fitted on part of a sample and encodes it; held-out embeddings then search the
codes. The score is the share of their exact ten nearest that the codes return (tie-aware Recall@10), and no judgement
plays a part.

Codebooks are not in the budget, but a codec with many and few rows has learned these by heart: what its vectors share
is spread over the vectors that the index will hold, and a codec whose share is more than half a float32 vector is
*heavy*. It is listed last and never chosen, unless nothing else is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragq.checks import check_embeddings, check_int
from ragq.compressors.base import Compressor
from ragq.compressors.spec import from_spec
from ragq.errors import InvalidArgumentError

__all__ = ["Candidate", "Suggestion", "suggest"]

Floats = NDArray[np.float32]
SAMPLE_ROWS = 10_000  # as many as tell the candidates apart, in seconds
HELD_OUT = 500
FEWEST_ROWS = 40  # below, held-out neighbours say nothing
K = 10
HEAVY = 0.5  # of a float32 vector; what `ragq eval` calls heavy, too


@dataclass(frozen=True)
class Candidate:
    """A spec that was tried.

    Attributes
    ----------
    spec : str
    code_bytes : int
        Bytes a vector.
    recall : float
        Tie-aware Recall@10 against exact search, of held-out queries in the sample.
    shared_bytes : float
        Codebooks, rotations and the like, divided by the vectors that the index will hold.
    heavy : bool
        Whether `shared_bytes` outweigh half a float32 vector.
    """

    spec: str
    code_bytes: int
    recall: float
    shared_bytes: float
    heavy: bool


@dataclass(frozen=True)
class Suggestion:
    """What `suggest` found.

    Attributes
    ----------
    spec : str
        The best candidate.
    reason : str
        Why, in a sentence.
    table : tuple of Candidate
        All that were tried, best first, heavy ones last.
    """

    spec: str
    reason: str
    table: tuple[Candidate, ...]


def suggest(
    x: ArrayLike, budget: int, queries: ArrayLike | None = None, *, count: int | None = None, seed: int = 0
) -> Suggestion:
    """Choose the codec for embeddings and a budget.

    Parameters
    ----------
    x : array_like of float, shape (n, dim)
        A sample of the document embeddings.
    budget : int
        Bytes a vector, side floats included.
    queries : array_like of float, shape (n_queries, dim), optional
        Query embeddings. Without them, documents that are held out of the sample ask.
    count : int, optional
        Vectors that the index will hold; as many as in the sample when None.
    seed : int
        Draws the sample.

    Returns
    -------
    Suggestion
    """
    rows = check_embeddings(x)
    check_int(budget, "budget", 1)
    count = len(rows) if count is None else check_int(count, "count", 1)
    dim = rows.shape[1]
    order = np.random.default_rng(seed).permutation(len(rows))[: SAMPLE_ROWS + HELD_OUT]
    if queries is None:
        held_out = min(HELD_OUT, len(order) // 5)
        asked, rows = rows[order[:held_out]], rows[np.sort(order[held_out:])]
    else:
        asked, rows = check_embeddings(queries, dim, name="queries")[:HELD_OUT], rows[np.sort(order[:SAMPLE_ROWS])]
    specs = list(candidates(dim, budget, len(rows)))  # never empty: PCA1,FP8 takes one byte
    if len(rows) < FEWEST_ROWS or len(asked) == 0:
        spec = max(specs, key=lambda each: from_spec(each).code_size_at(dim))
        return Suggestion(spec, f"{spec} is the finest code within {budget} bytes; too few rows to try others.", ())
    exact = asked @ rows.T
    table = [trial(from_spec(spec), rows, asked, exact, count, seed) for spec in specs]
    table.sort(key=lambda row: (row.heavy, -row.recall, row.code_bytes))
    return Suggestion(
        table[0].spec,
        reason(table, budget, f"{len(asked)} {'queries' if queries is not None else 'held-out documents'}", len(rows)),
        tuple(table),
    )


def candidates(dim: int, budget: int, rows: int) -> Iterator[str]:
    """Yield the specs to try: of each family the largest code within the budget, where `rows` are enough to fit it."""
    families: list[list[str]] = [
        ["F32", "F16", "INT8", "FP8"],
        [f"VTQ{budget}"],
        [f"VPQ{budget}"],
        [f"SAQ{quarters / 4:g}" for quarters in range(32, 0, -1)],
        [f"PQ{m}x8(length)" for m in (budget - 2, dim) if m > 0],
        [f"PCA{budget},FP8"],
        [f"TQ{bits}" for bits in range(8, 0, -1)],
        [f"RBQ{bits}" for bits in range(8, 0, -1)],
        ["BIN(centred,length)", "BIN"],
    ]
    for family in families:
        for spec in family:
            if fits(spec, dim, budget, rows):
                yield spec
                break


def fits(spec: str, dim: int, budget: int, rows: int) -> bool:
    """Tell whether a spec can work at `dim` dimensions within the budget, fitted on `rows` rows."""
    try:
        compressor = from_spec(spec)
        return compressor.code_size_at(dim) <= budget and compressor.minimum_rows <= rows
    except InvalidArgumentError:
        return False


def trial(compressor: Compressor, rows: Floats, queries: Floats, exact: Floats, count: int, seed: int) -> Candidate:
    """Fit one candidate and measure it; `exact` holds the true scores (n_queries, n), `count` rows share its state."""
    compressor.fit(rows, seed=seed)
    shared = sum(array.nbytes for array in compressor.state.values()) / count
    scores = queries @ compressor.decode(compressor.encode(rows)).T  # what its scorer would give, by one product
    k = min(K, len(rows))
    kth = -np.partition(-exact, k - 1, axis=1)[:, k - 1 : k]
    found = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    hits = np.take_along_axis(exact, found, axis=1) >= kth - 1e-6
    heavy = shared > HEAVY * rows.itemsize * rows.shape[1]
    return Candidate(compressor.spec, compressor.code_size, float(hits.mean()), shared, heavy)


def reason(table: list[Candidate], budget: int, asked: str, n: int) -> str:
    """Say why the first of the table was chosen."""
    best = table[0]
    size = f"{best.code_bytes} bytes, and {best.shared_bytes:.0f} of what all vectors share"
    text = f"{best.spec} ({size}) returns {best.recall:.1%} of the exact top {K} of {asked} among {n}"
    if len(table) > 1 and not table[1].heavy:
        text += f"; next within {budget} bytes: {table[1].spec} {table[1].recall:.1%}"
    heavy = [f"{row.spec} ({row.shared_bytes:.0f} bytes a vector)" for row in table[1:] if row.heavy]
    if heavy:
        text += f"; passed over, as its codebooks outweigh half of float32: {', '.join(heavy)}"
    return text + "."
