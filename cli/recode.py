"""`ragq recode`."""

from __future__ import annotations

from pathlib import Path

import click

from ragq.cli.options import echo_json, index_argument, json_option


@click.command()
@index_argument
@click.option("--codec", required=True, metavar="SPEC|FOLDER", help="A trained codec, or a spec.")
@click.option(
    "--embeddings", metavar="FILE", help="Ready embeddings, one row a passage; by default those of the index."
)
@json_option
def recode(index: Path, codec: str, embeddings: str | None, as_json: bool) -> None:
    """Encode INDEX again with another codec; nothing is read or embedded again.

    Searches see the old codes until the new ones are whole. The embeddings are decoded from the index when it keeps 8
    bits a dimension or more (F32, F16, FP8, INT8 ...).

    \b
    ragq recode docs.ragq --codec trained/
    ragq recode docs.ragq --codec VPQ48 --embeddings docs.npy
    """
    import ragq
    from ragq.compressors import from_spec
    from ragq.pipelines.codecs import is_codec_folder, untrained
    from ragq.pipelines.progress import progress_bar
    from ragq.pipelines.training.reencode import reencode

    with ragq.open(index, mode="w") as opened, progress_bar(quiet=as_json) as progress:
        before = opened.info()
        reencode(opened, codec, embeddings, progress=progress)
        after = opened.info()
    if as_json:
        echo_json(after)
        return
    if not is_codec_folder(codec):
        for note in untrained(from_spec(after["spec"])):
            click.echo(note, err=True)
    click.echo(
        f"{index}: {before['spec']} -> {after['spec']}, {before['code_bytes']} -> {after['code_bytes']} code bytes and "
        f"{before['index_bytes_per_vector']:.1f} -> {after['index_bytes_per_vector']:.1f} index bytes a vector"
    )
    if before["structure"]:
        click.echo(f"Its structure is gone with the old codes; build one with: ragq structure {index}")
