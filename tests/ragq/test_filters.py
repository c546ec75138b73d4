"""Laws of filters: JSON comparison without surprises, the same however documents lie in shards."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pytest

import ragq
from ragq.errors import InvalidArgumentError
from tests.indexes import words_model

DOCS = [
    {"id": "a", "text": "a", "n": 1, "tag": "x", "tags": ["p", "q"], "title": "own"},
    {"id": "b", "text": "b", "n": 1.0, "tag": None, "on": True},
    {"id": "c", "text": "c", "n": "1", "tags": "pq", "title": "own"},
    {"id": "d", "text": "d", "n": True, "metadata": {"title": "other"}, "title": "own"},
    {"id": "e", "text": "e", "n": 5, "place": {"city": "Ulm"}},
]
CASES = [
    ({"n": 1}, "ab"),
    ({"n": "1"}, "c"),
    ({"n": True}, "d"),
    ({"n": {"$ne": 1}}, "cde"),
    ({"n": {"$gt": 0}}, "abe"),
    ({"n": {"$gte": 1, "$lt": 5}}, "ab"),
    ({"n": {"$lte": "1"}}, "c"),
    ({"n": {"$in": [5, "1"]}}, "ce"),
    ({"n": {"$nin": [5, "1"]}}, "abd"),
    ({"tag": None}, "bcde"),
    ({"tag": {"$exists": True}}, "a"),
    ({"tags": {"$contains": "p"}}, "ac"),
    ({"tags": ["p", "q"]}, "a"),
    ({"place": {"$eq": {"city": "Ulm"}}}, "e"),
    ({"title": "own"}, "ac"),
    ({"title": "other"}, "d"),
    ({"id": {"$in": ["a", "e"]}}, "ae"),
    ({"$or": [{"id": "a"}, {"n": 5}]}, "ae"),
    ({"$and": [{"n": {"$gt": 0}}, {"$not": {"id": "b"}}]}, "ae"),
    ({}, "abcde"),
    (pc.field("id") == "a", "a"),
    (pc.field("tag").is_null(), "bcde"),
]


@pytest.fixture(scope="module", params=[1, 2, 5])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ragq.Index:
    path: Path = tmp_path_factory.mktemp("filters") / "index"
    return ragq.build(DOCS, path, model=words_model, codec="F32", shard_rows=request.param)


@pytest.mark.parametrize(("where", "expected"), CASES, ids=lambda value: str(value)[:40])
def test_what_a_filter_lets_through(index: ragq.Index, where: object, expected: str) -> None:
    found = index.search_embeddings(words_model(["a"]), 5, where)
    assert sorted(name for name in found.ids[0] if name) == list(expected)


@pytest.mark.parametrize(
    "where",
    [
        *(5, "a", [], {"$and": []}, {"$or": {}}, {"$not": 1}, {"$x": 1}, {"n": {"$x": 1}}, {"n": {"$in": 1}}, {5: 1}),
        *({"n": {"$gt": None}}, {"n": {"$exists": 1}}, {"nope": 1}, pc.field("nope") == 1, {"n": b"bytes"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_filter_is_an_invalid_argument(index: ragq.Index, where: object) -> None:
    with pytest.raises(InvalidArgumentError):
        index.search_embeddings(words_model(["a"]), 5, where)
    with pytest.raises(InvalidArgumentError):
        ragq.open(index.path, mode="w").delete(where=where)
    assert len(index) == 5
