"""`ragq index`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ragq.cli.options import PLACE, echo_json, given, json_option, model_options


@click.command()
@click.argument("source", required=False)
@click.option("-o", "--output", type=PLACE, help="The index folder, or an s3:// or gs:// URL.  [default: SOURCE.ragq]")
@click.option(
    "--codec",
    metavar="SPEC",
    help="Compressor; 'ragq codecs' lists them. Or the folder of a trained one.  [default: FP8]",
)
@click.option(
    "--budget", type=click.IntRange(1), metavar="BYTES", help="Choose the best codec within these code bytes."
)
@click.option("--multi-vector", is_flag=True, help="Index every token of a passage (late interaction, MaxSim).")
@click.option(
    "--first-stage", metavar="SPEC", help="With --multi-vector: what finds candidates, MUVERA(20,4,8),PQ256x8."
)
@click.option(
    "--embeddings", metavar="FILE", help="Ready embeddings: x.npy, or x.parquet:column; of tokens: x.npz, or x.npy."
)
@click.option("--ids", metavar="FILE", help="Ids of the embeddings when there is no SOURCE: one a line, .npy, .jsonl.")
@click.option("--metric", type=click.Choice(["cosine", "ip", "l2"]), default="cosine", show_default=True)
@click.option("--chunk-tokens", type=click.IntRange(0), help="Tokens of a passage; 0 keeps documents whole.")
@click.option("--chunk-overlap", type=click.IntRange(0), help="Tokens that neighbouring passages share.")
@click.option("--sample", type=click.IntRange(1), help="Most embeddings that the codec is fitted on.")
@click.option("--shard-rows", type=click.IntRange(1), help="Passages a shard.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--strict", is_flag=True, help="Fail on a file that cannot be read, where else it is skipped and counted."
)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Who does the work.")
@click.option("--address", help="The Ray cluster; without it, Ray is started on this machine.")
@click.option("--workers", type=click.IntRange(1), help="Ray actors; one a GPU or processor by default.")
@click.option("--resume", is_flag=True, help="Go on after the last finished shard of an interrupted run.")
@model_options
@json_option
def index(source: str | None, output: str | Path | None, as_json: bool, **options: Any) -> None:
    """Index SOURCE: a folder, a JSONL, CSV, TSV, Parquet or Arrow file, or a BEIR folder; s3:// and gs:// URLs, too.

    An old index in the same place is replaced, and stays readable until the new one is whole.

    \b
    ragq index docs/
    ragq index beir/scifact -o scifact.ragq --codec PCA128,FP8
    ragq index beir/scifact --embeddings beir/scifact/corpus.minilm.npy --budget 48
    ragq index docs/ --multi-vector --codec POOL32,PQ32x8 --first-stage "MUVERA(20,4,8),PQ256x8"
    ragq index s3://bucket/corpus -o s3://bucket/corpus.ragq --engine ray
    """
    import ragq
    from ragq.pipelines.progress import progress_bar

    if source is None and options["embeddings"] is None:
        raise click.UsageError("Give a SOURCE, or --embeddings with --ids.")
    target = output or default_output(source or options["embeddings"])
    try:
        with progress_bar(quiet=as_json) as progress:
            built = ragq.build(source, target, progress=progress, **given(**options))
    except KeyboardInterrupt:
        again = f"ragq index {source or ''} -o {target} --resume".replace("  ", " ")
        raise click.ClickException(f"Interrupted. Go on with the same options and: {again}") from None
    report, info = built.report, built.info()
    assert report is not None
    if as_json:
        summary = {"documents": report.documents, "passages": report.passages, "duplicates": report.duplicates}
        echo_json(summary | {"skipped": report.skipped, "choice": report.choice, **info})
        return
    for note in report.notes:
        click.echo(note, err=True)
    if report.skipped:
        click.echo("Skipped: " + ", ".join(f"{n:,} {reason}" for reason, n in report.skipped.items()), err=True)
    if report.duplicates:
        click.echo(f"Duplicates: {report.duplicates:,} documents gave way to a later one with the same id.", err=True)
    if report.choice:
        click.echo(report.choice, err=True)
    click.echo(
        f"{target}: {report.documents:,} documents, {report.passages:,} passages, {report.spec}, "
        f"{info['code_bytes']} code bytes and {info['index_bytes_per_vector']:.1f} index bytes a vector"
    )
    if "multi_vector" in info:
        click.echo(account(info))


def account(info: dict[str, Any]) -> str:
    """Return what a document weighs in a multi-vector index, part by part."""
    facts = info["multi_vector"]
    each = facts["bytes_per_document"]
    stage = f" + {each['first_stage']:,.0f} first stage" if facts["first_stage"] else ""
    parts = f"{each['vectors']:,.0f} vectors{stage} + {each['offsets']:,.0f} offsets"
    return (
        f"{facts['vectors_per_passage']:.1f} vectors a passage of {info['code_bytes']} bytes; "
        f"{each['total']:,.0f} bytes a document: {parts}"
    )


def default_output(source: str) -> Path:
    """Return ``corpus.ragq`` in the current folder for ``some/where/corpus/`` or ``corpus.jsonl``."""
    path = Path(source).expanduser()
    name = path.resolve().name
    return Path((name if path.is_dir() else Path(name).stem) + ".ragq")
