"""`ragq train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from ragq.cli.options import echo_json, given, json_option, model_options


@click.command()
@click.argument("source")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("trained"), show_default=True)
@click.option(
    "--method",
    type=click.Choice(["distill-vq", "jpq", "mopq", "repconc", "bpr"]),
    default="distill-vq",
    show_default=True,
)
@click.option("--codec", metavar="SPEC", help="The method's codec, such as DistillVQ24.  [default: that of 48 bytes]")
@click.option("--queries", metavar="FILE", help="Real queries: q.jsonl (_id, text), or embeddings q.npy.")
@click.option("--query-embeddings", metavar="FILE", help="Ready embeddings of q.jsonl.")
@click.option("--qrels", type=click.Path(exists=True, path_type=Path), help="Judgements of the queries, a BEIR .tsv.")
@click.option("--embeddings", metavar="FILE", help="Ready embeddings of SOURCE, where it has none.")
@click.option(
    "--make",
    metavar="KIND,...",
    help="Queries made of the documents: titles, sentences, generated, transplanted, documents; or none.",
)
@click.option("--generator", metavar="MODEL", help="Text2text model that asks questions, for --make generated.")
@click.option("--teacher", metavar="MODEL", help="Cross encoder that judges documents beside the dense scores.")
@click.option("--metric", type=click.Choice(["cosine", "ip"]), default="cosine", show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the queries, at most.")
@click.option("--batch", type=click.IntRange(1), help="Queries of a step.")
@click.option("--queries-per-epoch", type=click.IntRange(1), help="Queries of an epoch, at most.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), help="Of the softmax.  [default: the method's]")
@click.option("--simvq", is_flag=True, help="Train a matrix in front of the codebook instead of its codewords.")
@click.option("--rotation-trick", is_flag=True, help="Rotate gradients through the quantizer.")
@click.option("--held-out", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Share that validates.")
@click.option("--patience", type=click.IntRange(1), help="Epochs without a better validation before it stops.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of an interrupted run.")
@model_options
@json_option
def train(source: str, out: Path, make: str | None, as_json: bool, **options: Any) -> None:
    """Train a codec for the documents of SOURCE: an index, x.npy, or documents with --embeddings.

    What is trained is kept only if it beats its start on queries that were held out.

    \b
    ragq train docs.ragq --queries q.jsonl
    ragq train x.npy --queries q.npy --codec DistillVQ24 -o trained/
    ragq index docs/ --codec trained/        use it at once
    ragq recode docs.ragq --codec trained/   or in an index that exists
    """
    from ragq.pipelines.training.api import train as run

    names = ("model", "device", "backend", "batch_size")
    loading = {name: options.pop(name) for name in names}
    flags = {name: options.pop(name) or None for name in ("simvq", "rotation_trick")}

    def show(line: dict[str, Any]) -> None:
        if not as_json:
            click.echo("  ".join(f"{name} {value}" for name, value in line.items() if name != "best"), err=True)

    try:
        trained = run(
            source,
            out,
            make=None if make is None else [kind.strip() for kind in make.split(",") if kind.strip() != "none"],
            model=loading.pop("model"),
            model_options=given(**loading),
            log=show,
            tell=lambda text: None if as_json else click.echo(text, err=True),
            **given(**options, **flags),
        )
    except KeyboardInterrupt:
        raise click.ClickException(
            f"Interrupted. Go on with the same options and: ragq train {shlex.quote(source)} -o {out} --resume"
        ) from None
    if as_json:
        body = {name: value for name, value in vars(trained).items() if name != "codec"}
        echo_json({"spec": trained.codec.spec, "code_bytes": trained.codec.code_size, "out": str(out), **body})
        return
    click.echo(trained.verdict)
    click.echo(f"{out}: {trained.codec}, {trained.codec.code_size} code bytes. Use it: --codec {out}")
