"""`ragq search`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from ragq.cli.options import echo_json, given, index_argument, json_option, model_options, parse_where, where_option


@click.command()
@index_argument
@click.argument("query")
@click.option("-k", type=click.IntRange(1), default=5, show_default=True, help="How many passages.")
@where_option
@click.option(
    "--show",
    type=click.Choice(["snippet", "text", "ids"]),
    default="snippet",
    show_default=True,
    help="The beginning of each passage, all of it, or ids and scores alone.",
)
@click.option(
    "--candidates", type=click.IntRange(1), help="Passages that a first stage hands to MaxSim.  [default: 100]"
)
@click.option("--hybrid", is_flag=True, help="Fuse with a search for the question's words (extra 'hybrid').")
@click.option("--rerank", metavar="MODEL", help="Order the candidates by a cross encoder: its name or folder.")
@click.option("--select", type=click.Choice(["mmr", "coverage", "unique"]), help="Choose passages that differ.")
@click.option("--expand", type=click.Choice(["neighbours", "pagerank"]), help="Add neighbours of the best passages.")
@model_options
@json_option
def search(
    index: Path,
    query: str,
    k: int,
    where: str | None,
    show: str,
    candidates: int | None,
    hybrid: bool,
    rerank: str | None,
    select: str | None,
    expand: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Search INDEX with a question; best passage first.

    \b
    ragq search docs.ragq "how is a shard written?"
    ragq search docs.ragq "release notes" -k 10 --where '{"suffix": ".md"}' --json
    ragq search docs.ragq "who likes Joshua Trees?" --hybrid
    """
    import ragq

    opened = ragq.open(index, **given(**options))
    stages = given(candidates=candidates, hybrid=hybrid or None, rerank=rerank, select=select, expand=expand)
    hits = opened.search(query, k=k, where=parse_where(where), **stages)
    if as_json:
        echo_json([dataclasses.asdict(hit) | {"metadata": dict(hit.metadata)} for hit in hits])
        return
    if not hits:
        click.echo("No passage qualifies.", err=True)
    for rank, hit in enumerate(hits, 1):
        title = f"  {hit.title}" if hit.title and show != "ids" else ""
        click.echo(f"{rank:>2}  {hit.score:.4f}  {click.style(hit.id, bold=True)}{title}")
        if show != "ids":
            text = hit.text if show == "text" else shorten(hit.text)
            click.echo("\n".join(f"    {line}" for line in text.splitlines()) + "\n")


def shorten(text: str, letters: int = 300) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= letters else line[:letters].rsplit(" ", 1)[0] + " ..."
