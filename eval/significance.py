"""Paired bootstrap over queries: how sure a mean, and a difference of means, is.

Efron and Tibshirani's percentile bootstrap: the queries of each data set are drawn again with replacement, the same
draw for every spec (paired), and a mean over data sets is the mean of the data sets' means (as BEIR averages).
BEIR's small sets have a few hundred queries: differences below about .02 are usually ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.errors import InvalidArgumentError

__all__ = ["Comparison", "bootstrap_means", "compare", "interval"]

CHUNK = 2000  # draws at a time


@dataclass(frozen=True)
class Comparison:
    """A paired difference of means.

    Attributes
    ----------
    difference : float
        Mean of the one less mean of the other.
    low, high : float
        95 % percentile interval of the difference.
    p_value : float
        Two-sided: twice the share of draws on the other side of 0.
    """

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval leaves out 0."""
        return self.low > 0 or self.high < 0


def bootstrap_means(
    values: Sequence[NDArray[np.float64]], *, draws: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    """Return bootstrap draws of the mean over data sets.

    Parameters
    ----------
    values : sequence of ndarray of float64, shape (n_specs, n_queries)
        Values by query, one array a data set, the same specs in each.
    draws : int
    seed : int

    Returns
    -------
    ndarray of float64, shape (draws, n_specs)
    """
    check_int(draws, "draws", 1)
    if not values or any(v.ndim != 2 or v.shape[1] == 0 for v in values):
        raise InvalidArgumentError("The bootstrap needs at least one query in each data set.")
    rng = np.random.default_rng(seed)
    means = np.zeros((draws, len(values[0])))
    for table in values:
        queries = table.shape[1]
        for start in range(0, draws, CHUNK):
            stop = min(start + CHUNK, draws)
            counts = rng.multinomial(queries, np.full(queries, 1 / queries), size=stop - start)
            means[start:stop] += counts @ table.T / queries
    return means / len(values)


def interval(draws: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws, shape (draws,)."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def compare(draws: NDArray[np.float64], means: NDArray[np.float64], spec: int, reference: int) -> Comparison:
    """Compare two specs.

    Parameters
    ----------
    draws : ndarray of float64, shape (draws, n_specs)
        From `bootstrap_means`.
    means : ndarray of float64, shape (n_specs,)
        The means themselves.
    spec, reference : int
        Columns.
    """
    difference = draws[:, spec] - draws[:, reference]
    low, high = interval(difference)
    other_side = min(np.count_nonzero(difference <= 0), np.count_nonzero(difference >= 0))
    p_value = float(min(1.0, 2 * (other_side + 1) / (len(difference) + 1)))
    return Comparison(float(means[spec] - means[reference]), low, high, p_value)
