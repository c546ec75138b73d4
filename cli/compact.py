"""`ragq compact`."""

from __future__ import annotations

from pathlib import Path

import click

from ragq.cli.options import echo_json, index_argument, json_option


@click.command()
@index_argument
@json_option
def compact(index: Path, as_json: bool) -> None:
    """Rewrite the shards of INDEX without what was deleted, and merge small ones.

    \b
    ragq compact docs.ragq
    """
    import ragq
    from ragq.pipelines.progress import progress_bar

    with ragq.open(index, mode="w") as opened, progress_bar(quiet=as_json) as progress:
        before = opened.info()["total_bytes"]
        changed = opened.compact(progress=progress)
        after = opened.info()["total_bytes"]
    if as_json:
        echo_json({"changed": changed, "bytes_before": before, "bytes_after": after})
    else:
        click.echo(f"{index}: {before:,} bytes before, {after:,} after" if changed else f"{index}: nothing to do")
