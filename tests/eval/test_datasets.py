"""Data sets: what is wrong in the files is an error that names the line, or a warning that counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragq.errors import InvalidArgumentError
from ragq.eval.datasets import Dataset, load

HEADER = "query-id\tcorpus-id\tscore\n"


def write(folder: Path, qrels: str | None, *, name: str = "qrels/test.tsv", **records: list[dict[str, Any]]) -> Path:
    """Make a BEIR folder of three documents and two queries."""
    documents = [{"_id": f"d{i}", "title": f"Title {i}", "text": f"text {i}"} for i in range(3)]
    queries = [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}]
    for file, lines in {"corpus": documents, "queries": queries, **records}.items():
        (folder / f"{file}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    if qrels is not None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(qrels, encoding="utf-8")
    return folder


def one(folder: Path, **options: Any) -> Dataset:
    (dataset,) = load(folder, **options)
    return dataset


def test_the_shared_data_sets_have_the_sizes_of_their_page(shared: Path) -> None:
    sizes = {}
    for name in ("scifact", "cranfield", "limit-small"):
        dataset = one(shared / "beir" / name)
        assert dataset.qrels is not None and dataset.warnings == []
        sizes[name] = (len(dataset.ids), len(dataset.queries), sum(map(len, dataset.qrels.values())))
    assert sizes == {"scifact": (5183, 300, 339), "cranfield": (1400, 225, 1612), "limit-small": (46, 1000, 2000)}


def test_only_judged_queries_are_evaluated_and_their_rows_kept(tmp_path: Path) -> None:
    dataset = one(write(tmp_path, HEADER + "q2\td1\t1\n"))
    assert (dataset.query_ids, dataset.queries, dataset.query_rows) == (["q2"], ["two"], [1])
    assert dataset.passages[1] == "Title 1 text 1"


def test_a_header_is_not_needed_and_trec_qrels_are_read(tmp_path: Path) -> None:
    assert one(write(tmp_path, "q1\td1\t1\n")).qrels == {"q1": {"d1": 1}}
    trec = tmp_path / "judged.txt"
    trec.write_text("q1 0 d2 3\nq2 0 d0 0\nq2 0 d1 1\n")
    assert one(tmp_path, qrels=trec).qrels == {"q1": {"d2": 3}, "q2": {"d0": 0, "d1": 1}}


def test_the_hub_s_json_lines_are_read(tmp_path: Path) -> None:
    line = json.dumps({"query-id": "q1", "corpus-id": "d1", "score": 1})
    assert one(write(tmp_path, line + "\n", name="qrels/test.jsonl")).qrels == {"q1": {"d1": 1}}


def test_ids_with_spaces_and_quoted_tabs_are_kept(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        HEADER + '"q\t1"\td 0\t1\n',
        corpus=[{"_id": "d 0", "text": "x"}, {"_id": "d\t1", "text": "y"}],
        queries=[{"_id": "q\t1", "text": "one"}],
    )
    assert one(folder).qrels == {"q\t1": {"d 0": 1}}


def test_an_id_with_a_bare_tab_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"line 3 has 4 columns; expected 3.*double quotes"):
        one(write(tmp_path, HEADER + "q1\td1\t1\nq\t2\td1\t1\n"))


def test_unknown_documents_are_counted_and_kept(tmp_path: Path) -> None:
    dataset = one(write(tmp_path, HEADER + "q1\td1\t1\nq1\tgone\t1\nq2\tlost\t1\n"))
    assert dataset.warnings == ["2 judgements name documents that are not in the corpus; no search can find them."]
    assert dataset.qrels == {"q1": {"d1": 1, "gone": 1}, "q2": {"lost": 1}}


def test_unknown_queries_are_counted_and_left_out(tmp_path: Path) -> None:
    dataset = one(write(tmp_path, HEADER + "q1\td1\t1\nq9\td1\t1\n"))
    assert dataset.warnings == ["1 judged queries are not among the queries and are left out."]
    assert dataset.query_ids == ["q1"]


def test_a_query_without_a_relevant_document_is_counted(tmp_path: Path) -> None:
    dataset = one(write(tmp_path, HEADER + "q1\td1\t1\nq2\td1\t0\n"))
    assert dataset.warnings == ["1 judged queries have no relevant document and score 0 for every spec."]
    assert dataset.query_ids == ["q1", "q2"]


def test_repeated_judgements_are_counted_once(tmp_path: Path) -> None:
    dataset = one(write(tmp_path, HEADER + "q1\td1\t1\nq1\td1\t1\nq1\td1\t1\n"))
    assert dataset.warnings == ["2 judgements in test.tsv are repeated; each pair counts once."]


def test_contradicting_judgements_are_an_error_that_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="line 3 judges query 'q1' and document 'd1' a second time, as 2"):
        one(write(tmp_path, HEADER + "q1\td1\t1\nq1\td1\t2\n"))


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        (HEADER + "q8\td1\t1\n", "None of the 1 judged queries is among the queries; for example 'q8'"),
        (HEADER + "q1\tx\t1\n", "None of the 1 judged documents is in the corpus; for example 'x'"),
        (HEADER, "holds no judgement"),
        (HEADER + "q1\td1\tyes\n", "line 2: the score 'yes' is not a whole number"),
    ],
)
def test_qrels_of_another_corpus_or_shape_are_refused(tmp_path: Path, qrels: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        one(write(tmp_path, qrels))


def test_an_unknown_split_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"has no split 'dev'. Its splits: test\."):
        one(write(tmp_path, HEADER + "q1\td1\t1\n"), split="dev")


def test_queries_alone_have_no_judgements(tmp_path: Path) -> None:
    dataset = one(write(tmp_path, None))
    assert dataset.qrels is None and dataset.query_ids == ["q1", "q2"]
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"_id": "m", "text": "my question"}')
    assert one(tmp_path, queries=mine).queries == ["my question"]


def test_own_documents_of_any_kind_and_an_index_go_with_own_queries(tmp_path: Path) -> None:
    import ragq

    (tmp_path / "docs").mkdir()
    for name in ("a", "b"):
        (tmp_path / "docs" / f"{name}.md").write_text(f"about {name}")
    queries, qrels = tmp_path / "q.jsonl", tmp_path / "q.tsv"
    queries.write_text('{"_id": "1", "text": "what is a?"}')
    qrels.write_text("1\ta.md\t1\n")
    dataset = one(tmp_path / "docs", queries=queries, qrels=qrels)
    assert sorted(dataset.ids) == ["a.md", "b.md"] and dataset.qrels == {"1": {"a.md": 1}}
    ragq.build(tmp_path / "docs", tmp_path / "docs.ragq", model=lambda texts: np.ones((len(texts), 2)), codec="F32")
    again = one(tmp_path / "docs.ragq", queries=queries, qrels=qrels)
    assert (again.ids, again.passages) == (dataset.ids, dataset.passages)
    with pytest.raises(InvalidArgumentError, match="Give --queries FILE"):
        load(tmp_path / "docs")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"corpus": [{"_id": "d", "text": "x"}] * 2}, "document id 'd' comes twice"),
        ({"queries": [{"_id": "q1", "text": "x"}] * 2}, "query id 'q1' comes twice"),
        ({"corpus": [{"_id": "d"}]}, "line 1 must be an object with '_id' and 'text'"),
        ({"corpus": []}, "None of the 1 judged documents"),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, records: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        one(write(tmp_path, HEADER + "q1\td1\t1\n", **records))


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"There is no folder '\./nowhere/x'"):
        load("./nowhere/x")
    with pytest.raises(InvalidArgumentError, match=r"corpus\.jsonl"):
        load(tmp_path)
    folder = write(tmp_path, HEADER + "q1\td1\t1\n")
    (folder / "queries.jsonl").write_text("not json")
    with pytest.raises(InvalidArgumentError, match="not JSON lines"):
        load(folder)
    with pytest.raises(InvalidArgumentError, match="no qrels file"):
        load(write(tmp_path, None), qrels=tmp_path / "nope.tsv")


def test_the_fingerprint_sees_text_and_judgements(tmp_path: Path) -> None:
    before = one(write(tmp_path, HEADER + "q1\td1\t1\n")).fingerprint
    assert one(tmp_path).fingerprint == before
    assert one(write(tmp_path, HEADER + "q1\td1\t2\n")).fingerprint != before


def test_ir_datasets_ids_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_datasets
    from ir_datasets.datasets.base import Dataset as Source
    from ir_datasets.formats import GenericDoc, GenericQuery, TrecQrel

    parts = {
        "docs": [GenericDoc("d1", "a text"), GenericDoc("d2", "another")],
        "queries": [GenericQuery("q", "what?")],
        "qrels": [TrecQrel("q", "d2", 2, "0")],
    }
    tiny = Source()
    for kind, rows in parts.items():
        monkeypatch.setattr(tiny, f"has_{kind}", lambda: True, raising=False)
        monkeypatch.setattr(tiny, f"{kind}_iter", lambda rows=rows: iter(rows), raising=False)
    monkeypatch.setattr(ir_datasets, "load", {"tiny/test": tiny}.__getitem__)
    (dataset,) = load("ir:tiny/test")
    assert (dataset.ids, dataset.texts, dataset.qrels) == (["d1", "d2"], ["a text", "another"], {"q": {"d2": 2}})
    with pytest.raises(InvalidArgumentError, match="knows no data set 'tiny/dev'"):
        load("ir:tiny/dev")
