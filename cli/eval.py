"""`ragq eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragq.cli.options import echo_json, given, json_option, model_options, table_console

if TYPE_CHECKING:
    from ragq.eval.report import Report
    from ragq.eval.sweep import Result


@click.command("eval")
@click.argument("datasets", nargs=-1, metavar="DATASET...")
@click.option("--codec", "codecs", multiple=True, metavar="SPEC", help="A spec to measure; repeat for several.")
@click.option(
    "--multi-vector",
    "multi_vector",
    multiple=True,
    metavar="SPEC",
    help="A multi-vector index to measure, 'POOL32,PQ32x8 after MUVERA(20,4,8),PQ256x8'; repeat for several.",
)
@click.option("--budget", metavar="BYTES,...", help="Code bytes a vector; without --codec, codecs that fit are tried.")
@click.option("--pick", is_flag=True, help="Measure only what 'ragq index --budget' would choose.")
@click.option("--embeddings", metavar="NAME", help="Ready corpus.NAME.npy and queries.NAME.npy beside corpus.jsonl.")
@click.option("--split", default="test", show_default=True, help="Which judgements.")
@click.option(
    "--queries", type=click.Path(path_type=Path), help="Your own queries.jsonl; alone: agreement with float32."
)
@click.option("--qrels", type=click.Path(path_type=Path), help="Your own judgements for them.")
@click.option("--measure", default="ndcg@10", show_default=True, help="What the frontier and the intervals are of.")
@click.option("--metric", type=click.Choice(["cosine", "ip", "l2"]), default="cosine", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--preset", type=click.Choice(["rag-storage"]), help="Add the methods of a study.")
@click.option("--compare", metavar="NAME,...", help="Add the codecs of other libraries: faiss, turbovec ...")
@click.option(
    "--stress", type=click.IntRange(2, 16), metavar="DIM", help="No DATASET: LIMIT's critical n of each codec."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report; an interrupted run goes on there.")
@model_options
@json_option
def eval_command(
    datasets: tuple[str, ...],
    codecs: tuple[str, ...],
    multi_vector: tuple[str, ...],
    budget: str | None,
    pick: bool,
    preset: str | None,
    compare: str | None,
    stress: int | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how much retrieval quality each byte buys on DATASET.

    A DATASET is a BEIR folder, an MTEB task (mteb:SciFact, or mteb:SciFact=FOLDER for a local copy), limit or
    limit-small, an ir_datasets id (ir:beir/scifact/test), or, with --queries, any source that ragq index reads or an
    index.

    \b
    ragq eval beir/scifact --codec FP8 --codec PCA128,FP8
    ragq eval beir/scifact beir/cranfield --embeddings minilm --budget 384,192,96,48,24 --out report/
    ragq eval beir/scifact --embeddings minilm --budget 48 --pick
    ragq eval beir/scifact --embeddings minilm --preset rag-storage --out study/
    ragq eval beir/scifact --multi-vector "POOL9%,PQ64x8 after CENTROIDS1024"
    ragq eval --stress 6 --codec INT8 --codec INT4 --codec BIN
    """
    from ragq.eval.candidates import parse_budgets
    from ragq.eval.run import extra_systems, load_data, run

    budgets = parse_budgets(budget) if budget else []
    if pick and not budgets:
        raise click.UsageError("--pick needs --budget.")
    if stress is not None:
        if datasets or not codecs:
            raise click.UsageError("--stress takes no DATASET, and needs at least one --codec.")
        show_stress(codecs, stress, options["seed"], as_json)
        return
    if not datasets:
        raise click.UsageError("Give at least one DATASET, such as a BEIR folder or mteb:SciFact.")
    names = ("model", "device", "backend", "batch_size")
    model = {name: options.pop(name) for name in names}
    embeds = given(**model)
    measured = {name: options.pop(name) for name in ("measure", "metric", "seed")}
    data = load_data(
        datasets,
        model=model.pop("model"),
        model_options=given(**model),
        tick=lambda line: click.echo(line, err=True),
        **options,
    )
    report = run(
        data,
        codecs,
        budgets,
        more=[*extra_systems(data[0][1].dim, preset, compare), *late_interaction(multi_vector, data, embeds)],
        picking=pick,
        out=out,
        tick=None if as_json else lambda result, kept: click.echo(line(result, kept, measured["measure"]), err=True),
        **measured,
    )
    if as_json:
        echo_json(report.rows)
    else:
        show(report, budgets)
        if preset is not None:
            from ragq.eval.study import CLAIM

            click.echo("\n".join(["The study's claim, int8 raw and in its units:", *report.compared(CLAIM)]))
        if out is not None:
            click.echo(f"Report: {out / 'report.html'}")
    failed = [result for result in report.failures() if result.spec in codecs]
    if failed:
        first = failed[0]
        raise click.ClickException(f"{len(failed)} runs failed, first {first.spec} on {first.dataset}: {first.error}")


def late_interaction(specs: tuple[str, ...], data: Any, options: dict[str, Any]) -> list[Any]:
    """Return the multi-vector systems of a sweep; their tokens are embedded by `options`, once, when there are any."""
    if not specs:
        return []
    from functools import lru_cache

    from ragq.eval.token_systems import token_systems
    from ragq.token_embedders import load_token_embedder

    return list(token_systems(specs, data, lru_cache(lambda: load_token_embedder(**options))))


def show_stress(codecs: tuple[str, ...], dim: int, seed: int, as_json: bool) -> None:
    """Print how many documents each code holds when every pair must be some query's top two."""
    from dataclasses import asdict

    from ragq.eval.limit import capacities

    found = capacities(codecs, dim, seed=seed)
    if as_json:
        echo_json([{"dataset": f"limit-free-{dim}", **asdict(row)} for row in found])
        return
    click.echo(f"{'spec':16} {'code B':>7} {'critical n':>11} {'effective dimension':>20}")
    for row in found:
        numbers = f"{row.code_bytes:7} {row.critical_n:11} {row.effective_dim:20.1f}"
        click.echo(f"{row.spec:16} {numbers if row.error is None else row.error}")


def line(result: Result, kept: bool, measure: str) -> str:
    """Return a line of progress."""
    where = f"{result.dataset}  {result.spec}"
    if result.error is not None:
        return f"{where}  failed: {result.error}"
    name = measure if measure in result.by_query else "agreement@10"
    return f"{where}  {name} {result.mean(name):.4f}{'  (kept)' if kept else ''}"


def show(report: Report, budgets: list[int]) -> None:
    """Print a table a data set, and what is best within each budget."""
    console = table_console()
    for name in dict.fromkeys(row["dataset"] for row in report.rows):
        console.print(report.table(name))
    for result in report.failures():
        click.echo(f"Failed: {result.spec} on {result.dataset}: {result.error}")
    for where, spec in report.picks.items():
        click.echo(f"Picked for {where}: {spec}")
    for budget in budgets:
        best = report.best(budget)
        if best is not None:
            found = f"{best['spec']} ({report.measure} {best[report.measure]:.4f})"
        else:
            fits = any(row["code_bytes"] <= budget for row in report.rows)
            found = "only what is heavy (▲) fits" if fits else "nothing fits"
        click.echo(f"Best within {budget} B: {found}")
