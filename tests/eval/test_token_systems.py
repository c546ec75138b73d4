"""Multi-vector indexes in a sweep: the same measures, on the right tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ragq.cli import cli
from ragq.embedders import CallableEmbedder
from ragq.errors import InvalidArgumentError
from ragq.eval.datasets import load
from ragq.eval.run import run
from ragq.eval.token_systems import Tokens, token_systems
from ragq.eval.vectors import embed
from ragq.token_embedders import FunctionTokenEmbedder
from tests.indexes import words_model
from tests.token_indexes import maxsim, word_vectors

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """Return a data set of 40 documents whose queries are parts of them, with embeddings of words."""
    monkeypatch.setenv("RAGQ_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    folder = tmp_path / "words"
    (folder / "qrels").mkdir(parents=True)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(40)]
    corpus = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    queries = [{"_id": f"q{i}", "text": " ".join(texts[i].split()[:3])} for i in range(8)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = "".join(f"q{i}\td{i}\t1\n" for i in range(8))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    (dataset,) = load(folder)
    return [(dataset, embed(dataset, CallableEmbedder(words_model)))]


def test_a_multi_vector_index_is_measured_like_any_other(data: list) -> None:
    specs = ["F32", "POOL3,FP8 after MUVERA(4,2,4),FP8"]
    systems = token_systems(specs, data, lambda: FunctionTokenEmbedder(word_vectors))
    report = run(data, more=systems)
    rows = {row["spec"]: row for row in report.rows}
    assert set(rows) == {"F32", *(system.name for system in systems)}
    exact = rows["MaxSim F32"]
    assert exact["code_bytes"] == pytest.approx(6 * 8 * 4, abs=30)
    assert rows[systems[1].name]["code_bytes"] < exact["code_bytes"]
    assert exact["index_bytes_per_vector"] > exact["code_bytes"]
    (dataset, vectors) = data[0]
    tokens = Tokens(dataset, vectors, lambda: FunctionTokenEmbedder(word_vectors))
    scores = maxsim(tokens.queries, tokens.documents)
    found = next(r for r in report.results if r.spec == "MaxSim F32")
    assert found.family == "multi-vector"
    best = -np.sort(-scores, axis=1)[:, :10]
    for query, top in enumerate(found.top):
        np.testing.assert_allclose(scores[query, top], best[query], atol=1e-3)


def test_tokens_are_embedded_once(data: list) -> None:
    calls: list[int] = []

    def counted(texts: list[str]) -> list[np.ndarray]:
        calls.append(len(texts))
        return word_vectors(texts)

    for _ in range(2):
        run(data, more=token_systems(["FP8", "INT8"], data, lambda: FunctionTokenEmbedder(counted)))
    assert sum(n for n in calls if n > 1) == 40 + 8


def test_a_spec_that_cannot_be_is_refused(data: list) -> None:
    with pytest.raises(InvalidArgumentError, match="first stage"):
        token_systems(["FP8 after PQ4x8"], data, lambda: None)


def test_the_codecs_of_tokens_are_listed() -> None:
    result = CliRunner().invoke(cli, ["codecs", "--multi-vector", "--dim", "384", "--tokens", "187", "--json"])
    offers = json.loads(result.output)
    assert result.exit_code == 0
    assert (offers[0]["codec"], offers[0]["vectors"], offers[0]["document_bytes"]) == ("F32", 187, 187 * 384 * 4 + 4)
    assert [o["document_bytes"] for o in offers] == sorted((o["document_bytes"] for o in offers), reverse=True)
    fewer = CliRunner().invoke(cli, ["codecs", "--multi-vector", "--budget", "2000"])
    assert fewer.exit_code == 0 and "POOL9%,PQ64x8" in fewer.output and "F16" not in fewer.output
