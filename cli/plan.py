"""`ragq plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ragq.cli.options import echo_json, given, json_option

if TYPE_CHECKING:
    from ragq.pipelines.plan import Plan


@click.command()
@click.option("--docs", type=click.FloatRange(1), required=True, help="Passages, such as 1e9.")
@click.option("--dim", type=click.IntRange(1), help="Dimensions of the embeddings.")
@click.option("--codec", metavar="SPEC", help="Compressor; 'ragq codecs' lists them.")
@click.option("--budget", type=click.IntRange(1), metavar="BYTES", help="Code bytes a vector, instead of a codec.")
@click.option("--embeddings", metavar="FILE", help="Measure with real embeddings: x.npy, or x.parquet:column.")
@click.option("--model", help="Measure embedding with this model, too; else embeddings are taken as ready.")
@click.option("--workers", type=click.IntRange(1), help="Workers that index, each like this machine.  [default: 1]")
@click.option("--hours", type=click.FloatRange(0, min_open=True), default=24.0, show_default=True, help="Wanted.")
@click.option(
    "--probe",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.01,
    show_default=True,
    help="Share of the rows that a search of inverted lists looks at.",
)
@click.option("--text-bytes", type=click.IntRange(0), default=0, help="Stored text a passage.  [default: left out]")
@click.option("--tmp", "folder", type=click.Path(exists=True, file_okay=False), help="Folder for the temporary index.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
def plan(as_json: bool, **options: Any) -> None:
    """Tell what an index of some size would take: bytes, memory, latency, workers and hours.

    Measures the costs of a row on this machine with a small index (well under a minute), and scales them.

    \b
    ragq plan --docs 1e9 --dim 768 --budget 48
    ragq plan --docs 2e7 --codec SAQ2 --embeddings sample.npy --model all-MiniLM-L6-v2
    """
    from ragq.pipelines.plan import plan as make_plan
    from ragq.pipelines.progress import progress_bar

    with progress_bar(quiet=as_json) as progress:
        made = make_plan(progress=progress, **given(**options))
    if as_json:
        echo_json(made.to_dict())
    else:
        show(made)


def show(made: Plan) -> None:
    """Print the plan as a table that says where each number comes from."""
    body = made.to_dict()
    measured, computed, guessed = body["measured"], body["computed"], body["extrapolated"]
    size, memory = computed["bytes"], computed["memory"]
    embedded = "" if measured["embed_ms"] is None else f", {measured['embed_ms']:.1f} ms to embed a passage"
    text = f", text {human(size['text'])}" if size["text"] else ", text left out"
    parts = f"codes {human(size['codes'])}, ids {human(size['ids'])}{text}"
    here = human(body["machine"]["memory"])
    wanted = "the fit alone takes longer than wanted"
    if guessed["workers_wanted"]:
        wanted = f"{count(guessed['workers_wanted'])} for {made.hours_wanted:g} h"
    computed_lines = [
        ("bytes", f"{human(computed['total_bytes'])}: {parts}"),
        ("shards", f"{computed['shards']:,} of {computed['shard_rows']:,} rows"),
        ("memory", f"{human(memory['scan'])} to scan from memory (here: {here})"),
        ("", f"{human(memory['worker'])} a worker beside its model"),
    ]
    extrapolated_lines = [
        ("scan", f"{milliseconds(guessed['scan_ms'])} a query, {measured['scan_ns']:.3g} ns a row"),
        ("ivf", f"{milliseconds(guessed['ivf_ms'])} a query: {computed['nlist']:,} lists, {made.probe:.2%} probed"),
        ("index", f"{guessed['hours']:.3g} h by {count(made.workers)}, {measured['index_us']:.3g} us a row{embedded}"),
        ("", wanted),
    ]
    click.echo(f"{made.docs:,} passages x {made.dim} dimensions, {made.spec}, {made.code_bytes} code bytes")
    for origin, lines in (("computed", computed_lines), ("extrapolated", extrapolated_lines)):
        for name, line in lines:
            click.echo(f"  {name:<7} {line:<74} {origin}")
    click.echo(
        f"Measured on {measured['rows']:,} rows with {body['machine']['processors']} processors; the codec took "
        f"{measured['fit_seconds']:.1f} s to fit on {measured['fit_rows']:,} rows."
    )
    assumed = body["assumed"]
    click.echo(
        f"Assumed: codec {assumed['codec']}; {assumed['embedding']}.\n"
        "Costs a row stay as they are, workers are like this machine and wait for nobody."
    )


def count(workers: int) -> str:
    """Return ``1 worker`` or ``2 workers``."""
    return f"{workers:,} worker{'' if workers == 1 else 's'}"


def human(size: float) -> str:
    """Return bytes as ``48.0 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    raise AssertionError


def milliseconds(value: float) -> str:
    """Return a duration in a unit that suits it."""
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"
