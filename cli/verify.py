"""`ragq verify`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ragq.cli.options import echo_json, index_argument, json_option


@click.command()
@index_argument
@click.option("--deep", is_flag=True, help="Find everything that is wrong, and compare the files with each other.")
@json_option
@click.pass_context
def verify(ctx: click.Context, index: Path, deep: bool, as_json: bool) -> None:
    """Compare every file of INDEX with its checksum, and read every document.

    Exits 1 and names the file when one is missing or altered; with --deep, every such file and its shard.

    \b
    ragq verify docs.ragq
    ragq verify docs.ragq --deep
    """
    if deep:
        from ragq.pipelines.checkup import checkup

        findings = checkup(index)
        if as_json:
            echo_json({"ok": not findings, "findings": [dataclasses.asdict(finding) for finding in findings]})
        for finding in () if as_json else findings:
            shard = f" of shard {finding.shard}" if finding.shard else ""
            click.echo(f"{finding.part}{shard}: {finding.message}", err=True)
        if findings:
            if not as_json:
                click.echo(f"See what can be done: ragq repair {index}", err=True)
            ctx.exit(1)
        if as_json:
            return
    import ragq

    with ragq.open(index) as opened:
        read = opened.verify()
    if as_json:
        echo_json({"ok": True, "bytes": read, "documents": len(opened)})
    else:
        click.echo(f"{index}: {len(opened):,} documents, {read:,} bytes, all as written")
