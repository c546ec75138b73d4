"""As `tests.crash_server`, for changes of a multi-vector index; used by `test_multi_vector_crash`, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import ragq
from ragq.tokens import TokenEmbeddings
from tests import crash_server

OPTIONS: dict[str, Any] = {"multi_vector": True, "codec": "POOL2,FP8", "shard_rows": 4}
DIM = 4


def vectors(n: int, first: int = 0) -> TokenEmbeddings:
    """Return up to three vectors a document, told apart by its number."""
    made = [[[i + 1, 1, j, -1] for j in range(i % 4)] for i in range(first, first + n)]
    return TokenEmbeddings.from_list([np.array(rows, np.float32).reshape(-1, DIM) for rows in made], DIM)


def index(path: Path | str) -> None:
    """Build 12 documents in three shards, fitted."""
    options = OPTIONS | {"first_stage": "LEMUR2(4),FP8"}
    ragq.build(None, path, embeddings=vectors(12), ids=crash_server.ids(12), **options).close()


def add(path: Path | str) -> None:
    """Add two documents and replace one."""
    with ragq.open(path, mode="w") as opened:
        opened.add([{"id": f"d{i}", "text": f"new {i}"} for i in (3, 20, 21)], embeddings=vectors(3, 20))


def prepare(path: Path | str) -> None:
    """Make the index that the changes start from: three shards, one with deletes."""
    options = OPTIONS | {"first_stage": "MUVERA(2,1,2),FP8"}
    with ragq.build(None, path, embeddings=vectors(8, 30), ids=crash_server.ids(8, 30), **options) as opened:
        opened.add([{"id": name, "text": "t"} for name in ("d0", "d1", "d3", "d31")], embeddings=vectors(4, 1))


crash_server.OPERATIONS.update({f.__name__: f for f in (index, add, prepare)})

if __name__ == "__main__":
    crash_server.serve()
