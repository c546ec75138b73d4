"""Results as rows: means, bootstrap intervals, significance, averages over data sets, and who is on the frontier.

A row is flat, the same in JSON, CSV and Parquet: ``dataset, spec, family, code_bytes, index_bytes_per_vector``, the
measures, for the main measure ``<measure>_low`` and ``<measure>_high`` (95 %), the paired difference from float32
(``float32_difference, float32_low, float32_high, float32_p``) and from the best compressed spec (``best_…``),
``on_frontier``, ``heavy``, the rates, and ``error`` for a run that failed.

A run is *heavy* when what its vectors share (codebooks, rotations, weights) takes more than half the bytes of the
float32 vectors: such a codec has learned the corpus by heart. It is shown, but is neither on the frontier nor best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ragq.errors import InvalidArgumentError
from ragq.eval.frontier import upper_hull
from ragq.eval.significance import Comparison, bootstrap_means, compare, interval
from ragq.eval.sweep import Result

__all__ = ["AVERAGE", "BASELINE", "fallback_measure", "make_rows", "of_dataset", "paired"]

AVERAGE = "average"
BASELINE = "F32"

Row = dict[str, Any]


def fallback_measure(results: Sequence[Result], wanted: str) -> str:
    """Return `wanted` where every finished run has it; ``agreement@10`` where some data set has no judgements."""
    finished = [result for result in results if result.error is None]
    return wanted if all(wanted in result.by_query for result in finished) else "agreement@10"


def make_rows(results: Sequence[Result], measure: str = "ndcg@10", *, seed: int = 0) -> list[Row]:
    """Turn results into rows: data set by data set, then the average when there are several.

    Parameters
    ----------
    results : sequence of Result
    measure : str
        The main measure; intervals, significance and the frontier are of it.
    seed : int
        Of the bootstrap.
    """
    datasets = list(dict.fromkeys(result.dataset for result in results))
    rows: list[Row] = []
    for dataset in datasets:
        mine = [result for result in results if result.dataset == dataset]
        finished = [result for result in mine if result.error is None]
        filled = {
            id(r): row for r, row in zip(finished, _rows(dataset, [[r] for r in finished], measure, seed), strict=True)
        }
        rows += [filled.get(id(r)) or _failed(r) for r in mine]
    if len(datasets) > 1:
        by_spec: dict[str, list[Result]] = {}
        for result in results:
            if result.error is None:
                by_spec.setdefault(result.spec, []).append(result)
        complete = [runs for runs in by_spec.values() if len(runs) == len(datasets)]
        rows += _rows(AVERAGE, complete, measure, seed)
    return rows


def paired(
    results: Sequence[Result], spec: str, reference: str, measure: str = "ndcg@10", *, seed: int = 0
) -> dict[str, Comparison]:
    """Compare any two specs, query by query.

    Returns
    -------
    dict of str to Comparison
        By data set, and on average when there are several; data sets where one of the two failed are left out.
    """
    runs = {(result.dataset, result.spec): result for result in results if result.error is None}
    datasets = [name for name, other in runs if other == spec and (name, reference) in runs]
    tables = [np.array([runs[name, s].by_query[measure] for s in (spec, reference)]) for name in datasets]
    groups = {name: [table] for name, table in zip(datasets, tables, strict=True)}
    if len(datasets) > 1:
        groups[AVERAGE] = tables
    return {
        name: compare(bootstrap_means(part, seed=seed), np.mean([table.mean(axis=1) for table in part], axis=0), 0, 1)
        for name, part in groups.items()
    }


def of_dataset(rows: Sequence[Row], dataset: str | None = None) -> list[Row]:
    """Return the finished rows of a data set; by default of the average, or of the only data set."""
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    wanted = dataset or (AVERAGE if AVERAGE in names else names[0] if names else AVERAGE)
    if wanted not in names:
        raise InvalidArgumentError(f"There is no data set '{wanted}' in the results. There: {', '.join(names)}.")
    return [row for row in rows if row["dataset"] == wanted and row.get("error") is None]


def _failed(result: Result) -> Row:
    return {"dataset": result.dataset, "spec": result.spec, "family": result.family, "error": result.error}


def _rows(dataset: str, groups: list[list[Result]], measure: str, seed: int) -> list[Row]:
    """Make the rows of one data set, or of the average: a group holds the runs of one spec, one a data set."""
    if not groups:
        return []
    rows = [_means(dataset, runs) for runs in groups]
    tables = [np.array([runs[d].by_query[measure] for runs in groups]) for d in range(len(groups[0]))]
    draws = bootstrap_means(tables, seed=seed)
    means = np.mean([table.mean(axis=1) for table in tables], axis=0)
    names = [row["spec"] for row in rows]
    compressed = [i for i, name in enumerate(names) if name != BASELINE]
    references = {
        "float32": names.index(BASELINE) if BASELINE in names else None,
        "best": max(compressed, key=lambda i: means[i]) if compressed else None,
    }
    for i, row in enumerate(rows):
        row[f"{measure}_low"], row[f"{measure}_high"] = interval(draws[:, i])
        for name, reference in references.items():
            if reference is not None:
                paired = compare(draws, means, i, reference)
                row |= {
                    f"{name}_difference": paired.difference,
                    f"{name}_low": paired.low,
                    f"{name}_high": paired.high,
                    f"{name}_p": paired.p_value,
                }
        if references["best"] is not None:
            row["best_spec"] = names[references["best"]]
        row["on_frontier"] = False
    whole = rows[references["float32"]]["code_bytes"] if references["float32"] is not None else np.inf
    for row in rows:
        row["heavy"] = bool(row["index_bytes_per_vector"] - row["code_bytes"] > whole / 2)
    light = [row for row in rows if not row["heavy"]]
    for i in upper_hull([(row["code_bytes"], row[measure]) for row in light]):
        light[i]["on_frontier"] = True
    return rows


def _means(dataset: str, runs: list[Result]) -> Row:
    """Return the plain means of one spec; numbers such as rates are averaged over data sets like the measures."""
    first = runs[0]
    row: Row = {"dataset": dataset, "spec": first.spec, "family": first.family}
    row |= {name: float(np.mean([run.numbers[name] for run in runs])) for name in first.numbers}
    shared = [name for name in first.by_query if all(name in run.by_query for run in runs)]
    row |= {name: float(np.mean([run.mean(name) for run in runs])) for name in shared}
    row |= {"queries": sum(len(run.queries) for run in runs), "unanswered": sum(run.unanswered for run in runs)}
    return row | {"error": None}
