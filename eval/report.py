"""The report of a sweep: a table in the terminal, and a folder of JSON, CSV, Parquet, PNG and one HTML page."""

from __future__ import annotations

import csv
import io
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragq.eval.datasets import Dataset
from ragq.eval.frontier import best_within
from ragq.eval.metrics import MEASURES, parse_measure
from ragq.eval.sweep import AGREEMENT, Result
from ragq.eval.tables import fallback_measure, make_rows, of_dataset, paired
from ragq.storage import storage_errors, write_bytes

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Report", "provenance"]

LIBRARIES = ("ragq", "numpy", "pyarrow", "torch", "sentence-transformers", "ir-measures", "pytrec-eval-terrier", "mteb")
RULES = (
    "A judged query without an answer scores 0. Equal scores keep insertion order. Intervals are paired bootstrap "
    "percentiles (95 %, 10,000 draws of the queries). An average is the mean over data sets. "
    "'Best' is the best compressed spec."
)


def provenance(**settings: object) -> list[tuple[str, str]]:
    """Return how a sweep was run: the command, the settings given here, and the versions.

    Versions are read from the installed packages' metadata; nothing is imported for it.
    """
    versions = [f"python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    given = [(name.replace("_", " "), str(value)) for name, value in settings.items() if value is not None]
    machine = f"{platform.system()} {platform.machine()}, {_processor()}"
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return [("command", command), *given, ("versions", ", ".join(versions)), ("machine", machine), ("finished", when)]


def _processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown processor"


@dataclass
class Report:
    """Results of a sweep, ready to print and to write.

    Parameters
    ----------
    results : list of Result
    datasets : list of Dataset
    measure : str
        The wanted main measure; ``agreement@10`` takes its place when a data set has no judgements.
    seed : int
        Of the bootstrap.
    about : list of (str, str)
        From `provenance`.
    picks : dict of str to str
        What a budget chose without judgements, by data set and budget.
    """

    results: list[Result]
    datasets: list[Dataset]
    measure: str = "ndcg@10"
    seed: int = 0
    about: list[tuple[str, str]] = field(default_factory=provenance)
    picks: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.measure not in AGREEMENT:
            parse_measure(self.measure)
        self.measure = fallback_measure(self.results, self.measure)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One flat dict a run, failed runs and averages included; see `ragq.eval.tables`."""
        return make_rows(self.results, self.measure, seed=self.seed)

    @property
    def measures(self) -> list[str]:
        """The measures that every finished run has, the main one first."""
        finished = [result for result in self.results if result.error is None]
        shared = [
            name for name in (finished[0].by_query if finished else ()) if all(name in r.by_query for r in finished)
        ]
        order = [self.measure, *MEASURES, *AGREEMENT, *shared]
        return [name for name in dict.fromkeys(order) if name in shared]

    def best(self, budget: float) -> dict[str, Any] | None:
        """Return the row of the best spec of at most `budget` code bytes, on average over the data sets."""
        row = best_within(of_dataset(self.rows), budget, self.measure)
        return None if row is None else dict(row)

    def failures(self) -> list[Result]:
        """Return the runs that failed."""
        return [result for result in self.results if result.error is not None]

    def compared(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Return a line for each pair of specs and data set: the difference, its interval, and the verdict."""
        lines = []
        for spec, reference in pairs:
            for dataset, found in paired(self.results, spec, reference, self.measure, seed=self.seed).items():
                verdict = "a tie" if not found.significant else "better" if found.difference > 0 else "worse"
                interval = f"[{found.low:+.4f}, {found.high:+.4f}]"
                lines.append(f"{dataset}: {spec} less {reference}: {found.difference:+.4f} {interval}, {verdict}")
        return lines

    def table(self, dataset: str | None = None) -> Table:
        """Return the runs of a data set, by default of the average, as a rich table, fewest bytes first."""
        from rich.table import Table

        rows = sorted(of_dataset(self.rows, dataset), key=lambda row: (row["code_bytes"], -row[self.measure]))
        others = [name for name in ("recall@100", "agreement@10") if name in self.measures and name != self.measure]
        title = rows[0]["dataset"] if rows else dataset or ""
        table = Table(
            title=title,
            caption="● on the frontier   ▲ heavy: shares more than half of float32   * differs from float32 (95 %)",
        )
        for name in ("", "spec", "code B", "index B"):
            table.add_column(name, justify="left" if name in ("", "spec") else "right")
        for name in (self.measure, "95 %", "Δ float32", *others, "queries/s", "p50 ms"):
            table.add_column(name, justify="right")
        for row in rows:
            low, high = row[f"{self.measure}_low"], row[f"{self.measure}_high"]
            table.add_row(
                "●" if row["on_frontier"] else "▲" if row["heavy"] else "",
                row["spec"],
                f"{row['code_bytes']:g}",
                f"{row['index_bytes_per_vector']:.1f}",
                f"{row[self.measure]:.4f}",
                f"{low:.3f}…{high:.3f}",
                _difference(row),
                *(f"{row[name]:.3f}" for name in others),
                f"{row['queries_per_second']:.0f}",
                f"{row['p50_ms']:.2f}",
            )
        return table

    def markdown(self) -> str:
        """Return the finished runs as a Markdown table, fewest bytes first; bold is on the frontier."""
        rows = sorted(of_dataset(self.rows), key=lambda row: (row["code_bytes"], -row[self.measure]))
        datasets = [dataset.name for dataset in self.datasets]
        each = {(row["dataset"], row["spec"]): row for row in self.rows if row["error"] is None}
        several = len(datasets) > 1
        head = ["spec", "code bytes", "index bytes", self.measure, "95 %", *(datasets if several else []), "Δ float32"]
        lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
        for row in rows:
            mark = "**" if row["on_frontier"] else ""
            cells = [
                f"`{row['spec']}`" + (" ▲" if row["heavy"] else ""),
                f"{row['code_bytes']:g}",
                f"{row['index_bytes_per_vector']:.0f}",
            ]
            cells += [f"{mark}{row[self.measure]:.4f}{mark}"]
            cells += [f"{row[f'{self.measure}_low']:.3f} to {row[f'{self.measure}_high']:.3f}"]
            cells += [f"{each[name, row['spec']][self.measure]:.4f}" for name in datasets if several]
            lines.append("| " + " | ".join([*cells, _difference(row).strip()]) + " |")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write ``results`` as ``.json .csv .parquet .md``, ``about.json``, ``frontier.png`` and ``report.html``."""
        from ragq.eval.page import render
        from ragq.eval.plots import plot_frontier

        with storage_errors(folder, "create"):
            folder.mkdir(parents=True, exist_ok=True)
        page = render(
            self.rows, self.results, self.datasets, measure=self.measure, measures=self.measures, about=self._about()
        )
        texts = {
            "results.json": json.dumps(self.rows, indent=1, allow_nan=False),
            "results.csv": _csv(self.rows),
            "results.md": self.markdown(),
            "about.json": json.dumps(dict(self._about()), indent=1),
            "report.html": page,
        }
        for name, text in texts.items():
            write_bytes(folder / name, text.encode())
        self._write_parquet(folder / "results.parquet")
        plot_frontier(self.rows, folder / "frontier.png", self.measure)
        return [folder / name for name in (*texts, "results.parquet", "frontier.png")]

    def _about(self) -> list[tuple[str, str]]:
        odd = [(f"{data.name}, note", line) for data in self.datasets for line in data.warnings]
        late = [
            (f"{result.dataset}, {result.spec}", f"{result.unanswered} judged queries have no answer and score 0")
            for result in self.results
            if result.unanswered
        ]
        return [*self.about, *odd, *late, ("rules", RULES)]

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = _columns(self.rows)
        table = pa.table({name: [row.get(name) for row in self.rows] for name in names})
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(dict(self._about())), buffer)
        write_bytes(path, buffer.getvalue())


def _difference(row: dict[str, Any]) -> str:
    """Print the difference from float32, starred when its interval leaves out 0."""
    if "float32_difference" not in row:
        return "–"
    star = "*" if row["float32_low"] > 0 or row["float32_high"] < 0 else " "
    return f"{row['float32_difference']:+.3f}{star}"


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
