"""The frontier: the upper hull of quality against bytes, and the best that fits a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from typing import Any

__all__ = ["best_within", "upper_hull"]

Row = Mapping[str, Any]


def upper_hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points on the upper hull of quality against the logarithm of bytes.

    Parameters
    ----------
    points : sequence of (bytes, quality)
        Bytes above 0.

    Returns
    -------
    list of int
        Indices, from few bytes to many. Each has higher quality than all before it, and no point lies above the line
        between two neighbours. Of equal points the first is named.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    hull: list[int] = []
    for i in order:
        if hull and points[i][1] <= points[hull[-1]][1]:
            continue  # no better than one with at most as many bytes
        while len(hull) >= 2 and _under(points[hull[-2]], points[hull[-1]], points[i]):
            hull.pop()
        hull.append(i)
    return hull


def _under(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether `b` lies on or under the line from `a` to `c`, bytes on a log scale."""
    ax, bx, cx = log2(a[0]), log2(b[0]), log2(c[0])
    return (b[1] - a[1]) * (cx - ax) <= (c[1] - a[1]) * (bx - ax)


def best_within(rows: Sequence[Row], budget: float, measure: str, size: str = "code_bytes") -> Row | None:
    """Return the row of the highest `measure` among those of at most `budget` bytes; None when nothing fits.

    Heavy runs (see `ragq.eval.tables`) are passed over. Equal quality: fewer bytes, then the name. The page's slider
    follows the same rule.
    """
    fitting = [row for row in rows if row.get(measure) is not None and row[size] <= budget and not row.get("heavy")]
    return min(fitting, key=lambda row: (-row[measure], row[size], row["spec"]), default=None)
