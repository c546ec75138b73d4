"""A small data set with ready embeddings, in BEIR's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

DOCUMENTS, QUERIES, DIM = 240, 24, 16


def write_tiny(folder: Path, seed: int = 0, *, judged: bool = True) -> Path:
    """Write documents in clusters, queries near them, and the nearest document of each query as relevant."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    documents = rng.normal(size=(DOCUMENTS, DIM)).astype("f4")
    queries = documents[:QUERIES] + 0.7 * rng.normal(size=(QUERIES, DIM)).astype("f4")
    np.save(folder / "corpus.tiny.npy", documents)
    np.save(folder / "queries.tiny.npy", queries)
    records = {
        "corpus": [{"_id": f"d {i}", "title": f"T{i}", "text": f"<b>text</b> & {i}"} for i in range(DOCUMENTS)],
        "queries": [{"_id": f"q {i}", "text": f"question {i}?"} for i in range(QUERIES)],
    }
    for name, lines in records.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if judged:
        (folder / "qrels").mkdir()
        lines = [f"q {i}\td {i}\t2\nq {i}\td {i + QUERIES}\t1" for i in range(QUERIES)]
        (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judged data set of 240 documents and 24 queries in 16 dimensions, embeddings called ``tiny``."""
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def tiny2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one."""
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny2", seed=1)
