"""Write the golden multi-vector index, on purpose: ``python -m tests.regenerate_golden_index``.

It pins what the files of a multi-vector index mean; the tests only read it. Writing it again says that indexes on disk
have changed their meaning: bump the format.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np

import ragq
from ragq.tokens import TokenEmbeddings
from tests.indexes import on_disk

GOLDEN = Path(__file__).parent / "golden_index" / "multi_vector.zip"
DIM = 8
COUNTS = [4, 1, 0, 7, 3, 12, 2, 5, 6, 1]


def vectors(counts: list[int], seed: int) -> TokenEmbeddings:
    """Return seeded token embeddings."""
    rng = np.random.default_rng(seed)
    return TokenEmbeddings.from_list([rng.standard_normal((n, DIM)).astype(np.float32) for n in counts], DIM)


def questions() -> TokenEmbeddings:
    """Return the queries that the golden answers are to."""
    return vectors([3, 1, 5], 1)


def main() -> None:
    """Build, delete and add, so that every kind of file is there, and store the answers beside the index."""
    corpus = [{"id": f"d{i}", "text": f"text {i}", "n": i} for i in range(len(COUNTS))]
    with tempfile.TemporaryDirectory() as folder:
        index = ragq.build(
            corpus,
            Path(folder) / "index",
            embeddings=vectors(COUNTS, 0),
            multi_vector=True,
            codec="POOL4,INT8",
            first_stage="MUVERA(2,2,4),FP8",
            shard_rows=6,
        )
        index.add([{"id": "d3", "text": "another 3"}, {"id": "new", "text": "new"}], embeddings=vectors([2, 9], 2))
        index.delete(["d0"])
        expected = {"documents": [[d.id, d.text, dict(d.metadata)] for d in index]}
        for name, options in (("first", {"candidates": 5}), ("exact", {"exact": True})):
            found = index.search_embeddings(questions(), 4, **options)
            expected[name] = {"ids": found.ids.tolist(), "scores": found.scores.tolist()}
        GOLDEN.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(GOLDEN, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(on_disk(Path(folder) / "index") - {"write.lock"}):
                archive.write(Path(folder) / "index" / name, f"index/{name}")
            archive.writestr("expected.json", json.dumps(expected, indent=1))


if __name__ == "__main__":
    main()
