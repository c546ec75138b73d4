"""`ragq verify`."""

from __future__ import annotations

from pathlib import Path

import click

from ragq.cli.options import echo_json, index_argument, json_option


@click.command()
@index_argument
@json_option
def verify(index: Path, as_json: bool) -> None:
    """Compare every file of INDEX with its checksum, and read every document.

    Exits 1 and names the file when one is missing or altered.

    \b
    ragq verify docs.ragq
    """
    import ragq

    with ragq.open(index) as opened:
        read = opened.verify()
    if as_json:
        echo_json({"ok": True, "bytes": read, "documents": len(opened)})
    else:
        click.echo(f"{index}: {len(opened):,} documents, {read:,} bytes, all as written")
