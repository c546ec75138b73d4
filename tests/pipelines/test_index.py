"""Laws of `Index`: it equals a dict and brute force, whatever is done to it in whatever order."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import ragq
from ragq.errors import CorruptIndexError, IncompatibleIndexError, IndexLockedError, InvalidArgumentError
from ragq.pipelines.chunking import Splitter
from ragq.types import Document
from tests.indexes import DIM, content, documents, expected_files, make, on_disk, small_shards, words_model

SEQUENCES = int(os.environ.get("RAGQ_SEQUENCES", "20"))
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None

# A dict and brute force

IDS = [f"id {i}" for i in range(9)] + ["", "é#1"][1:]
TEXTS = st.lists(st.sampled_from("alpha beta gamma delta epsilon zeta eta theta".split()), min_size=1, max_size=30)
METADATA = st.fixed_dictionaries(
    {"lang": st.sampled_from(["en", "de", 7, None])},
    optional={"n": st.one_of(st.integers(0, 5), st.sampled_from([True, "3", 2.5])), "tags": st.just(["a", "b"])},
)
DOCUMENTS = st.builds(
    lambda name, words, title, metadata: Document(name, " ".join(words), title, metadata),
    st.sampled_from(IDS),
    TEXTS,
    st.sampled_from(["", "alpha"]),
    METADATA,
)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


FILTERS = {  # filter -> the same question in Python
    "lang": ({"lang": "en"}, lambda d: d.metadata["lang"] == "en"),
    "null": ({"lang": None}, lambda d: d.metadata["lang"] is None),
    "in": ({"lang": {"$in": ["de", 7]}}, lambda d: d.metadata["lang"] in ("de", 7)),
    "nin": ({"lang": {"$nin": ["de", 7]}}, lambda d: d.metadata["lang"] not in ("de", 7)),
    "range": ({"n": {"$gte": 1, "$lt": 4}}, lambda d: is_number(d.metadata.get("n")) and 1 <= d.metadata["n"] < 4),
    "not": ({"$not": {"n": {"$gt": 2}}}, lambda d: not (is_number(d.metadata.get("n")) and d.metadata["n"] > 2)),
    "exists": ({"n": {"$exists": False}}, lambda d: d.metadata.get("n") is None),
    "contains": ({"tags": {"$contains": "a"}}, lambda d: "tags" in d.metadata),
    "or": ({"$or": [{"id": IDS[0]}, {"title": "alpha"}]}, lambda d: d.id == IDS[0] or d.title == "alpha"),
}


class Expected:
    """Documents in a dict, in insertion order; a document that comes again goes to the end."""

    def __init__(self, known: dict[str, tuple[Document, bool]] | None = None) -> None:
        self.known = dict(known or {})

    def copy(self) -> Expected:
        return Expected(self.known)

    def add(self, new: list[Document], whole: bool) -> None:
        for document in new:
            self.known.pop(document.id, None)
            self.known[document.id] = (document, whole)

    @property
    def documents(self) -> list[Document]:
        return [document for document, _ in self.known.values()]


def check(index: ragq.Index, expected: Expected, metric: str) -> None:
    """Compare all that an index shows with what it should."""
    live = expected.documents
    assert len(index) == len(live)
    assert content(index) == [(d.id, d.text, d.title, dict(d.metadata)) for d in live]
    assert [d.id for d in index.get([*IDS, "unknown", IDS[0]])] == [i for i in (*IDS, IDS[0]) if i in expected.known]
    assert all((name in index) == (name in expected.known) for name in IDS)
    splitter = Splitter(index.embedder, 10, 2)
    cut = [[*Splitter(index.embedder, 0).split(d)] if whole else splitter.split(d) for d, whole in expected.known.values()]
    passages = [passage for parts in cut for passage in parts]
    assert index.manifest.rows == len(passages)
    queries = words_model(["alpha beta", "theta", "unknown words"])
    compressor = index.compressor
    x = compressor.decode(compressor.encode(words_model([p.embedded_text for p in passages])))
    scores = queries @ x.T
    if metric == "l2":
        scores = -((queries[:, None] - x[None]) ** 2).sum(axis=2)
    by_id = {d.id: d for d in live}
    for where, test in [(None, lambda d: True), *FILTERS.values()]:
        allowed = [i for i, p in enumerate(passages) if test(by_id[p.document_id])]
        try:
            found = index.search_embeddings(queries, 6, where)
        except InvalidArgumentError as error:
            assert "No document has the field" in str(error)
            assert not any(d.metadata.get("n") is not None and "'n'" in str(error) for d in live)
            assert not any("tags" in d.metadata and "'tags'" in str(error) for d in live)
            continue
        for q in range(len(queries)):
            best = sorted(allowed, key=lambda i: (-scores[q, i], i))[:6]
            padding = 6 - len(best)
            names = [passages[i].document_id for i in best] + [None] * padding
            assert found.ids[q].tolist() == names
            assert found.passages[q].tolist() == [passages[i].number for i in best] + [-1] * padding
            assert found.scores[q].tolist() == [scores[q, i] for i in best] + [-np.inf] * padding


class Sequences(RuleBasedStateMachine):
    """Random sequences of changes by one writer, seen by it and by a reader that looks again now and then."""

    @initialize(
        new=st.lists(DOCUMENTS, min_size=1, max_size=8),
        codec=st.sampled_from(["F32", "FP8", "FP4"]),
        metric=st.sampled_from(["ip", "l2"]),
        rows=st.sampled_from([1, 3, 7]),
    )
    def build(self, new: list[Document], codec: str, metric: str, rows: int) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=FAST)
        self.path = Path(self.folder.name) / "index"
        self.metric = metric
        self.shards = small_shards(rows)
        self.shards.__enter__()
        options = {"model": words_model, "codec": codec, "metric": metric, "chunk_tokens": 10, "chunk_overlap": 2}
        self.index = ragq.build(new, self.path, shard_rows=rows, **options)
        self.expected = Expected()
        self.expected.add(new, whole=False)
        self.reader = ragq.open(self.path, model=words_model)
        self.seen = self.expected.copy()

    @rule(new=st.lists(DOCUMENTS, min_size=1, max_size=6), ready=st.booleans(), upsert=st.booleans())
    def add(self, new: list[Document], ready: bool, upsert: bool) -> None:
        ids = {d.id for d in new}
        replaced = len(ids & set(self.expected.known))
        vectors = words_model([f"{d.title} {d.text}" for d in new]) if ready else None
        changes = (self.index.upsert if upsert else self.index.add)(new, embeddings=vectors)
        assert (changes.added, changes.replaced, changes.duplicates) == (len(ids), replaced, len(new) - len(ids))
        self.expected.add(new, whole=ready)

    @rule(ids=st.lists(st.sampled_from([*IDS, "unknown"]), max_size=4))
    def delete_ids(self, ids: list[str]) -> None:
        assert self.index.delete(ids) == sum(
            self.expected.known.pop(name, None) is not None for name in dict.fromkeys(ids)
        )

    @rule(name=st.sampled_from(sorted(FILTERS)))
    def delete_where(self, name: str) -> None:
        where, test = FILTERS[name]
        gone = [d.id for d in self.expected.documents if test(d)]
        try:
            assert self.index.delete(where=where) == len(gone)
        except InvalidArgumentError as error:
            assert "No document has the field" in str(error)
        else:
            for document_id in gone:
                del self.expected.known[document_id]

    @rule()
    def compact(self) -> None:
        self.index.compact()
        assert not self.index.compact()
        assert self.index.manifest.rows == sum(shard.rows for shard in self.index.manifest.shards)

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = ragq.open(self.path, mode="w", model=words_model)

    @rule()
    def refresh(self) -> None:
        changed = self.reader.manifest != self.index.manifest
        assert self.reader.refresh() == changed
        self.seen = self.expected.copy()

    @precondition(lambda self: hasattr(self, "index"))
    @invariant()
    def equal(self) -> None:
        check(self.index, self.expected, self.metric)
        check(self.reader, self.seen, self.metric)

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.verify()
            self.reader.close()
            self.index.close()
            del self.reader
            with ragq.open(self.path, mode="w", model=words_model) as index:
                index.add([{"id": "last", "text": "last"}])
            assert on_disk(self.path) == expected_files(self.path)
            self.shards.__exit__(None, None, None)
            self.folder.cleanup()


TestSequences = Sequences.TestCase
TestSequences.settings = settings(
    max_examples=SEQUENCES,
    stateful_step_count=8 if SEQUENCES < 100 else 12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
