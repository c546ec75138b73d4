"""The interactive report: one HTML file with its data, its script and plotly inside, and no request to any host.

``page.html`` is the frame, ``page.css`` and ``page.js`` are put into it. The page's rules for the frontier and for the
best within a budget are those of `ragq.eval.frontier`; a test compares them in a browser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragq.errors import missing_extra
from ragq.eval.datasets import Dataset
from ragq.eval.sweep import Result

__all__ = ["render"]

FOLDER = Path(__file__).parent
PASSAGES = 3  # shown for each query and spec
CHARACTERS = 320  # of a passage

Row = Mapping[str, Any]


def render(
    rows: Sequence[Row],
    results: Sequence[Result],
    datasets: Sequence[Dataset],
    *,
    measure: str,
    measures: Sequence[str],
    about: Sequence[tuple[str, str]],
) -> str:
    """Return the page.

    Parameters
    ----------
    rows : sequence of dict
        From `ragq.eval.tables.make_rows`.
    results : sequence of Result
    datasets : sequence of Dataset
    measure : str
        The main measure.
    measures : sequence of str
        All that the page offers.
    about : sequence of (str, str)
        How this was measured: names and values.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise missing_extra("plotly", "eval") from None
    runs = {dataset.name: part for dataset in datasets if (part := _runs(dataset, results, measure))}
    data = {
        "measure": measure,
        "measures": list(measures),
        "summary": _summary(rows, datasets),
        "rows": list(rows),
        "runs": runs,
        "about": list(about),
    }
    parts = {
        "@@CSS@@": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "@@SCRIPT@@": (FOLDER / "page.js").read_text(encoding="utf-8"),
        "@@DATA@@": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "@@PLOTLY@@": get_plotlyjs().replace("</script", "<\\/script"),
    }
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    for mark, text in parts.items():
        before, _, after = page.partition(mark)
        page = before + text + after
    return page


def _summary(rows: Sequence[Row], datasets: Sequence[Dataset]) -> str:
    specs = len({row["spec"] for row in rows})
    sizes = "; ".join(f"{d.name}: {len(d.ids):,} documents, {len(d.queries):,} queries" for d in datasets)
    return f"{specs} specs. {sizes}."


def _runs(dataset: Dataset, results: Sequence[Result], measure: str) -> dict[str, Any] | None:
    """Return what the query-by-query part needs of one data set; None when no run on it finished."""
    mine = [result for result in results if result.dataset == dataset.name and result.error is None]
    if not mine:
        return None
    rows = {row for result in mine for found in result.top for row in found[:PASSAGES]}
    place = {document: row for row, document in enumerate(dataset.ids)}
    judged = dataset.qrels or {}
    return {
        "queries": dataset.queries,
        "specs": {
            result.spec: {
                "scores": [round(value, 6) for value in result.by_query[measure]],
                "top": [found[:PASSAGES] for found in result.top],
            }
            for result in mine
        },
        "passages": {row: [dataset.ids[row], _passage(dataset, row)] for row in sorted(rows)},
        "relevant": [
            {
                place[document]: grade
                for document, grade in judged.get(query, {}).items()
                if document in place and grade > 0
            }
            for query in dataset.query_ids
        ],
    }


def _passage(dataset: Dataset, row: int) -> str:
    text = " · ".join(part for part in (dataset.titles[row], dataset.texts[row]) if part)
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS].rstrip()}…"
