"""The frontier as a picture: one panel a data set, and the average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragq.errors import missing_extra
from ragq.eval.tables import BASELINE, of_dataset

__all__ = ["plot_frontier"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a0d3", "#8a63d2", "#7a7a7a", "#c23b3b", "#3a9d9d")
MARKERS = "osD^PX*hvp"


def plot_frontier(rows: Sequence[dict[str, Any]], path: Path, measure: str = "ndcg@10") -> None:
    """Write a PNG of `measure` against code bytes on a log scale; the hull is drawn and its specs are named.

    Parameters
    ----------
    rows : sequence of dict
        From `ragq.eval.tables.make_rows`.
    path : Path
    measure : str
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "eval") from None
    panels = [name for name in dict.fromkeys(row["dataset"] for row in rows) if of_dataset(rows, name)]
    families = list(dict.fromkeys(row["family"] for row in rows))
    styles = {name: (COLOURS[i % 10], MARKERS[(i + i // 10) % 10]) for i, name in enumerate(families)}
    figure = Figure(figsize=(5.4 * max(1, len(panels)), 4.6), dpi=140, layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axis, name in zip(axes, panels, strict=False):
        _panel(axis, of_dataset(rows, name), measure, styles)
        axis.set_title(name)
    axes[0].set_ylabel(measure.replace("ndcg", "nDCG").replace("recall", "Recall"))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(labels) or 1), frameon=False)
    figure.savefig(path)


def _panel(axis: Any, rows: Sequence[Mapping[str, Any]], measure: str, styles: Mapping[str, tuple[str, str]]) -> None:
    """Draw the runs of one data set."""
    for family, (colour, marker) in styles.items():
        mine = [row for row in rows if row["family"] == family]
        x, y = [row["code_bytes"] for row in mine], [row[measure] for row in mine]
        faint = [0.25 if row["heavy"] else 1.0 for row in mine]
        axis.scatter(
            x,
            y,
            s=34,
            c=colour,
            marker=marker,
            label=family,
            edgecolors="white",
            linewidths=0.5,
            zorder=3,
            alpha=faint or None,
        )
    points = [(row["code_bytes"], row[measure]) for row in rows]
    hull = sorted((i for i, row in enumerate(rows) if row["on_frontier"]), key=lambda i: points[i])
    axis.plot(*zip(*(points[i] for i in hull), strict=True), color="#555", linewidth=1, linestyle=":", zorder=2)
    for place, i in enumerate(hull):  # the first label would leave the panel to the left
        offset, side = ((6, -3), "left") if place == 0 else ((-4, 5), "right")
        axis.annotate(
            rows[i]["spec"], points[i], textcoords="offset points", xytext=offset, ha=side, fontsize=7, color="#333"
        )
    for row in rows:
        if row["spec"] == BASELINE:
            axis.axhline(row[measure], color="#999", linewidth=0.8, zorder=1)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("code bytes per vector")
    axis.margins(x=0.12, y=0.12)
    axis.grid(True, color="#e6e6e6", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
