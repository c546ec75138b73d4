"""`ragq info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ragq.cli.options import PLACE, echo_json, json_option


@click.command()
@click.argument("index", type=PLACE, required=False)
@click.option("--kernels", is_flag=True, help="Show which kernels are built, available and used.")
@json_option
def info(index: Path | None, kernels: bool, as_json: bool) -> None:
    """Show what INDEX is: bytes by part, bytes a vector, codec, model.

    \b
    ragq info docs.ragq
    ragq info --kernels
    """
    if index is None and not kernels:
        raise click.UsageError("Give an INDEX, or --kernels.")
    facts: dict[str, Any] = {}
    if index is not None:
        import ragq

        with ragq.open(index) as opened:
            facts |= opened.info()
    from ragq.retrievers.kernels import report

    found = report()
    facts["kernels"] = found if kernels else {name: kernel["used"] for name, kernel in found.items()}
    if as_json:
        echo_json(facts)
    else:
        show(facts)


def show(facts: dict[str, Any]) -> None:
    """Print facts as a table, parts below their whole."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if isinstance(value, dict):
            table.add_row(name, "")
            for part, inner in value.items():
                table.add_row(f"  {part}", plain(inner))
        else:
            table.add_row(name, plain(value))
    Console().print(table)


def plain(value: Any) -> str:
    """Return a value as text: thousands separated, nothing for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {plain(inner)}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
