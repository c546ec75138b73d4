"""The sweep: one way to measure all, a failure stays alone, finished runs are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ragq
from ragq.errors import InvalidArgumentError
from ragq.eval.datasets import Dataset, load
from ragq.eval.frontier import best_within
from ragq.eval.sweep import Result, Settings, peak_memory, sweep
from ragq.eval.systems import Built, SpecSystem, System, index_bytes, spec_systems
from ragq.eval.tables import AVERAGE, make_rows, of_dataset
from ragq.eval.vectors import Vectors, embed, ready

Data = list[tuple[Dataset, Vectors]]


@pytest.fixture
def data(tiny: Path, tiny2: Path) -> Data:
    loaded = [load(folder)[0] for folder in (tiny, tiny2)]
    return [(dataset, ready(dataset, "tiny")) for dataset in loaded]


class Fixed:
    """Answers every query with the same rows, and counts its builds."""

    family = "fixed"

    def __init__(self, name: str, rows: list[int], error: Exception | None = None) -> None:
        self.name, self.rows, self.error, self.builds = name, rows, error, 0

    def build(self, documents: np.ndarray, folder: Path, *, metric: str, seed: int) -> Built:
        self.builds += 1
        if self.error is not None:
            raise self.error
        return Built(8, 800, 0.1, 1000.0, lambda q, k: np.tile(np.array(self.rows[:k]), (len(q), 1)))


def test_float32_agrees_with_itself_and_half_the_bytes_cost_what_they_cost(data: Data) -> None:
    exact, coarse = sweep(spec_systems(["F32", "BIN"]), data[:1])
    assert exact.error is None and coarse.error is None
    assert exact.mean("agreement@10") == 1 and exact.mean("rbo") == pytest.approx(1)
    assert coarse.mean("agreement@10") < 0.9
    assert coarse.numbers["code_bytes"] == 2 and exact.numbers["code_bytes"] == 64
    assert exact.unanswered == 0 and exact.queries[:2] == ["q 0", "q 1"]
    assert set(exact.numbers) >= {
        "index_bytes_per_vector",
        "encode_per_second",
        "queries_per_second",
        "p50_ms",
        "p95_ms",
    }
    assert all(value > 0 for name, value in exact.numbers.items() if name != "peak_memory_mb")


def test_index_bytes_are_what_the_index_tells_and_what_lies_on_the_disk(data: Data, tmp_path: Path) -> None:
    vectors = data[0][1]
    built = SpecSystem("PCA8,FP8").build(vectors.documents, tmp_path / "x", metric="cosine", seed=0)
    with ragq.open(tmp_path / "x") as index:
        info = index.info()
    assert built.index_bytes == index_bytes(tmp_path / "x") == info["total_bytes"] - info["bytes"]["documents"]
    assert built.index_bytes / len(vectors.documents) == pytest.approx(info["index_bytes_per_vector"], abs=1e-3)
    assert built.index_bytes > 8 * len(vectors.documents) + info["bytes"]["compressor"]


def test_a_failed_spec_is_reported_and_the_rest_goes_on(data: Data) -> None:
    systems: list[System] = [
        Fixed("bad", [], ZeroDivisionError("by zero")),
        *spec_systems(["NOPE", "PCA99,FP8", "FP8"]),
    ]
    results = sweep(systems, data)
    assert [r.error is None for r in results] == [False, False, False, True] * 2
    assert results[0].error == "ZeroDivisionError: by zero"
    assert "names no known codec" in str(results[1].error) and "16" in str(results[2].error)
    rows = make_rows(results)
    assert [row["spec"] for row in rows] == ["bad", "NOPE", "PCA99,FP8", "FP8"] * 2 + ["FP8"]
    assert rows[0]["error"] == "ZeroDivisionError: by zero"
    assert [row["spec"] for row in of_dataset(rows)] == ["FP8"]


def test_a_search_that_answers_nothing_is_a_failed_run(data: Data) -> None:
    (result,) = sweep([Fixed("silent", [-1] * 100)], data[:1])
    assert "answers none of the 24 judged queries" in str(result.error)


def test_finished_runs_are_kept_and_failed_ones_measured_again(data: Data, tmp_path: Path) -> None:
    good, bad = Fixed("good", list(range(100))), Fixed("bad", [], RuntimeError("no"))
    first = sweep([good, bad], data, out=tmp_path)
    seen: list[bool] = []
    second = sweep([good, bad], data, out=tmp_path, tick=lambda result, kept: seen.append(kept))
    assert (good.builds, bad.builds) == (2, 4)
    assert seen == [True, False, True, False]
    assert second == first
    for settings in (Settings(seed=1), Settings(metric="ip")):
        sweep([good], data[:1], settings, out=tmp_path)
    assert good.builds == 4
    for path in (tmp_path / "runs").iterdir():
        path.write_text(path.read_text()[:-9])  # cut off, as a full disk would
    assert sweep([good], data[:1], out=tmp_path)[0].by_query == first[0].by_query
    assert good.builds == 5


def test_other_texts_or_embeddings_are_other_runs(data: Data, tmp_path: Path, tiny: Path) -> None:
    system = Fixed("x", list(range(100)))
    dataset, vectors = data[0]
    sweep([system], data[:1], out=tmp_path)
    changed = load(tiny)[0]
    changed.texts[3] = "other"
    sweep([system], [(changed, vectors)], out=tmp_path)
    sweep([system], [(dataset, Vectors(vectors.documents, vectors.queries, "m", "else"))], out=tmp_path)
    assert system.builds == 3


def test_rows_hold_paired_differences_and_the_average_over_data_sets(data: Data) -> None:
    rows = make_rows(sweep(spec_systems(["BIN", "FP8", "F32"]), data), seed=0)
    by = {(row["dataset"], row["spec"]): row for row in rows}
    for measure in ("ndcg@10", "recall@100", "code_bytes"):
        mean = (by["tiny", "BIN"][measure] + by["tiny2", "BIN"][measure]) / 2
        assert by[AVERAGE, "BIN"][measure] == pytest.approx(mean)
    binary, exact = by["tiny", "BIN"], by["tiny", "F32"]
    assert binary["float32_difference"] == pytest.approx(binary["ndcg@10"] - exact["ndcg@10"])
    assert binary["float32_low"] <= binary["float32_difference"] <= binary["float32_high"]
    assert binary["ndcg@10_low"] <= binary["ndcg@10"] <= binary["ndcg@10_high"]
    assert exact["float32_difference"] == 0 and exact["float32_p"] == 1
    assert {row["best_spec"] for row in rows} <= {"BIN", "FP8"}  # never the baseline itself
    assert by[AVERAGE, "BIN"]["queries"] == 48
    assert json.loads(json.dumps(rows)) == rows


def test_a_codec_that_shares_more_than_half_of_float32_is_heavy_and_never_best() -> None:
    def run(spec: str, code: float, index: float, value: float) -> Result:
        numbers = {"code_bytes": code, "index_bytes_per_vector": index}
        return Result("a", spec, "x", ["q"], {"ndcg@10": [value]}, [[0]], numbers)

    rows = make_rows([run("F32", 64, 64, 0.9), run("learned by heart", 4, 37, 0.9), run("fair", 4, 36, 0.5)])
    assert [row["heavy"] for row in rows] == [False, True, False]
    assert [row["on_frontier"] for row in rows] == [True, False, True]
    best = best_within(rows, 8, "ndcg@10")
    assert best is not None and best["spec"] == "fair"


def test_one_data_set_has_no_average(data: Data) -> None:
    rows = make_rows(sweep(spec_systems(["F32"]), data[:1]))
    assert [row["dataset"] for row in rows] == ["tiny"]
    with pytest.raises(InvalidArgumentError, match="no data set 'other'"):
        of_dataset(rows, "other")


def test_a_spec_that_failed_somewhere_is_not_averaged() -> None:
    def run(dataset: str, error: str | None = None) -> Result:
        numbers = {"code_bytes": 4.0, "index_bytes_per_vector": 5.0}
        return Result(dataset, "X", "x", ["q"], {"ndcg@10": [1.0]}, [[0]], numbers, error=error)

    assert [row["dataset"] for row in make_rows([run("a"), run("b")])] == ["a", "b", AVERAGE]
    assert [row["dataset"] for row in make_rows([run("a"), run("b", "no")])] == ["a", "b"]


def test_peak_memory_sees_an_allocation_that_is_gone_again() -> None:
    with peak_memory() as peak:
        block = np.ones(60_000_000, np.uint8)
        del block
    assert 50e6 < peak[0] < 90e6
    with peak_memory() as small:
        pass
    assert small[0] < 10e6


def test_ready_embeddings_must_have_the_rows_of_their_records(tiny: Path, tmp_path: Path) -> None:
    (dataset,) = load(tiny)
    with pytest.raises(InvalidArgumentError, match=r"no file '.*corpus\.other\.npy'\. Arrays there: corpus\.tiny\.npy"):
        ready(dataset, "other")
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    np.save(tmp_path / "queries.tiny.npy", np.load(tiny / "queries.tiny.npy"))
    np.save(tmp_path / "corpus.tiny.npy", np.ones((239, 16), "f4"))
    with pytest.raises(InvalidArgumentError, match=r"has shape \(239, 16\), but 'corpus.jsonl' has 240 records"):
        ready(load(tmp_path)[0], "tiny")
    np.save(tmp_path / "corpus.tiny.npy", np.full((240, 16), np.nan, "f4"))
    with pytest.raises(InvalidArgumentError, match="must be finite"):
        ready(load(tmp_path)[0], "tiny")
    np.save(tmp_path / "corpus.tiny.npy", np.ones((240, 8), "f4"))
    with pytest.raises(InvalidArgumentError, match="8 dimensions for documents and 16 for queries"):
        ready(load(tmp_path)[0], "tiny")
    (tmp_path / "corpus.tiny.npy").write_bytes(b"not an array")
    with pytest.raises(InvalidArgumentError, match=r"not a \.npy file"):
        ready(load(tmp_path)[0], "tiny")


class Counting:
    """An embedder that counts the texts it sees."""

    def __init__(self, name: str = "counting") -> None:
        self.fingerprint, self.seen = {"model": name}, 0

    def _encode(self, texts: list[str]) -> np.ndarray:
        self.seen += len(texts)
        return np.array([[len(text), hash(text) % 7, 1] for text in texts], np.float32)

    encode_documents = encode_queries = _encode


def test_one_embedding_pass_serves_all_and_is_made_again_for_another_model_or_text(tiny: Path, tmp_path: Path) -> None:
    (dataset,), embedder = load(tiny), Counting()
    first = embed(dataset, embedder, tmp_path)
    again = embed(dataset, embedder, tmp_path)
    assert embedder.seen == 264
    assert np.array_equal(first.documents, again.documents) and first.fingerprint == again.fingerprint
    other = Counting("other")
    assert embed(dataset, other, tmp_path).fingerprint != first.fingerprint and other.seen == 264
    dataset.texts[0] = "changed"
    embed(dataset, embedder, tmp_path)
    assert embedder.seen == 264 + 240  # the queries are the same
