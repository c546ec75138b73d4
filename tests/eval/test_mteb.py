"""ragq inside MTEB: the same numbers as `ragq eval`, both ways round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import pytrec_eval
from mteb.cache import ResultCache
from mteb.models import SearchEncoderWrapper
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.models.models_protocols import SearchProtocol

from ragq.errors import InvalidArgumentError
from ragq.eval.datasets import Dataset, load
from ragq.eval.mteb_models import RagqSearchIndex, RagqSearchModel, strictly_falling
from ragq.eval.run import load_data, run
from ragq.eval.sources import check_task, local_task


class Lookup:
    """The ready embeddings of a data set as a model: text in, its row out."""

    def __init__(self, folder: Path, name: str) -> None:
        (dataset,) = load(folder)
        documents, queries = np.load(folder / f"corpus.{name}.npy"), np.load(folder / f"queries.{name}.npy")
        self.rows = dict(zip(dataset.passages, documents, strict=True))
        self.rows |= dict(zip(dataset.queries, queries[dataset.query_rows], strict=True))
        self.unknown = np.zeros(documents.shape[1], np.float32)  # ragq asks for the dimension with a text of its own

    def __call__(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.rows.get(text, self.unknown) for text in texts])


class Encoder:
    """The same as an mteb encoder."""

    def __init__(self, lookup: Lookup) -> None:
        self.lookup = lookup
        self.mteb_model_meta = ModelMeta.create_empty({"name": "a/b", "similarity_fn_name": ScoringFunction.COSINE})

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        return self.lookup([text for batch in inputs for text in batch["text"]])

    def similarity(self, a: Any, b: Any) -> Any:
        raise AssertionError("scores come from the codes")

    similarity_pairwise = similarity


def score(model: Any, task: Any, cache: ResultCache | None = None) -> dict[str, Any]:
    results = mteb.evaluate(model, task, cache=cache, co2_tracker=False, show_progress_bar=False)
    (scores,) = results.task_results[0].scores["test"]
    return scores


@pytest.fixture(scope="module")
def scifact(shared: Path) -> Path:
    return shared / "beir" / "scifact"


def test_scifact_scores_the_same_through_mteb_and_through_ragq_eval(scifact: Path) -> None:
    row = run(load_data([scifact], embeddings="minilm"), ["F32"]).rows[0]
    scores = score(RagqSearchModel(Lookup(scifact, "minilm"), "F32"), local_task("SciFact", scifact))
    assert scores["main_score"] == pytest.approx(0.6451, abs=0.0005)
    assert scores["main_score"] == pytest.approx(row["ndcg@10"], abs=1e-5)  # mteb rounds to five digits
    assert scores["recall_at_100"] == pytest.approx(row["recall@100"], abs=1e-5)


def test_every_query_of_scifact_agrees_with_pytrec_eval(scifact: Path) -> None:
    ((dataset, vectors),) = load_data([scifact], embeddings="minilm")
    report = run([(dataset, vectors)], ["F32"])
    scores = vectors.queries @ vectors.documents.T
    scored = {}
    for query, found in zip(dataset.query_ids, scores, strict=True):
        best = np.argpartition(-found, 100)[:100]
        scored[query] = {dataset.ids[row]: float(found[row]) for row in best}
    theirs = pytrec_eval.RelevanceEvaluator(dataset.qrels, {"ndcg_cut.10", "recall.100", "map_cut.100"}).evaluate(
        scored
    )
    ours = report.results[0]
    for name, key in (("ndcg@10", "ndcg_cut_10"), ("recall@100", "recall_100"), ("map@100", "map_cut_100")):
        expected = [theirs[query][key] for query in ours.queries]
        np.testing.assert_allclose(ours.by_query[name], expected, atol=1e-6)


@pytest.mark.parametrize("codec", ["BIN", "PCA8,FP8"])
def test_codes_that_tie_score_the_same_in_mteb_both_ways_round(tiny: Path, codec: str) -> None:
    row = run(load_data([tiny], embeddings="tiny"), [codec]).rows[0]
    task, lookup = local_task("Tiny", tiny), Lookup(tiny, "tiny")
    backend = RagqSearchIndex(codec)
    for model in (RagqSearchModel(lookup, codec), SearchEncoderWrapper(Encoder(lookup), index_backend=backend)):
        scores = score(model, task)
        assert scores["ndcg_at_10"] == pytest.approx(row["ndcg@10"], abs=1e-5)
        assert scores["mrr_at_10"] == pytest.approx(row["mrr@10"], abs=1e-5)
    assert backend.info["code_bytes"] == row["code_bytes"]


def test_mteb_writes_its_result_file_with_the_spec_and_its_bytes(tiny: Path, tmp_path: Path) -> None:
    model = RagqSearchModel(Lookup(tiny, "tiny"), "PCA8,FP8")
    assert isinstance(model, SearchProtocol)
    score(model, local_task("Tiny", tiny), ResultCache(tmp_path))
    (meta,) = [json.loads(path.read_text()) for path in tmp_path.rglob("model_meta.json")]
    assert meta["experiment_kwargs"] == {"codec": "PCA8,FP8", "code_bytes": 8, "seed": 0}
    assert "-ragq0." in meta["revision"] and meta["name"].startswith("ragq/")
    (result,) = list(tmp_path.rglob("Tiny.json"))
    assert json.loads(result.read_text())["scores"]["test"][0]["main_score"] > 0.3
    assert model.info["index_bytes_per_vector"] > 8 and model.info["spec"] == "PCA8,FP8"


def queries_of(dataset: Dataset) -> Any:
    from datasets import Dataset as Table

    return Table.from_dict({"id": dataset.query_ids, "text": dataset.queries})


def test_reranking_returns_only_the_candidates_both_ways_round(tiny: Path) -> None:
    (dataset,), lookup = load(tiny), Lookup(tiny, "tiny")
    candidates = {query: [f"d {(i * 7 + j) % 240}" for j in (90, 5, 33)] for i, query in enumerate(dataset.query_ids)}
    task = local_task("Tiny", tiny)
    task.load_data()
    model, backend = RagqSearchModel(lookup, "F32"), RagqSearchIndex("F32")
    model.index(task.dataset["default"]["test"]["corpus"])
    answers = model.search(queries_of(dataset), top_k=2, top_ranked=candidates)
    backend.add_documents(lookup(dataset.passages[:100]), dataset.ids[:100])
    backend.add_documents(lookup(dataset.passages[100:]), dataset.ids[100:])
    names = dict(enumerate(dataset.query_ids))
    scores, places = backend.search(lookup(dataset.queries), 2, None, candidates, names)
    for i, query in enumerate(dataset.query_ids):
        exact = {
            d: float(
                lookup.rows[dataset.queries[i]]
                @ (v := lookup.rows[f"T{d[2:]} <b>text</b> & {d[2:]}"])
                / np.linalg.norm(v)
            )
            for d in candidates[query]
        }
        best = sorted(exact, key=lambda d: -exact[d])[:2]
        assert list(answers[query]) == best == [candidates[query][place] for place in places[i]]
        assert scores[i] == sorted(scores[i], reverse=True)


def test_order_of_calls_and_sizes_are_checked() -> None:
    backend = RagqSearchIndex("F32")
    with pytest.raises(InvalidArgumentError, match="add_documents"):
        backend.search(np.ones((1, 4), "f4"), 3)
    with pytest.raises(InvalidArgumentError, match="2 embeddings and 1 ids"):
        backend.add_documents(np.ones((2, 4), "f4"), ["a"])
    backend.add_documents(np.eye(4, dtype="f4")[:2], ["a", "b"])
    assert backend.search(np.eye(4, dtype="f4")[1:2], 5)[1] == [[1, 0]]
    with pytest.raises(InvalidArgumentError, match="query_idx_to_id"):
        backend.search(np.ones((1, 4), "f4"), 3, None, {"q": ["a"]})
    backend.clear()
    with pytest.raises(InvalidArgumentError, match="add_documents"):
        backend.search(np.ones((1, 4), "f4"), 3)
    with pytest.raises(InvalidArgumentError, match=r"index\(\) must come before"):
        RagqSearchModel(lambda texts: np.ones((len(texts), 2)), "F32").search(None, top_k=3)


def test_tied_scores_fall_strictly_and_others_stay() -> None:
    scores = np.array([2, 2, 2, 1, 1, 0.5, -1, -1], np.float32)
    falling = strictly_falling(scores)
    assert (np.diff(falling) < 0).all() and np.allclose(falling, scores, atol=1e-6)
    assert strictly_falling(np.array([3, 2, 1], np.float32)).tolist() == [3, 2, 1]
    assert strictly_falling(np.empty(0, np.float32)).size == 0


def test_an_unknown_task_is_refused_with_the_nearest_and_another_kind_with_its_type() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"neither a folder nor a task that mteb .* Did you mean 'SciFact'\?"
    ):
        load("SciFaktt")
    with pytest.raises(InvalidArgumentError, match="'STSBenchmark' is STS; ragq evaluates text retrieval"):
        load("mteb:STSBenchmark")
    with pytest.raises(InvalidArgumentError, match="has no split 'dev'"):
        load("mteb:SciFact", split="dev")


def test_a_task_by_name_reads_a_local_copy(scifact: Path) -> None:
    (dataset,) = load(f"mteb:SciFact={scifact}")
    assert dataset.name == "SciFact" and len(dataset.queries) == 300
    assert check_task("LIMITSmallRetrieval").metadata.main_score == "recall_at_2"


def test_a_task_of_the_hub_is_read_through_mteb(monkeypatch: pytest.MonkeyPatch, scifact: Path) -> None:
    local = local_task("SciFact", scifact)
    monkeypatch.setattr(type(mteb.get_tasks(tasks=["SciFact"])[0]), "load_data", type(local).load_data)
    (dataset,) = load("SciFact")
    assert (dataset.name, len(dataset.ids), len(dataset.queries)) == ("SciFact", 5183, 300)
    assert dataset.fingerprint == load(scifact)[0].fingerprint


def test_without_the_hub_the_way_out_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="With a local copy: mteb:SciFact=FOLDER"):
        load("mteb:SciFact")
