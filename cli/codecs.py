"""`ragq codecs`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ragq.cli.options import echo_json, json_option, table_console

if TYPE_CHECKING:
    from ragq.compressors.catalogue import Offer
    from ragq.compressors.token_catalogue import TokenOffer


@click.command()
@click.option("--dim", type=click.IntRange(1), default=384, show_default=True, help="Dimensions of the embeddings.")
@click.option("--budget", type=click.IntRange(1), help="Only codecs of at most this many bytes a vector.")
@click.option("--multi-vector", is_flag=True, help="List what becomes of all token embeddings of a document.")
@click.option(
    "--tokens", type=click.IntRange(1), default=187, show_default=True, help="With --multi-vector: of a document."
)
@json_option
def codecs(dim: int, budget: int | None, multi_vector: bool, tokens: int, as_json: bool) -> None:
    """List the codecs with their bytes a vector.

    The numbers in a spec are yours to choose: PCA192,FP8 and PCA100,FP8 both work. A fitted codec also stores its state
    once an index; `ragq info` shows what an index takes in all.

    \b
    ragq codecs --dim 384
    ragq codecs --dim 768 --budget 96
    ragq codecs --multi-vector --dim 128 --tokens 80
    """
    if multi_vector:
        from ragq.compressors.token_catalogue import token_catalogue

        priced = token_catalogue(dim, tokens, budget)
        if as_json:
            echo_json([asdict(offer) for offer in priced])
        else:
            show_tokens(priced, dim, tokens)
        return
    from ragq.compressors.catalogue import catalogue

    offers = catalogue(dim, budget)
    if as_json:
        echo_json([asdict(offer) for offer in offers])
    else:
        show(offers, dim)


def show_tokens(offers: list[TokenOffer], dim: int, tokens: int) -> None:
    """Print codecs of token embeddings as a table."""
    from rich.table import Table

    title = f"{tokens} tokens of {dim} dimensions, {4 * dim * tokens:,} bytes as float32"
    table = Table(title=title, title_justify="left", box=None)
    for position, name in enumerate(("codec", "first stage", "vectors", "bytes a document", "smaller")):
        table.add_column(name, justify="right" if position > 1 else "left", no_wrap=True)
    for o in offers:
        table.add_row(o.codec, o.first_stage or "", str(o.vectors), f"{o.document_bytes:,}", f"{o.ratio:.3g}x")
    table_console().print(table)


def show(offers: list[Offer], dim: int) -> None:
    """Print the offers as a table."""
    from rich.table import Table

    table = Table(title=f"{dim} dimensions, {4 * dim:,} bytes as float32", title_justify="left", box=None, expand=True)
    rows = [
        (o.spec, f"{o.code_bytes:,}", f"{o.bits_per_dim:.3g}", f"{o.ratio:.3g}x", f"{o.code_bytes:,} MB", o.summary)
        for o in offers
    ]
    titles = ("spec", "bytes", "bits/dim", "smaller", "1M vectors")
    for position, title in enumerate(titles):
        width = max([len(title), *(len(row[position]) for row in rows)])
        table.add_column(title, justify="right" if position else "left", min_width=width, no_wrap=True)
    table.add_column("what it is", ratio=1, overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    table_console().print(table)
