"""What fuzzing has found, once each."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import ragq
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.filters import check_where
from ragq.layouts import Layout
from ragq.manifest import MANIFEST, Manifest, StructureEntry
from ragq.pipelines.checkup import checkup
from ragq.pipelines.readers import open_embeddings, read
from ragq.pipelines.readers.tokens import open_tokens
from ragq.pipelines.repair import repair
from ragq.shards import DOCS_SCHEMA, IDS_SCHEMA, write_batch
from ragq.storage import write_bytes
from tests.indexes import make, words_model


def test_a_lookup_that_is_not_sorted_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make(path, 6).close()
    manifest = Manifest.load(path / MANIFEST, (path / MANIFEST).read_bytes())
    shard = manifest.shards[0]
    batch = pa.ipc.open_file(path / shard.ids.name).get_batch(0)
    backwards = pa.record_batch([pa.array(c.to_numpy()[::-1].copy()) for c in batch.columns], schema=IDS_SCHEMA)
    entry = write_batch(path, shard.ids.name, backwards)
    write_bytes(path / MANIFEST, replace(manifest, shards=(replace(shard, ids=entry),)).dump())
    with ragq.open(path) as index, pytest.raises(CorruptIndexError, match="is not sorted"):
        index.get(["d0", "d1"])


def renamed(path: Path, name: str) -> None:
    manifest = Manifest.load(path / MANIFEST, (path / MANIFEST).read_bytes())
    shard = manifest.shards[0]
    entry = replace(shard, docs=replace(shard.docs, name=name))
    write_bytes(path / MANIFEST, replace(manifest, shards=(entry,)).dump())


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a\0b", "x" * 5000, "shards/" + "x/" * 3000 + "y"])
def test_names_that_cannot_be_are_corrupt_wherever_they_are_used(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("x")
    path = tmp_path / "index"
    make(path, 6).close()
    renamed(path, name)
    with ragq.open(path) as index:
        for use in (index.info, index.verify, lambda: list(index)):
            with pytest.raises(CorruptIndexError):
                use()
    assert [finding.part for finding in checkup(path)] == ["docs"]


def with_field(path: Path, name: str, value: object) -> None:
    """Change a field of the first passage of an index, checksums included."""
    manifest = Manifest.load(path / MANIFEST, (path / MANIFEST).read_bytes())
    shard = manifest.shards[0]
    rows = pa.ipc.open_file(path / shard.docs.name).read_all().to_pylist()
    rows[0][name] = value
    entry = write_batch(path, shard.docs.name, pa.RecordBatch.from_pylist(rows, DOCS_SCHEMA))
    write_bytes(path / MANIFEST, replace(manifest, shards=(replace(shard, docs=entry),)).dump())


@pytest.mark.parametrize(
    ("name", "value"), [("metadata", '{"a": \n'), ("metadata", "[]"), ("start", 1 << 62), ("start", -1)]
)
def test_passages_that_make_no_document_are_corrupt(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "index"
    make(path, 6).close()
    with_field(path, name, value)
    assert [finding.part for finding in checkup(path)] == ["docs"]
    with ragq.open(path, model=words_model) as index:
        for use in (lambda: list(index), lambda: index.get("d0")):
            with pytest.raises(CorruptIndexError, match="'d0'"):
                use()
        if name == "metadata":
            with pytest.raises(CorruptIndexError, match="'d0'"):
                index.search("text", 6)


def test_a_structure_without_files_is_found(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make(path, 6).close()
    manifest = Manifest.load(path / MANIFEST, (path / MANIFEST).read_bytes())
    structure = StructureEntry("ivf", {}, (manifest.shards[0].id,), (6,), {})
    write_bytes(path / MANIFEST, replace(manifest, structure=structure).dump())
    assert [finding.part for finding in checkup(path)] == ["structure"]
    repair(path, apply=True)
    assert checkup(path) == []


@pytest.mark.parametrize("where", [{"$not": None}, {"$and": [None]}, {"$or": [{"n": 1}, None]}])
def test_nothing_is_no_filter_within_a_filter(where: dict) -> None:
    with pytest.raises(InvalidArgumentError, match="must be a mapping"):
        check_where(where)


def test_filters_are_as_deep_as_they_may_be_and_no_deeper() -> None:
    where: dict = {"n": 1}
    for _ in range(10_000):
        where = {"$not": where}
    with pytest.raises(InvalidArgumentError, match="filters within filters"):
        check_where(where)


@pytest.mark.parametrize("text", ["rows:03x8+0", "rows:3x8+00", "rows:٣x8+0", "rows:3x8+0~0"])
def test_a_layout_is_written_in_one_way(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="layout"):
        Layout.parse(text)


@pytest.mark.parametrize("kind", ["offsets", "text"])
def test_arrow_files_whose_text_lies_elsewhere_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.arrow"
    table = pa.table({"id": ["a", "b"], "text": ["first words", "second words"]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    data = path.read_bytes()
    old, new = {"offsets": ((0, 11, 23), (0, 2**31 - 1, 23)), "text": (b"second", b"\xff\xfe\xfdond")}[kind]
    if kind == "offsets":
        old, new = (np.asarray(part, "<i4").tobytes() for part in (old, new))
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    with pytest.raises(InvalidArgumentError, match="cannot be read as Arrow"):
        list(read(path))


def test_arrow_files_that_name_a_column_twice_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InvalidArgumentError, match="cannot be read as Arrow"):
        list(read(tmp_path / "x.arrow"))


@pytest.mark.parametrize(("old", "new"), [(b"{", b"("), (b"<f4", b",f4")])
def test_a_head_of_npy_that_is_no_python_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((2, 3), np.float32))
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(InvalidArgumentError, match=r"cannot be read as \.npy"):
        open_embeddings(path)


def damaged_tokens(folder: Path, old: bytes, new: bytes, save=np.savez) -> Path:
    path = folder / "x.npz"
    save(path, values=np.ones((300, 8), np.float32), offsets=np.array([0, 100, 300]))
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


def test_archives_of_tokens_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for old, new in ((b"{'descr'", b"({'desc'"), (b"(300, 8)", b"(300,-8)"), (b"(300, 8)", b"(-30, 8)")):
        with pytest.raises(InvalidArgumentError, match=r"x\.npz"):
            open_tokens(damaged_tokens(tmp_path, old, new))
    path = damaged_tokens(tmp_path, b"", b"", np.savez_compressed)
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("values.npy").header_offset + 60
    data = path.read_bytes()
    path.write_bytes(data[:at] + b"\xff" * 20 + data[at + 20 :])
    with pytest.raises(InvalidArgumentError, match=r"x\.npz cannot be read as \.npz"):
        open_tokens(path).tokens(0, 2)
    path = damaged_tokens(tmp_path, np.ones(3, "f4").tobytes(), np.full(3, 2, "f4").tobytes())  # its checksum says so
    with pytest.raises(InvalidArgumentError, match=r"x\.npz cannot be read as \.npz"):
        open_tokens(path).tokens(0, 2)


def test_ids_that_are_no_text_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    names = np.array(["a", "b"])
    names.view(np.uint32)[1] = 0x110000
    np.save(tmp_path / "ids.npy", names)
    with pytest.raises(InvalidArgumentError, match=r"ids\.npy holds text that is not Unicode"):
        list(open_embeddings(tmp_path / "x.npy", tmp_path / "ids.npy").ids())


def test_columns_that_may_hold_nothing_are_not_those_of_documents(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make(path, 6).close()
    manifest = Manifest.load(path / MANIFEST, (path / MANIFEST).read_bytes())
    shard = manifest.shards[0]
    table = pa.ipc.open_file(path / shard.docs.name).read_all()
    schema = pa.schema([field.with_nullable(not field.nullable) for field in DOCS_SCHEMA])
    batch = pa.record_batch(table.combine_chunks().to_batches()[0].columns, schema=schema)
    entry = write_batch(path, shard.docs.name, batch)
    write_bytes(path / MANIFEST, replace(manifest, shards=(replace(shard, docs=entry),)).dump())
    assert [finding.part for finding in checkup(path)] == ["docs"]
    with (
        ragq.open(path, model=words_model) as index,
        pytest.raises(CorruptIndexError, match="not those of a docs file"),
    ):
        index.search("text")
