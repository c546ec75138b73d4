"""`ragq add`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from ragq.cli.options import echo_json, given, index_argument, json_option, model_options


@click.command()
@index_argument
@click.argument("source")
@click.option("--embeddings", type=click.Path(path_type=Path), help="Ready embeddings, one a document: x.npy.")
@model_options
@json_option
def add(index: Path, source: str, embeddings: Path | None, as_json: bool, **options: Any) -> None:
    """Add the documents of SOURCE to INDEX; one whose id is there already replaces the old one.

    \b
    ragq add docs.ragq news/
    ragq add docs.ragq more.jsonl --json
    """
    import ragq
    from ragq.pipelines.progress import progress_bar

    with ragq.open(index, mode="w", **given(**options)) as opened, progress_bar(quiet=as_json) as progress:
        changes = opened.add(Path(source), embeddings=embeddings, progress=progress)
    if as_json:
        echo_json(dataclasses.asdict(changes) | {"documents": len(opened)})
        return
    if changes.skipped:
        click.echo("Skipped: " + ", ".join(f"{n:,} {reason}" for reason, n in changes.skipped.items()), err=True)
    click.echo(
        f"{index}: {changes.added:,} documents added, {changes.replaced:,} of them in place of older ones; "
        f"{len(opened):,} in all"
    )
