"""`ragq structure`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from ragq.cli.options import echo_json, index_argument, json_option


@click.command()
@index_argument
@click.argument("kind", type=click.Choice(["auto", "ivf", "hnsw", "sm2graph", "none"]), default="auto")
@click.option("--nlist", type=click.IntRange(1), help="Lists of ivf.  [default: about 4 sqrt(rows)]")
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="Share of the ten best rows that a search is tuned to find.",
)
@click.option("--queries", type=click.Path(exists=True, path_type=Path), help="Embeddings (.npy) to tune with.")
@click.option("--learn", is_flag=True, help="Train the lists of ivf on --queries, and keep them if they find more.")
@click.option("--neighbours", type=click.IntRange(0, 256), default=0, help="Also store the nearest passages of each.")
@json_option
def structure(
    index: Path,
    kind: str,
    nlist: int | None,
    recall: float,
    queries: Path | None,
    learn: bool,
    neighbours: int,
    as_json: bool,
) -> None:
    """Build what lets a search of INDEX look at a part of the rows, from the codes; searches use it from then on.

    \b
    ragq structure docs.ragq             what the size asks for
    ragq structure docs.ragq ivf --recall 0.98
    ragq structure docs.ragq ivf --queries q.npy --learn
    ragq structure docs.ragq none --neighbours 8     for `ragq search --expand`
    ragq structure docs.ragq none        scan every row again
    """
    import ragq
    from ragq.pipelines.progress import progress_bar
    from ragq.pipelines.readers import open_embeddings

    if learn and (kind != "ivf" or queries is None):
        raise click.UsageError("--learn trains the lists of ivf, and needs --queries.")
    given = None
    if queries is not None:
        embeddings = open_embeddings(queries)
        given = embeddings.rows(0, len(embeddings))
    with ragq.open(index, mode="w") as opened, progress_bar(quiet=as_json) as progress:
        built = opened.restructure(
            kind, nlist=nlist, recall=recall, queries=given, neighbours=neighbours, progress=progress
        )
        if learn:
            from ragq.pipelines.training.lists import learn_lists

            assert given is not None
            learned = learn_lists(opened, given, progress=progress)
            click.echo(learned.verdict, err=True)
            assert opened.manifest.structure is not None
            built = replace(built, parameters=opened.manifest.structure.parameters)
        size = opened.info()["bytes"]["structure"]
    if as_json:
        echo_json(asdict(built) | {"bytes": size})
        return
    facts = ", ".join(f"{name} {value}" for name, value in built.parameters.items() if name != "asked")
    click.echo(f"{index}: {built.kind}" + (f" ({facts}), {size:,} bytes" if facts else ", every row is scanned"))
    if built.reason:
        click.echo(built.reason)
