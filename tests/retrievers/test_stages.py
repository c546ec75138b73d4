"""What a search does besides the scan: words, expansion, reranking, selection."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ragq
from ragq.checks import normalized
from ragq.errors import InvalidArgumentError
from ragq.retrievers.lexical import distribution_fusion, reciprocal_rank_fusion
from ragq.retrievers.selection import coverage, facility_location, mmr, neighbours, pagerank, select, unique

WORDS = ["zebra", "orchid", "violin", "glacier", "copper", "lantern", "harbour", "meadow"]


def embed(texts: list[str]) -> np.ndarray:
    """Embed by one-hot words; a word that is none of `WORDS` adds nothing."""
    x = np.asarray([[text.split().count(word) for word in WORDS] for text in texts], np.float32)
    return x + np.float32(0.01)


@pytest.fixture
def index(tmp_path: Path) -> ragq.Index:
    records = [{"id": word, "text": f"{word} {WORDS[(i + 1) % 8]}", "even": i % 2 == 0} for i, word in enumerate(WORDS)]
    records.append({"id": "rare", "text": "zebra quasar", "even": True})
    return ragq.build(records, tmp_path / "s.ragq", model=embed, codec="F32")


def ids(hits: list[ragq.Hit]) -> list[str]:
    return [hit.document_id for hit in hits]


def test_hybrid_finds_the_word_that_the_vector_does_not_hold(index: ragq.Index) -> None:
    assert "rare" not in ids(index.search("violin quasar", k=3))
    for how in (True, "score"):
        assert "rare" in ids(index.search("violin quasar", k=3, hybrid=how))


def test_hybrid_keeps_filters_and_deletes(index: ragq.Index) -> None:
    assert "rare" not in ids(index.search("zebra quasar", k=9, where={"even": False}, hybrid=True))
    index.delete("rare")
    assert "rare" not in ids(index.search("zebra quasar", k=9, hybrid=True))


def test_hybrid_answers_what_one_vector_cannot(shared: Path, tmp_path: Path) -> None:
    """LIMIT: each pair of 46 documents is the answer to some question; recall@2 of the vectors alone is 0.16."""
    folder = shared / "beir" / "limit-small"
    index = ragq.build(folder, tmp_path / "l.ragq", embeddings=folder / "corpus.minilm.npy", codec="F32")
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()][::5]
    x = np.load(folder / "queries.minilm.npy")[::5]
    relevant: dict[str, set[str]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, _ = line.split("\t")
        relevant.setdefault(query, set()).add(document)

    def recall(found: list[list[str]]) -> float:
        return float(np.mean([len(set(f) & relevant[q["_id"]]) / 2 for f, q in zip(found, queries, strict=True)]))

    index._embedder = type("Ready", (), {"encode_queries": lambda self, texts: x})()  # the ready query embeddings
    texts = [query["text"] for query in queries]
    assert recall([ids(hits) for hits in index.search(texts, k=2)]) < 0.25
    assert recall([ids(hits) for hits in index.search(texts, k=2, hybrid=True)]) >= 0.95


def test_a_reranker_decides_the_order_and_the_scores(index: ragq.Index) -> None:
    def longest(query: str, passages: list[str]) -> list[int]:
        assert query == "zebra"
        return [len(passage) for passage in passages]

    hits = index.search("zebra", k=3, rerank=longest)
    assert [hit.score for hit in hits] == sorted((float(len(hit.text)) for hit in hits), reverse=True)
    assert hits[0].text == max((f"{d.text}" for d in index), key=len)

    class Encoder:
        def predict(self, pairs: list[tuple[str, str]]) -> list[float]:
            return [-len(text) for _, text in pairs]

    assert index.search("zebra", k=1, rerank=Encoder())[0].score == -float(min(len(d.text) for d in index))


@pytest.mark.parametrize("bad", [lambda query, passages: [1.0], lambda query, passages: [float("nan")] * len(passages)])
def test_a_reranker_that_answers_wrongly_is_refused(index: ragq.Index, bad: object) -> None:
    with pytest.raises(InvalidArgumentError, match="one finite score a passage"):
        index.search("zebra", rerank=bad)


def test_unknown_stages_are_refused_by_name(index: ragq.Index) -> None:
    for options, word in (
        ({"select": "best"}, "mmr"),
        ({"expand": "twice"}, "pagerank"),
        ({"hybrid": "bm42"}, "rrf"),
        ({"rerank": 3}, "CrossEncoder"),
        ({"rerank": "no/such/model"}, "no/such/model"),
        ({"fetch": 3}, "fetch_k"),
    ):
        with pytest.raises(InvalidArgumentError, match=word):
            index.search("zebra", **options)
    with pytest.raises(InvalidArgumentError, match="search with text"):
        index.hits(embed(["zebra"]), hybrid=True)


@pytest.mark.parametrize("expand", ["neighbours", "pagerank"])
def test_expansion_reaches_the_neighbours_of_what_was_found(index: ragq.Index, expand: str) -> None:
    alone = ids(index.search("glacier", k=9, fetch_k=2, select="unique"))
    assert len(alone) == 2
    found = ids(index.search("glacier", k=9, fetch_k=2, expand=expand))
    assert found[0] in alone and set(alone) < set(found)
    allowed = ids(index.search("glacier", k=9, fetch_k=2, expand=expand, where={"even": True}))
    assert all(WORDS.index(name) % 2 == 0 for name in allowed if name != "rare")


def test_selection_collapses_planted_copies(tmp_path: Path) -> None:
    texts = ["zebra"] * 5 + ["zebra orchid", "zebra violin"]
    index = ragq.build(
        [{"id": str(i), "text": t} for i, t in enumerate(texts)], tmp_path / "d.ragq", model=embed, codec="F32"
    )

    def copies(hits: list[ragq.Hit]) -> int:
        return len(hits) - len({hit.text for hit in hits})

    assert copies(index.search("zebra", k=3)) == 2
    assert copies(index.search("zebra", k=3, select="unique")) == 0
    assert copies(index.search("zebra orchid", k=3, select="mmr")) == 0
    assert copies(index.search("zebra", k=3, select="coverage")) == 0


def test_mmr_passes_over_a_copy_for_something_a_little_less_relevant() -> None:
    x = normalized(np.asarray([[1, 0, 1], [1, 0, 1], [0, 1, 1]], np.float32))
    assert mmr(np.asarray([1, 1, 0.9], np.float32), x, 2).tolist() == [0, 2]


def candidates(seed: int, n: int, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim)).astype(np.float32)
    return rng.standard_normal(n).astype(np.float32), normalized(np.repeat(x, 2, axis=0)[:n])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), k=st.integers(1, 6))
def test_facility_location_covers_no_worse_than_mmr_and_near_the_best(seed: int, n: int, k: int) -> None:
    relevance, x = candidates(seed, n)
    chosen = facility_location(relevance, x, k)
    value = coverage(relevance, x, chosen)
    assert len(set(chosen.tolist())) == len(chosen) == min(k, n)
    assert value >= coverage(relevance, x, mmr(relevance, x, k)) - 1e-6
    best = max(coverage(relevance, x, np.asarray(s)) for s in itertools.combinations(range(n), min(k, n)))
    assert value >= (1 - 1 / np.e) * best - 1e-6


@given(seed=st.integers(0, 1000), n=st.integers(1, 20))
def test_pagerank_is_a_distribution_over_the_candidates(seed: int, n: int) -> None:
    relevance, x = candidates(seed, n)
    start = np.abs(relevance) / np.abs(relevance).sum()
    walk = pagerank(start, neighbours(x, 3))
    assert (walk >= 0).all() and walk.sum() <= 1 + 1e-4


def test_selection_without_candidates_is_empty() -> None:
    empty = np.empty(0, np.float32), np.empty((0, 4), np.float32)
    for name in ("mmr", "coverage", "unique"):
        assert len(select(name, *empty, 3)) == 0
    relevance, x = candidates(0, 4)
    assert unique(relevance, x, 9).tolist() == unique(relevance, x, 4).tolist()


def test_fusions_reward_agreement_and_keep_the_order_of_ties() -> None:
    one = (np.asarray([3, 1, 2]), np.asarray([9.0, 5.0, 1.0], np.float32))
    two = (np.asarray([1, 3, 7]), np.asarray([8.0, 7.9, 0.1], np.float32))
    for fused in (reciprocal_rank_fusion([one, two]), distribution_fusion([one, two])):
        assert set(fused[0][:2].tolist()) == {1, 3} and len(fused[0]) == 4
    ones = np.ones(2, np.float32)
    rows, scores = reciprocal_rank_fusion([(np.asarray([5, 4]), ones), (np.asarray([4, 5]), ones)])
    assert rows.tolist() == [4, 5] and scores[0] == pytest.approx(scores[1])
