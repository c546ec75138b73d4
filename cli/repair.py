"""`ragq repair`."""

from __future__ import annotations

from pathlib import Path

import click

from ragq.cli.options import echo_json, index_argument, json_option

SHOWN = 20


@click.command()
@index_argument
@click.option("--yes", is_flag=True, help="Do it; without this, only say what would be done.")
@click.option(
    "--salvage",
    type=click.Path(path_type=Path),
    help="JSONL file for documents of dropped shards that can be read; `ragq add` takes it.",
)
@json_option
def repair(index: Path, yes: bool, salvage: Path | None, as_json: bool) -> None:
    """Rebuild what can be rebuilt of a damaged INDEX, and drop the shards that cannot, with their ids listed.

    Exits 1 when nothing can be done; INDEX is then as it was.

    \b
    ragq repair docs.ragq                              what would be done
    ragq repair docs.ragq --yes --salvage lost.jsonl   do it
    """
    from ragq.pipelines.repair import repair as repair_index

    done = repair_index(index, apply=yes, salvage=salvage)
    if as_json:
        echo_json(done.to_json())
        return
    if not done.findings:
        click.echo(f"{index}: all as written, nothing to repair")
        return
    for action in done.actions:
        click.echo(f"{action.what:<8} {action.file}: {action.message}")
        for name in action.ids[:SHOWN]:
            click.echo(f"         {name}")
        more = len(action.ids) - SHOWN
        if more > 0:
            click.echo(f"         and {more:,} more; --json lists all")
        if action.unknown:
            click.echo(f"         and {action.unknown:,} whose ids cannot be read")
    if done.applied and salvage is not None and salvage.exists():
        click.echo(f"Add what was salvaged again: ragq add {index} {salvage}")
    click.echo("Done." if done.applied else "Nothing was changed. Do it with --yes.")
