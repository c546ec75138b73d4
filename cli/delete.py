"""`ragq delete`."""

from __future__ import annotations

from pathlib import Path

import click

from ragq.cli.options import echo_json, index_argument, json_option, parse_where, where_option


@click.command()
@index_argument
@click.argument("ids", nargs=-1)
@where_option
@json_option
def delete(index: Path, ids: tuple[str, ...], where: str | None, as_json: bool) -> None:
    """Delete documents from INDEX by id, or all that a filter matches.

    \b
    ragq delete docs.ragq guide/old.md guide/older.md
    ragq delete docs.ragq --where '{"year": {"$lt": 2000}}'
    """
    import ragq

    if bool(ids) == (where is not None):
        raise click.UsageError("Give either ids or --where.")
    with ragq.open(index, mode="w") as opened:
        deleted = opened.delete(ids) if ids else opened.delete(where=parse_where(where))
    if as_json:
        echo_json({"deleted": deleted, "documents": len(opened)})
        return
    click.echo(f"{index}: {deleted:,} documents deleted; {len(opened):,} left")
    if opened.compact_due:
        click.echo(f"Much of the index is deleted rows now. Free them with: ragq compact {index}", err=True)
