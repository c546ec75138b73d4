"""What the first codecs keep of SciFact's ranking; exact float32 search has nDCG@10 = 0.6451."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors import from_spec


@cache
def scifact(shared: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], list[set[int]]]:
    """Return the corpus, the test queries, and the relevant rows of each (SciFact's judgements are binary)."""
    folder = shared / "beir" / "scifact"

    def rows(name: str) -> dict[str, int]:
        with (folder / name).open() as file:
            return {json.loads(line)["_id"]: row for row, line in enumerate(file)}

    documents, queries = rows("corpus.jsonl"), rows("queries.jsonl")
    relevant: dict[int, set[int]] = {}
    with (folder / "qrels" / "test.tsv").open() as file:
        for query, document, score in list(csv.reader(file, delimiter="\t"))[1:]:
            if int(score) > 0:
                relevant.setdefault(queries[query], set()).add(documents[document])
    q = np.load(folder / "queries.minilm.npy")[list(relevant)]
    return np.load(folder / "corpus.minilm.npy"), q, list(relevant.values())


def ndcg_at_10(scores: NDArray[np.float32], relevant: list[set[int]]) -> float:
    discount = 1 / np.log2(np.arange(2, 12))
    gains = [
        sum(discount[i] for i, row in enumerate(np.argsort(-s, kind="stable")[:10]) if row in wanted)
        / discount[: len(wanted)].sum()
        for s, wanted in zip(scores, relevant, strict=True)
    ]
    return float(np.mean(gains))


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        ("F32", 0.6446, 0.6456),
        ("F16", 0.6440, 0.6460),
        ("FP8", 0.640, 0.66),
        ("INT8", 0.640, 0.66),
        ("PCA128,FP8", 0.6265, 0.6465),
        ("PCA50%,FP8", 0.63, 0.66),
        ("INT4", 0.62, 0.66),
        ("FP4", 0.62, 0.66),
        ("BIN", 0.55, 0.66),
    ],
)
def test_ndcg_on_scifact(shared: Path, spec: str, low: float, high: float) -> None:
    x, q, relevant = scifact(shared)
    codec = from_spec(spec).fit(x)
    ndcg = ndcg_at_10(codec.scorer(q).score(codec.encode(x)), relevant)
    assert low <= ndcg <= high, f"{spec}: nDCG@10 = {ndcg:.4f}"
