"""A corpus with planted near-duplicates: selection repeats less, and shows more of what matters."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import ragq
from ragq.checks import normalized

ALPHA, COPIES, K = 0.5, 3, 10
NOISE = 0.05  # of a copy: a cosine of about 0.9975 to its original


def gain(answers: list[int], relevant: set[int]) -> float:
    """Return the alpha-DCG of originals in their order: a repeat is worth (1 - alpha) of what came before."""
    seen: Counter[int] = Counter()
    total = 0.0
    for rank, original in enumerate(answers):
        if original in relevant:
            total += (1 - ALPHA) ** seen[original] / np.log2(rank + 2)
            seen[original] += 1
    return total


def alpha_ndcg(answers: list[int], relevant: set[int]) -> float:
    """Clarke et al., SIGIR 2008: alpha-DCG over that of the best order, all different relevant originals first."""
    best = [original for _ in range(COPIES) for original in sorted(relevant)]
    return gain(answers[:K], relevant) / gain(best[:K], relevant)


def test_alpha_ndcg_by_hand() -> None:
    assert alpha_ndcg([1, 2], {1, 2}) == pytest.approx((1 + 1 / np.log2(3)) / gain([1, 2] * COPIES, {1, 2}))
    assert alpha_ndcg([1, 1, 2], {1, 2}) < alpha_ndcg([1, 2, 1], {1, 2}) < 1
    assert alpha_ndcg([3, 4], {1}) == 0


def test_selection_ends_repeats_and_raises_alpha_ndcg(shared: Path, tmp_path: Path) -> None:
    folder = shared / "beir" / "cranfield"
    x, queries = np.load(folder / "corpus.minilm.npy"), np.load(folder / "queries.minilm.npy")
    rng = np.random.default_rng(0)
    copies = [x + NOISE * normalized(rng.standard_normal(x.shape).astype(np.float32)) for _ in range(COPIES - 1)]
    ids = [f"{i}/{copy}" for copy in range(COPIES) for i in range(len(x))]
    index = ragq.build(None, tmp_path / "c.ragq", embeddings=np.concatenate([x, *copies]), ids=ids, codec="INT8")
    with (folder / "corpus.jsonl").open() as file:
        number = {line.split('"_id": "')[1].split('"')[0]: i for i, line in enumerate(file)}
    with (folder / "queries.jsonl").open() as file:
        asked = [line.split('"_id": "')[1].split('"')[0] for line in file]
    relevant: dict[str, set[int]] = {}
    with (folder / "qrels" / "test.tsv").open() as file:
        for query, document, grade in list(csv.reader(file, delimiter="\t"))[1:]:
            if int(grade) > 0 and document in number:
                relevant.setdefault(query, set()).add(number[document])
    judged = [i for i, query in enumerate(asked) if relevant.get(query)][::6]

    def measure(select: str | None) -> tuple[float, float]:
        found = index.hits(queries[judged], k=K, fetch_k=100, select=select)
        answers = [[int(hit.document_id.split("/")[0]) for hit in hits] for hits in found]
        repeats = np.mean([1 - len(set(a)) / len(a) for a in answers])
        return float(
            np.mean([alpha_ndcg(a, relevant[asked[i]]) for a, i in zip(answers, judged, strict=True)])
        ), repeats

    plain, plain_repeats = measure(None)
    assert plain_repeats > 0.5
    for select in ("unique", "coverage", "mmr"):
        value, repeats = measure(select)
        assert repeats < 0.05, (select, repeats)
        if select != "mmr":  # whose balance is for diversity beyond copies: it also leaves what is relevant
            assert value > 1.05 * plain, (value, plain)
