"""`ragq codecs`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ragq.cli.options import echo_json, json_option

if TYPE_CHECKING:
    from ragq.compressors.catalogue import Offer


@click.command()
@click.option("--dim", type=click.IntRange(1), default=384, show_default=True, help="Dimensions of the embeddings.")
@click.option("--budget", type=click.IntRange(1), help="Only codecs of at most this many bytes a vector.")
@json_option
def codecs(dim: int, budget: int | None, as_json: bool) -> None:
    """List the codecs with their bytes a vector.

    The numbers in a spec are yours to choose: PCA192,FP8 and PCA100,FP8 both work. A fitted codec also stores its state
    once an index; `ragq info` shows what an index takes in all.

    \b
    ragq codecs --dim 384
    ragq codecs --dim 768 --budget 96
    """
    from ragq.compressors.catalogue import catalogue

    offers = catalogue(dim, budget)
    if as_json:
        echo_json([asdict(offer) for offer in offers])
    else:
        show(offers, dim)


def show(offers: list[Offer], dim: int) -> None:
    """Print the offers as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{dim} dimensions, {4 * dim:,} bytes as float32", title_justify="left", box=None)
    table.add_column("spec", style="bold", no_wrap=True)
    for name in ("bytes", "bits/dim", "smaller", "1M vectors"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what it is", overflow="ellipsis", no_wrap=True)
    for offer in offers:
        table.add_row(
            offer.spec,
            f"{offer.code_bytes:,}",
            f"{offer.bits_per_dim:.3g}",
            f"{offer.ratio:.3g}x",
            f"{offer.code_bytes:,} MB",
            offer.summary,
        )
    Console().print(table)
