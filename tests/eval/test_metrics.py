"""Measures: the numbers of pytrec_eval, with unanswered queries and ties under a stated rule."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval

from ragq.errors import InvalidArgumentError
from ragq.eval.exact import Exact
from ragq.eval.metrics import MEASURES, evaluate, parse_measure, rank_biased_overlap, ranking

QRELS = {"q1": {"a": 2, "b": 1, "z": 0}, "q2": {"c": 1}, "q3": {"d": 1}}


def random_case(seed: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Return scores without ties, and graded judgements of 30 queries over 150 documents."""
    rng = np.random.default_rng(seed)
    scores, qrels = {}, {}
    for q in range(30):
        found = rng.permutation(150)[: rng.integers(1, 130)]
        scores[f"q {q}"] = {f"d\t{d}": float(s) for d, s in zip(found, rng.permutation(len(found)), strict=True)}
        qrels[f"q {q}"] = {f"d\t{d}": int(rng.integers(0, 4)) for d in rng.permutation(150)[:12]}
    return scores, qrels


@pytest.mark.parametrize("seed", range(3))
def test_every_query_agrees_with_pytrec_eval(seed: int) -> None:
    scores, qrels = random_case(seed)
    ours = evaluate({query: ranking(found) for query, found in scores.items()}, qrels)
    names = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut"}
    wanted = {"ndcg_cut.1,5,10,100", "recall.10,100", "map_cut.100"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(scores)
    for measure in MEASURES:
        kind, k = parse_measure(measure)
        if kind in names:
            expected = [theirs[query][f"{names[kind]}_{k}"] for query in ours.queries]
            np.testing.assert_allclose(ours.values[measure], expected, atol=1e-6)


def test_reciprocal_rank_stops_at_its_cutoff() -> None:
    run = {"q1": [*map(str, range(9)), "a"], "q2": [*map(str, range(10)), "c"], "q3": ["d"]}
    assert evaluate(run, QRELS, ["mrr@10"]).values["mrr@10"].tolist() == pytest.approx([0.1, 0, 1])


def test_an_unanswered_judged_query_scores_zero_and_is_counted() -> None:
    scores = evaluate({"q1": ["a", "b"], "q2": []}, QRELS)
    assert scores.unanswered == 2
    assert scores.mean("recall@10") == pytest.approx(1 / 3)


def test_the_order_of_the_run_is_the_ranking_whatever_the_ids() -> None:
    for first, second in (("a", "y"), ("y", "a")):
        scores = evaluate({"q1": [first, second]}, {"q1": {"a": 1}}, ["mrr@10"])
        assert scores.mean("mrr@10") == (1.0 if first == "a" else 0.5)
    assert ranking({"m": 1.0, "z": 2.0, "a": 2.0}) == ["z", "a", "m"]


def test_a_query_with_no_relevant_document_scores_zero() -> None:
    scores = evaluate({"q": ["x"], "r": ["y"]}, {"q": {"x": 0}, "r": {"y": 1}})
    assert scores.values["ndcg@10"].tolist() == [0, 1]


def test_a_document_that_comes_twice_counts_once() -> None:
    assert evaluate({"q2": ["c", "c"]}, {"q2": {"c": 1}}).mean("recall@10") == 1


@pytest.mark.parametrize("run", [{}, {"q1": []}, {"other": ["a"]}])
def test_an_empty_run_is_an_error_that_shows_both_sides(run: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidArgumentError, match="answers none of the 3 judged queries"):
        evaluate(run, QRELS)


@pytest.mark.parametrize("name", ["ndgc@10", "ndcg", "ndcg@0", "recall@-1", "", "bleu@4"])
def test_an_unknown_measure_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"Unknown measure .* Known: ndcg@k, recall@k"):
        evaluate({"q1": ["a"]}, QRELS, [name])


def test_no_judgements_is_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="no judgements"):
        evaluate({"q1": ["a"]}, {})


def test_rank_biased_overlap_follows_its_definition() -> None:
    assert rank_biased_overlap("abcde", "abcde") == pytest.approx(1)
    assert rank_biased_overlap("abc", "xyz") == 0
    # d = 1: 0; d = 2: 1/2; d = 3: 1, by hand
    assert rank_biased_overlap("abc", "cab", 0.9) == pytest.approx(0.9**3 + 0.1 / 0.9 * (0.5 * 0.9**2 + 0.9**3))
    assert rank_biased_overlap("bacdef", "abcdef") < rank_biased_overlap("abcdfe", "abcdef")
    with pytest.raises(InvalidArgumentError, match="between 0 and 1"):
        rank_biased_overlap("a", "a", 1.0)


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_exact_search_agrees_with_itself_and_not_with_the_reverse(metric: str) -> None:
    rng = np.random.default_rng(0)
    documents, queries = rng.normal(size=(300, 8)).astype("f4"), rng.normal(size=(7, 8)).astype("f4")
    exact = Exact.search(documents, queries, 300, metric)
    assert exact.agreement(exact.rows, 10).tolist() == [1] * 7
    assert exact.rank_biased_overlap(exact.rows).tolist() == pytest.approx([1] * 7)
    backwards = exact.rows[:, ::-1]
    assert exact.agreement(backwards, 10).tolist() == [0] * 7
    assert exact.rank_biased_overlap(backwards).max() < 0.3


def test_a_near_duplicate_of_an_exact_answer_is_a_hit() -> None:
    documents = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    exact = Exact.search(documents, np.array([[1, 0]], np.float32), 4)
    assert exact.agreement(np.array([[1]]), 1).tolist() == [1]
    assert exact.agreement(np.array([[2]]), 1).tolist() == [0]
    assert exact.agreement(np.array([[-1]]), 1).tolist() == [0]


def test_depth_beyond_the_corpus_is_all_of_it() -> None:
    exact = Exact.search(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), 100)
    assert exact.rows.shape == (3, 3)
    assert exact.agreement(exact.rows, 100).tolist() == [1, 1, 1]
