"""Embed a corpus by both engines: ``python -m tests.embed_twice ../shared/data/beir/scifact FOLDER``.

Indexes the corpus with the default model into FOLDER/local and, with two workers of Ray of which one is killed when a
third of the rows are done, into FOLDER/ray; then compares documents, files and answers. An interrupted run goes on.
``--engine`` builds one of the two only; ``--tokens`` makes embedding quicker by a model that reads only so many.
Prints JSON.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import ragq
from ragq.pipelines.progress import Progress
from tests.indexes import content

CODEC = "PQ48x8"
OPTIONS: dict[str, Any] = {"codec": CODEC, "sample": 2000, "shard_rows": 500, "resume": True}


def actors() -> list[int]:
    """Return the processes of Ray's actors that this process started, directly or not."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[pid] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except (ValueError, OSError):
            continue

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid, name in names.items() if "ray::" in name and "RemoteWorker" in name and ours(pid)]


class Killer:
    """Progress of a build that kills one worker once, when a third of the rows are done."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage == "index" and total and done > total / 3 and not self.killed:
            self.killed = actors()[:1]
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)


def shortened(folder: Path, tokens: int) -> Path:
    """Return a folder of the default model that reads so many tokens."""
    if not (folder / "modules.json").exists():
        from ragq.embedders import load_embedder

        model: Any = load_embedder()
        model.model.max_seq_length = tokens
        model.model.save(str(folder))
    return folder


def built(corpus: Path, out: Path, progress: Progress, **options: Any) -> float:
    """Build an index that is not there; return the seconds."""
    started = time.perf_counter()
    if not (out / "manifest.json").exists():
        ragq.build(corpus, out, progress=progress, **options, **OPTIONS).close()
    return round(time.perf_counter() - started, 1)


@click.command()
@click.argument("corpus", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--engine", "engines", type=click.Choice(["local", "ray"]), multiple=True, default=("local", "ray"))
@click.option("--tokens", type=click.IntRange(8), help="That the model reads; all that it can by default.")
def main(corpus: Path, folder: Path, engines: tuple[str, ...], tokens: int | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    killer, seconds = Killer(), {}
    options = {} if tokens is None else {"model": str(shortened(folder / f"model-{tokens}", tokens))}
    if "local" in engines:
        seconds["local"] = built(corpus, folder / "local", lambda *_: None, **options)
    if "ray" in engines:
        seconds["ray"] = built(corpus, folder / "ray", killer, engine="ray", workers=2, **options)
    click.echo(json.dumps({"seconds": seconds, "killed": len(killer.killed)}))
    if len(engines) == 2:
        click.echo(json.dumps(compared(corpus, ragq.open(folder / "local"), ragq.open(folder / "ray")), indent=1))


def compared(corpus: Path, local: ragq.Index, remote: ragq.Index) -> dict[str, Any]:
    """Count what is the same in two indexes."""
    queries = [json.loads(line)["text"] for line in (corpus / "queries.jsonl").read_text().splitlines()[:100]]
    mine, theirs = (index.search_embeddings(local.embedder.encode_queries(queries), 10) for index in (local, remote))
    pairs = list(zip(local.manifest.shards, remote.manifest.shards, strict=True))
    local.verify()
    remote.verify()
    return {
        "documents": [len(local), len(remote)],
        "passages": local.manifest.rows,
        "shards": len(pairs),
        "same_documents": content(local) == content(remote),
        "same_compressor": local.manifest.compressor == remote.manifest.compressor,
        "same_files": sum([f.xxh3 for f in one.files] == [f.xxh3 for f in two.files] for one, two in pairs),
        "queries": len(queries),
        "same_answers": int((mine.ids == theirs.ids).all(axis=1).sum()),
        "same_scores": bool(np.array_equal(mine.scores, theirs.scores)),
    }


if __name__ == "__main__":
    main()
