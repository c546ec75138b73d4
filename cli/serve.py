"""`ragq serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ragq.cli.options import given, index_argument, model_options


@click.command()
@index_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8717, show_default=True, help="0 takes a free one.")
@click.option("--workers", type=click.IntRange(1), help="Replicas that share the shards.  [default: one a processor]")
@click.option("--threads", type=click.IntRange(1), help="Threads of a replica.  [default: all processors, shared out]")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Replicas as processes, or as Ray actors (extra 'ray').",
)
@click.option("--address", help="Of the Ray cluster; by default a local one.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the token that clients must send; RAGQ_TOKEN works too.",
)
@click.option("--allow-host", multiple=True, help="Another name that clients call this server by.")
@click.option("--force", is_flag=True, help="Listen on a public address without a token.")
@click.option("--reload", "reload_seconds", type=click.FloatRange(0.01), default=1.0, show_default=True,
              help="Seconds between two looks for a new generation.")  # fmt: skip
@model_options
def serve(index: Path, token_file: Path | None, allow_host: tuple[str, ...], **options: Any) -> None:
    """Serve INDEX over HTTP, with a search page; only this machine reaches it unless told otherwise.

    \b
    ragq serve docs.ragq                     then open http://127.0.0.1:8717/
    ragq serve docs.ragq --workers 4 --port 80 --host 0.0.0.0 --token-file token
    curl http://127.0.0.1:8717/v1/search -H 'Content-Type: application/json' -d '{"query": "what is a shard?"}'
    """
    import logging

    from ragq.pipelines.serving.server import is_loopback, serve, token_from

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ragq.serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # what strangers send fills no log
    token = token_from(token_file)

    def started(url: str) -> None:
        who = "this machine" if is_loopback(options["host"]) else "everybody who reaches it"
        how = "with the token" if token else "without a token"
        click.echo(f"Serving {index} on {url} for {who}, {how}. Ctrl-C ends it.")

    serve(index, token=token, allow_hosts=allow_host, started=started, **given(**options))
