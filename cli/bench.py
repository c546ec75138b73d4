"""`ragq bench`."""

from __future__ import annotations

import os
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ragq.cli.options import echo_json, json_option, table_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragq.eval.bench import Bench, Row

SUITES = ("hamming", "lut4", "lut8", "planes", "dense", "threads", "filter", "scale", "encode", "train")
POOLS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# column -> how a row shows it
COLUMNS = {
    "case": lambda row: row.case,
    "ours ns": lambda row: number(row.ours_ns),
    "peer": lambda row: row.peer or "-",
    "peer ns": lambda row: number(row.peer_ns),
    "ratio": lambda row: number(row.ratio, "x"),
    "recall": lambda row: number(row.recall),
    "peer recall": lambda row: number(row.peer_recall),
    "of exhaustive": lambda row: number(row.of_exhaustive),
    "GB/s": lambda row: number(row.gb_per_s),
    "of bandwidth": lambda row: number(row.of_bandwidth),
}


@click.command()
@click.option("--suite", "suites", multiple=True, type=click.Choice(SUITES), help="Only this one; repeat for several.")
@click.option("--rows", type=click.IntRange(16), help="Rows of every suite, instead of each suite's own.")
@click.option("--queries", type=click.IntRange(1), default=64, show_default=True, help="Queries of a batch.")
@click.option(
    "--repeats", type=click.IntRange(1), default=5, show_default=True, help="Rounds of which medians are taken."
)
@click.option("--cpu-time", is_flag=True, help="Count processor time: for a machine that others use too.")
@click.option("--markdown", is_flag=True, help="Print tables in Markdown.")
@json_option
def bench(
    suites: tuple[str, ...],
    rows: int | None,
    queries: int,
    repeats: int,
    cpu_time: bool,
    markdown: bool,
    as_json: bool,
) -> None:
    """Time the kernels side by side with whichever of faiss, usearch, numkong, turbovec and rabitqlib are installed.

    One process, one thread each, the same vectors, queries and k; times are nanoseconds per vector and query, medians
    of interleaved rounds, selection of the top k included. The suites `encode` and `train` time codecs instead, per
    vector. The vectors are the shared data's `scale` where it is found (RAGQ_SHARED, or ../shared), else made ones.

    \b
    ragq bench --suite hamming --suite lut8
    ragq bench --suite planes --rows 50000 --repeats 9 --json
    """
    for pool in POOLS:
        os.environ[pool] = "1"  # before the libraries that read them are imported
    from ragq.eval.bench import Bench
    from ragq.eval.bench_data import Vectors, load_source
    from ragq.eval.bench_suites import run

    def tick(line: str) -> None:
        click.echo(line, err=True)

    source = load_source(queries)
    tick(f"data: {source.name}")
    setting = Bench(lambda n: Vectors(source, n), len(source.queries), repeats, rows, tick, cpu_time)
    with one_thread():
        found = list(run(setting, suites))
    if as_json:
        echo_json([vars(row) for row in found])
    else:
        show(found, setting, markdown)


def one_thread() -> Any:
    """Hold BLAS and OpenMP pools that are loaded already to one thread."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        from contextlib import nullcontext

        return nullcontext()
    return threadpool_limits(1)


def number(value: float | None, sign: str = "") -> str:
    """Return three significant digits, or a dash."""
    return "-" if value is None else f"{value:.3g}{sign}" if value < 1000 else f"{value:,.0f}{sign}"


def show(found: Sequence[Row], setting: Bench, markdown: bool) -> None:
    """Print a table a suite."""
    for suite in dict.fromkeys(row.suite for row in found):
        rows = [row for row in found if row.suite == suite]
        cells = [[cell(row) for cell in COLUMNS.values()] for row in rows]
        title = f"{suite}: {rows[0].rows:,} rows of {rows[0].data}, kernel {rows[0].kernel}, {rows[0].clock} time"
        if markdown:
            lines = [list(COLUMNS), ["---"] * len(COLUMNS), *cells]
            click.echo(f"**{title}**\n")
            click.echo("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        else:
            print_table(title, cells)
    if found:
        read = median(row.bandwidth_gb_per_s for row in found)
        click.echo(f"One thread reads {read:.1f} GB/s here. Ratios are the peer's time over ours.")
    for reason in setting.skipped:
        click.echo(f"Left out: {reason}")


def print_table(title: str, cells: Sequence[Sequence[str]]) -> None:
    """Print rows as a table."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for position, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if name in ("case", "peer") else "right", no_wrap=position == 0)
    for line in cells:
        table.add_row(*line)
    table_console().print(table)
