"""The multi-vector table: exact MaxSim as its own reference, measured bytes, and tokens that are encoded once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ragq.compressors.multivector import OFFSET_BYTES
from ragq.errors import InvalidArgumentError
from ragq.eval.datasets import load
from ragq.eval.multivector import Measured, cached_tokens, main
from ragq.tokens import TokenEmbeddings
from tests.compressors.test_multivector import maxsim, tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BEIR folder of 60 documents and 20 queries, whose tokens are cached; each query's MaxSim best are relevant."""
    documents, queries = tokens(60, longest=12, seed=1).normalized(), tokens(22, seed=2)[2:].normalized()
    queries = queries[queries.counts > 0]
    data, cache = tmp_path / "toy", tmp_path / "tokens" / "toy"
    (data / "qrels").mkdir(parents=True)
    cache.mkdir(parents=True)
    for name, prefix, count in (("corpus", "d", len(documents)), ("queries", "q", len(queries))):
        lines = [json.dumps({"_id": f"{prefix}{i}", "title": "", "text": f"text {i}"}) for i in range(count)]
        (data / f"{name}.jsonl").write_text("\n".join(lines))
    best = np.argsort(-maxsim(queries, documents), axis=1, kind="stable")[:, :4]
    rows = [f"q{a}\td{d}\t1" for a, found in enumerate(best) for d in found]
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows))
    for name, part in (("documents", documents), ("queries-test", queries)):
        np.save(cache / f"{name}.values.npy", part.values)
        np.save(cache / f"{name}.offsets.npy", part.offsets)
    return tmp_path


def test_exact_maxsim_is_the_reference_and_smaller_points_keep_less(folder: Path) -> None:
    measured = Measured(load(folder / "toy")[0], folder / "tokens" / "toy")
    assert measured.reference.mean() == 1
    whole, pooled = measured.point("F32"), measured.point("POOL2,INT8 after MUVERA(10,3,8)", candidates=15)
    assert (whole.kept, whole.low, whole.high, whole.recall) == (1, 0, 0, None)
    assert pooled.kept < 1 and pooled.low < 0 and pooled.recall is not None and 0.3 < pooled.recall <= 1
    assert whole.document_bytes == pytest.approx(whole.vectors * 16 * 4 + OFFSET_BYTES)
    assert pooled.document_bytes == pytest.approx(pooled.vectors * 16 + 10 * 8 * 8 * 4 + OFFSET_BYTES)
    assert whole.ratio == pytest.approx(whole.vectors * 64 / whole.document_bytes)


def test_all_candidates_recall_everything(folder: Path) -> None:
    measured = Measured(load(folder / "toy")[0], folder / "tokens" / "toy")
    point = measured.point("F32 after CENTROIDS16", candidates=60)
    assert (point.recall, point.kept) == (1, 1)


def test_the_command_prints_a_table_and_measures_no_point_twice(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(folder / "toy"), "--tokens", str(folder / "tokens"), "--json", str(folder / "points.json")]
    main([*arguments, "--point", "F32", "--point", "POOL3,FP8"])
    first = capsys.readouterr().out
    assert "exact MaxSim nDCG@10 1.0000" in first and "| `POOL3,FP8` |" in first and "| 100.0 % |" in first
    monkeypatch.setattr(Measured, "point", None)
    main([*arguments, "--point", "F32", "--point", "POOL3,FP8"])
    assert capsys.readouterr().out == first


def test_tokens_of_something_else_are_refused(folder: Path) -> None:
    offsets = folder / "tokens" / "toy" / "documents.offsets.npy"
    np.save(offsets, np.array([0, *np.load(offsets)]))
    with pytest.raises(InvalidArgumentError, match="holds tokens of 61 documents"):
        Measured(load(folder / "toy")[0], folder / "tokens" / "toy")


def test_an_interrupted_encoding_goes_on_where_it_stopped(tmp_path: Path) -> None:
    texts, asked = [str(i) for i in range(600)], []

    def encode(part: Sequence[str]) -> TokenEmbeddings:
        if len(asked) == 2:
            asked.append("failed")
            raise RuntimeError("interrupted")
        asked.append(part[0])
        return TokenEmbeddings.from_list([np.eye(4, dtype=np.float32)[: 1 + int(text) % 3] for text in part])

    with pytest.raises(RuntimeError, match="interrupted"):
        cached_tokens(tmp_path / "documents", texts, encode)
    found = cached_tokens(tmp_path / "documents", texts, encode)
    assert asked == ["0", "256", "failed", "512"]
    assert found.counts.tolist() == [1 + i % 3 for i in range(600)]
    asked.clear()
    assert cached_tokens(tmp_path / "documents", texts, encode).total == found.total and asked == []
