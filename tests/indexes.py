"""What tests of indexes share: a model that needs no torch, and what an index holds as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import xxhash

import ragq
from ragq.manifest import MANIFEST, Manifest

DIM = 8


def words_model(texts: Sequence[str]) -> np.ndarray:
    """Embed a text as the sum of one vector a word, of small integers: inner products of them are exact in float32."""
    rows = np.zeros((len(texts), DIM), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            bits = xxhash.xxh3_64_intdigest(word.encode())
            row += [(bits >> 2 * i & 3) % 3 - 1.0 for i in range(DIM)]
    return rows


def documents(n: int, first: int = 0) -> list[dict]:
    """Return `n` short documents with titles and metadata."""
    return [
        {"id": f"d{i}", "text": f"text {i} of {i % 3}", "title": f"title {i}", "lang": "de" if i % 2 else "en", "n": i}
        for i in range(first, first + n)
    ]


def make(path: Path, n: int = 10, **options: object) -> ragq.Index:
    """Build a small index whose documents `words_model` embeds."""
    return ragq.build(documents(n), path, **{"model": words_model, "codec": "F32"} | options)


def content(index: ragq.Index) -> list[tuple]:
    """Return every document of an index, in order, as plain values."""
    return [(d.id, d.text, d.title, dict(d.metadata)) for d in index]


def on_disk(path: Path) -> set[str]:
    """Return the names of all files in an index folder."""
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def expected_files(path: Path) -> set[str]:
    """Return the names of the files that an index folder at rest must hold, and no others."""
    manifest = Manifest.load(path / MANIFEST, (path / MANIFEST).read_bytes())
    return {MANIFEST, "write.lock", *(file.name for file in manifest.files)}


@contextmanager
def small_shards(rows: int) -> Iterator[None]:
    """Let `Index.add` and `Index.compact` fill shards of a few rows."""
    import ragq.pipelines.api  # noqa: F401 - first, or its defaults would be bound to the patched number for good

    with mock.patch("ragq.pipelines.fitting.SHARD_ROWS", rows):
        yield
