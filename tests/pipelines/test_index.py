"""Laws of `Index`: it equals a dict and brute force, whatever is done to it in whatever order."""

from __future__ import annotations

import gc
import json
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

SEQUENCES = int(os.environ.get("RAGQ_SEQUENCES", "12"))
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None

# A dict and brute force

IDS = [f"id {i}" for i in range(9)] + ["é#1"]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30)
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


def check(index: ragq.Index, expected: Expected, metric: str, filters: list[str]) -> None:
    """Compare all that an index shows with what it should, searches without and with some filters included."""
    live = expected.documents
    assert len(index) == len(live)
    assert content(index) == [(d.id, d.text, d.title, dict(d.metadata)) for d in live]
    assert [d.id for d in index.get([*IDS, "unknown", IDS[0]])] == [i for i in (*IDS, IDS[0]) if i in expected.known]
    assert all((name in index) == (name in expected.known) for name in IDS)
    splitter = Splitter(index.embedder, 10, 2)
    cut = [
        [*Splitter(index.embedder, 0).split(d)] if whole else splitter.split(d) for d, whole in expected.known.values()
    ]
    passages = [passage for parts in cut for passage in parts]
    assert index.manifest.rows == len(passages)
    queries = words_model(["alpha beta", "theta", "unknown words"])
    compressor = index.compressor
    x = compressor.decode(compressor.encode(words_model([p.embedded_text for p in passages])))
    scores = queries @ x.T
    if metric == "l2":
        scores = -((queries[:, None] - x[None]) ** 2).sum(axis=2)
    by_id = {d.id: d for d in live}
    for where, test in [(None, lambda d: True), *(FILTERS[name] for name in filters)]:
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
        rows=st.sampled_from([2, 5]),
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
        self.steps = 0

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
        self.steps += 1
        names = sorted(FILTERS)
        check(self.index, self.expected, self.metric, [names[(2 * self.steps + i) % len(names)] for i in (0, 1)])
        if self.steps % 3 == 0:
            check(self.reader, self.seen, self.metric, [names[self.steps % len(names)]])

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


HOW = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


