"""Write golden indexes, on purpose: ``python -m tests.regenerate_golden_indexes planes``.

A golden index pins what an index folder means: a small one of every format version and layout of codes, with replaced
and deleted documents and, where there is one, a structure; and beside it what it answers. The tests only read it. One
of an older version is never written again, as only that version's release could.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np

import ragq
from ragq.tokens import TokenEmbeddings
from tests.indexes import documents, small_shards

FOLDER = Path(__file__).parent / "golden_indexes"
PLANS: dict[str, dict[str, Any]] = {  # name -> what `ragq.build` is given
    "rows": {"codec": "PCA6,FP8", "metric": "cosine"},
    "blocks": {"codec": "PQ4x4", "metric": "l2"},
    "nibbles": {"codec": "PQ2x8", "metric": "ip"},
    "planes": {"codec": "RBQ2", "metric": "cosine"},
    "tokens": {"codec": "POOL4,INT8", "metric": "ip", "multi_vector": True, "first_stage": "MUVERA(2,2,4),FP8"},
}
ROWS, DIM, SHARD = 300, 8, 160
MAX_BYTES = 150_000


def vectors(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def tokens(n: int, seed: int) -> TokenEmbeddings:
    """Return up to six vectors a document, also none."""
    return TokenEmbeddings.from_list([vectors((i + 1) % 7, seed + i) for i in range(n)])


def write_golden(name: str) -> Path:
    """Build one, change it, and note what it holds and answers."""
    plan = PLANS[name]
    many = plan.get("multi_vector", False)
    path = FOLDER / name
    shutil.rmtree(path, ignore_errors=True)
    x: Any = tokens(ROWS, 0) if many else vectors(ROWS, 0)
    ragq.build(documents(ROWS), path, embeddings=x, shard_rows=SHARD, **plan).close()
    with small_shards(SHARD), ragq.open(path, mode="w") as index:
        if not many:
            index.restructure("ivf", nlist=4)
        more: Any = tokens(5, 900) if many else vectors(5, 1)
        index.add(documents(5, 2), embeddings=more)
        index.delete(["d0", "d200"])
    (path / "write.lock").unlink(missing_ok=True)
    with ragq.open(path) as index:
        expected = {
            "format": index.manifest.format,
            "documents": [document.id for document in index],
            "answers": answers(index, many),
        }
    path.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")
    return path


def answers(index: ragq.Index, many: bool) -> list[list[list[Any]]]:
    """Return ids and scores of exact searches, without and with a filter, and of those by a first stage."""
    queries: Any = tokens(3, 500) if many else vectors(3, 2)
    found = [index.hits(queries, 5, where, exact=True) for where in (None, {"lang": "de", "n": {"$gte": 100}})]
    if many:
        found.append(index.hits(queries, 5, candidates=10))
    return [[[hit.id, round(hit.score, 4)] for hit in hits] for some in found for hits in some]


@click.command()
@click.argument("names", nargs=-1, required=True)
def main(names: tuple[str, ...]) -> None:
    """Write the golden indexes NAMES."""
    for name in names:
        if name not in PLANS:
            raise click.BadParameter(f"no golden index '{name}'; there are {', '.join(PLANS)}")
        path = write_golden(name)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        click.echo(f"{name}: {size} bytes" + (f", over {MAX_BYTES}" * (size > MAX_BYTES)))


if __name__ == "__main__":
    main()