class TestSequences(Sequences.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(HOW, max_examples=SEQUENCES, stateful_step_count=8)


@pytest.mark.slow
class TestManySequences(Sequences.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(HOW, max_examples=1000, stateful_step_count=12)


# Readers and writers


def test_a_reader_keeps_its_generation_until_it_closes(tmp_path: Path) -> None:
    writer = make(tmp_path / "index", 12, shard_rows=4)
    reader = ragq.open(tmp_path / "index", model=words_model)
    before, files = content(reader), {file.name for file in reader.manifest.files}
    answers = [hit.id for hit in reader.search("text 3")]
    writer.delete([f"d{i}" for i in range(11)])
    writer.compact()
    writer.add(documents(3, 100))
    assert files <= on_disk(tmp_path / "index")
    assert content(reader) == before
    assert reader.verify() > 0
    assert [hit.id for hit in reader.search("text 3")] == answers
    reader.close()
    writer.add(documents(1, 200))
    assert on_disk(tmp_path / "index") == expected_files(tmp_path / "index")


def test_a_reader_that_was_forgotten_holds_nothing(tmp_path: Path) -> None:
    writer = make(tmp_path / "index")
    reader = ragq.open(tmp_path / "index")
    writer.delete(["d0"])
    writer.compact()
    assert on_disk(tmp_path / "index") != expected_files(tmp_path / "index")
    del reader
    gc.collect()
    writer.delete(["d1"])
    assert on_disk(tmp_path / "index") == expected_files(tmp_path / "index")


def test_a_reader_in_another_process_sees_whole_generations_only(tmp_path: Path) -> None:
    writer = make(tmp_path / "index", 6)
    code = (
        "import sys, ragq\n"
        "index = ragq.open(sys.argv[1])\n"
        "print('open', flush=True)\n"
        "seen = set()\n"
        "while 'last' not in index:\n"
        "    index.refresh()\n"
        "    names = [d.id for d in index if d.id != 'last']\n"
        "    assert len(names) == 6, names\n"
        "    assert len({name[0] for name in names}) == 1, names\n"
        "    index.verify()\n"
        "    seen.add(names[0][0])\n"
        "print(len(seen))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "index")], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        old = [f"d{i}" for i in range(6)]
        for letter in "abcdefgh":
            new = [f"{letter}{i}" for i in range(6)]
            transaction = writer._writing()
            with transaction:  # six documents go and six come in one commit
                transaction.delete(old)
                from ragq.pipelines.changes import add_documents
                from ragq.pipelines.progress import silent

                items = [{"id": name, "text": name} for name in new]
                add_documents(writer, transaction, items, None, chunk=False, progress=silent)
            old = new
        writer.add([{"id": "last", "text": "the end"}])
        assert int(reader.stdout.read()) >= 1
        assert reader.wait() == 0


def test_eight_threads_answer_as_one(tmp_path: Path) -> None:
    index = make(tmp_path / "index", 300, shard_rows=50)
    queries = [f"text {i} of {i % 3}" for i in range(40)]
    where = {"lang": "en"}
    alone = [[(h.id, h.score) for h in index.search(q, 5, where)] for q in queries]
    fresh = ragq.open(tmp_path / "index", model=words_model)
    start = threading.Barrier(8)

    def ask(_: int) -> list[list[tuple[str, float]]]:
        start.wait()
        return [[(h.id, h.score) for h in fresh.search(q, 5, where)] for q in queries]

    with ThreadPoolExecutor(8) as pool:
        assert all(answers == alone for answers in pool.map(ask, range(8)))


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    make(tmp_path / "index")
    one = ragq.open(tmp_path / "index", mode="w", model=words_model)
    two = ragq.open(tmp_path / "index", mode="w", model=words_model)
    one.add([{"id": "one", "text": "one"}])
    two.add([{"id": "two", "text": "two"}])
    one.refresh()
    assert "one" in one and "two" in one and "one" in two
    with one._writing(), pytest.raises(IndexLockedError, match=rf"process {os.getpid()} .* since \d+ s"):
        two.delete(["one"])


def test_a_rebuilt_index_is_told_from_the_old_one(tmp_path: Path) -> None:
    import shutil

    make(tmp_path / "index", 3).close()
    reader = ragq.open(tmp_path / "index", model=words_model)
    shutil.rmtree(tmp_path / "index")
    make(tmp_path / "index", 5).close()
    assert reader.manifest.generation == 1
    assert reader.refresh()
    assert len(reader) == 5
    assert not reader.refresh()


# Models


def test_another_dimension_is_refused_with_both_sides_named(tmp_path: Path) -> None:
    make(tmp_path / "index")

    def wider(texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), DIM + 1), np.float32)

    with pytest.raises(IncompatibleIndexError, match=r"words_model has 8 dimensions.*wider has 9.*Open it with"):
        ragq.open(tmp_path / "index", model=wider)
    with pytest.raises(InvalidArgumentError, match=r"must have 8 dimensions\. Got 9"):
        ragq.open(tmp_path / "index").search_embeddings(np.ones((1, 9), np.float32))


def test_an_index_of_ready_embeddings_asks_for_its_model(tmp_path: Path) -> None:
    x = np.ones((2, 4), np.float32)
    index = ragq.build(None, tmp_path / "index", embeddings=x, ids=["a", "b"], codec="F32")
    with pytest.raises(InvalidArgumentError, match="open it with the model that made them"):
        index.search("a question")


def test_the_default_model_answers_and_refuses_a_stranger(tmp_path: Path) -> None:
    texts = {
        "sky": "The sky is blue because air scatters short waves of light.",
        "bread": "Bread dough rises because yeast makes carbon dioxide.",
        "tide": "Tides come from the pull of the moon on the oceans.",
        "bees": "Bees dance to tell their sisters where flowers are.",
    }
    index = ragq.build(texts, tmp_path / "index")
    assert index.search("why does the sea rise and fall?", k=2)[0].document_id == "tide"
    assert index.search("what makes dough grow?")[0].document_id == "bread"
    assert index.manifest.embedder is not None
    other = dict(index.manifest.embedder) | {"weights_sha256": "0" * 64, "model": "somebody/else"}

    class Stranger:
        dim, max_tokens, tokenizer, fingerprint = 384, 256, None, other

        def encode_documents(self, texts: list[str]) -> np.ndarray:
            return np.ones((len(texts), 384), np.float32)

        encode_queries = encode_documents

    with pytest.raises(IncompatibleIndexError, match=r"all-MiniLM-L6-v2.*somebody/else.*different weights"):
        ragq.open(tmp_path / "index", model=Stranger())


# What others read


def test_the_files_open_with_plain_arrow_and_duckdb(tmp_path: Path) -> None:
    index = make(tmp_path / "index", 5, codec="INT8")
    shard = index.manifest.shards[0]
    docs = pa.ipc.open_file(tmp_path / "index" / shard.docs.name).read_all()
    assert docs.column("id").to_pylist() == [f"d{i}" for i in range(5)]
    with duckdb.connect() as connection:
        connection.register("docs", docs)
        rows = connection.execute("select id, text, title, metadata from docs order by id").fetchall()
    english = [(name, text, title) for name, text, title, data in rows if json.loads(data).get("lang") == "en"]
    assert english == [(f"d{i}", f"text {i} of {i % 3}", f"title {i}") for i in (0, 2, 4)]
    codes = pa.ipc.open_file(tmp_path / "index" / shard.codes.name).read_all()
    assert codes.num_rows == 64 and codes.column_names[0] == "codes"
    assert pa.ipc.open_file(tmp_path / "index" / shard.ids.name).read_all().num_rows == 5


@pytest.mark.parametrize("codec", ["F32", "FP8", "INT4", "BIN", "FP4"])
def test_every_code_buffer_begins_at_a_line_of_64_bytes(tmp_path: Path, codec: str) -> None:
    index = make(tmp_path / "index", 70, codec=codec)
    file = pa.memory_map(str(tmp_path / "index" / index.manifest.shards[0].codes.name))
    whole = file.read_buffer(file.size())
    batch = pa.ipc.open_file(whole).get_batch(0)
    for column in batch.columns:
        assert (column.buffers()[1].address - whole.address) % 64 == 0


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_the_mode_of_files_follows_the_umask(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        index = make(tmp_path / "index")
        index.delete(["d0"])
    finally:
        os.umask(old)
    for name in ["manifest.json", *(file.name for file in index.manifest.files)]:
        assert (tmp_path / "index" / name).stat().st_mode & 0o777 == 0o666 & ~mask, name


# Corners


def test_more_hits_than_rows_are_padding(tmp_path: Path) -> None:
    index = make(tmp_path / "index", 3)
    found = index.search_embeddings(words_model(["text"]), 1000)
    assert found.ids.shape == (1, 1000) and len(next(iter(found))) == 3
    assert len(index.search("text", k=10**9)) == 3
    assert index.search([]) == []


def test_an_emptied_index_answers_nothing_and_takes_documents(tmp_path: Path) -> None:
    index = make(tmp_path / "index", 3)
    assert index.delete(where={}) == 3
    assert (len(index), list(index), index.search("text"), index.search("text", where={"lang": "en"})) == (
        0,
        [],
        [],
        [],
    )
    assert index.info()["index_bytes_per_vector"] is None
    index.add(documents(1))
    assert index.search("text")[0].document_id == "d0"


def test_ids_that_cannot_be_are_simply_not_there(tmp_path: Path) -> None:
    index = make(tmp_path / "index", 3)
    assert index.get(["\ud800", "", "x" * 100_000]) == []
    assert index.delete("\ud800") == 0
    for bad in (5, [None], [b"d0"]):
        with pytest.raises((InvalidArgumentError, TypeError)):
            index.get(bad)


def test_a_filter_is_a_mapping_or_an_expression(tmp_path: Path) -> None:
    index = make(tmp_path / "index", 8)
    expected = {h.id for h in index.search("text", where={"lang": "en", "n": {"$gte": 3}})}
    assert {h.id for h in index.search("text", where=(pc.field("lang") == "en") & (pc.field("n") >= 3))} == expected
    assert expected == {"d4#0", "d6#0"}


def test_info_measures_the_files(tmp_path: Path) -> None:
    index = make(tmp_path / "index", 100, codec="FP8")
    info = index.info()
    root = tmp_path / "index"
    sizes = {name: (root / name).stat().st_size for name in on_disk(root) if name != "write.lock"}
    assert info["total_bytes"] == sum(sizes.values())
    docs = sum(size for name, size in sizes.items() if ".docs." in name)
    assert info["index_bytes_per_vector"] == round((sum(sizes.values()) - docs) / 100, 3)
    (root / index.manifest.shards[0].docs.name).unlink()
    with pytest.raises(ragq.StorageError):
        ragq.open(root).info()
    with pytest.raises(CorruptIndexError, match="is missing"):
        ragq.open(root).verify()
