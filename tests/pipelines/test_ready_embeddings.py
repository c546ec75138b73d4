"""Laws of ready embeddings: any range of any file is what the file holds, as float32, and mismatches are refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragq.errors import InvalidArgumentError
from ragq.pipelines.readers import open_embeddings
from ragq.types import Document

ROWS, DIM = 9000, 3
X = np.random.default_rng(7).standard_normal((ROWS, DIM)).astype(np.float32)
IDS = [f"d{i}" for i in range(ROWS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("embeddings")
    for dtype in ("f2", "f4", "f8"):
        np.save(path / f"{dtype}.npy", X.astype(dtype))
    np.save(path / "columns.npy", np.asfortranarray(X))
    np.save(path / "ids.npy", np.array(IDS))
    (path / "ids.txt").write_text("".join(f"{name}\n" for name in IDS))
    (path / "ids.jsonl").write_text("".join(f'{{"_id": "{name}"}}\n' for name in IDS))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), DIM)
    halves = pa.FixedSizeListArray.from_arrays(pa.array(X.astype("f2").ravel()), DIM)
    table = pa.table({"id": IDS, "list": X.astype("f8").tolist(), "fixed": fixed, "halves": halves})
    pq.write_table(table, path / "x.parquet", row_group_size=2500)
    with pa.ipc.new_file(path / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    pq.write_table(table.select(["fixed"]), path / "only.parquet")
    return path


SPECS = ["f2.npy", "f4.npy", "f8.npy", "columns.npy", "x.parquet:list", "x.parquet fixed", "x.arrow:fixed"]


@pytest.mark.parametrize("spec", [*SPECS, "x.parquet:halves", "only.parquet"])
def test_any_range_is_what_the_file_holds(folder, spec):
    opened = open_embeddings(f"{folder}/{spec}")
    expected = X.astype("f2").astype("f4") if opened.dtype == np.float16 else X
    assert opened.shape == (ROWS, DIM)
    blocks = list(opened.batches(4000))
    assert [len(block) for block in blocks] == [4000, 4000, 1000]
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    np.testing.assert_array_equal(np.concatenate(list(opened.batches(4000, 2100))), expected[2100:])
    np.testing.assert_array_equal(opened.rows(8191, 8194), expected[8191:8194])
    np.testing.assert_array_equal(opened.rows(5, 7), expected[5:7])
    np.testing.assert_array_equal(opened.rows(8990, 9999), expected[8990:])
    chosen = [0, 3, 3, 8191, 8192, 8999]
    np.testing.assert_array_equal(opened.take(chosen), expected[chosen])
    assert opened.take([]).shape == (0, DIM)


def test_an_array_is_taken_as_it_is():
    opened = open_embeddings(X[:5], IDS[:5])
    np.testing.assert_array_equal(opened.rows(1, 3), X[1:3])
    assert open_embeddings(opened) is opened
    assert len(opened) == 5


@pytest.mark.parametrize("spec", ["ids.txt", "ids.npy", "ids.jsonl", "x.parquet", "x.parquet:id", "x.arrow id"])
def test_ids_come_from_any_file(folder, spec):
    opened = open_embeddings(folder / "f4.npy", f"{folder}/{spec}")
    assert list(opened.ids()) == list(opened.ids()) == IDS
    assert [d.id for d in opened.documents(8998)] == IDS[8998:]


def test_ids_must_be_those_of_the_documents(folder):
    opened = open_embeddings(X[:3], ["a", "b", "c"])
    documents = [Document(name, "text") for name in "abc"]
    assert list(opened.documents(1, documents[1:])) == documents[1:]
    with pytest.raises(
        InvalidArgumentError, match="Row 1 of the array given has the id 'b', but the document there is 'c'"
    ):
        list(opened.documents(0, [documents[0], documents[2]]))
    assert list(open_embeddings(X[:3]).documents(0, documents)) == documents


def test_ids_are_needed_without_documents(folder):
    with pytest.raises(InvalidArgumentError, match="comes without ids"):
        list(open_embeddings(folder / "f4.npy").documents())


@pytest.mark.parametrize("ids", [["a"], "ids.txt", "x.parquet:id"])
def test_another_number_of_ids_is_refused(folder, ids):
    where = f"{folder}/{ids}" if isinstance(ids, str) else ids
    with pytest.raises(InvalidArgumentError, match=r"has 4 rows, but there are (1|9,000) ids"):
        open_embeddings(X[:4], where)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.npy", "No such file"),
        ("none.parquet:x", "No such file"),
        ("bad.npz", r"Save its array as \.npy"),
        ("bad.npy", r"bad\.npy cannot be read as \.npy"),
        ("short.npy", r"short\.npy cannot be read as \.npy"),
        ("objects.npy", r"objects\.npy cannot be read as \.npy"),
        ("ints.npy", "must hold float16, float32 or float64. Got int64"),
        ("flat.npy", r"must have shape \(n, dim\). Got shape \(3,\)"),
        ("x.parquet", "needs the name of a column.*'list', 'fixed', 'halves'"),
        ("x.parquet:id", "needs the name of a column"),
        ("ragged.parquet", r"Row 1 of .*ragged\.parquet:x must hold 2 numbers"),
        ("nulls.parquet", "without nulls"),
    ],
)
def test_what_is_no_matrix_of_floats_is_refused(folder, spec, message):
    np.savez(folder / "bad.npz", X[:2])
    (folder / "bad.npy").write_bytes(b"no array")
    whole = (folder / "f4.npy").read_bytes()
    (folder / "short.npy").write_bytes(whole[: len(whole) // 2])
    np.save(folder / "objects.npy", np.array([["a", 1]], dtype=object), allow_pickle=True)
    np.save(folder / "ints.npy", np.ones((2, 2), np.int64))
    np.save(folder / "flat.npy", np.ones(3))
    pq.write_table(pa.table({"x": [[1.0, 2.0], [1.0]]}), folder / "ragged.parquet")
    pq.write_table(pa.table({"x": [[1.0, 2.0], None]}), folder / "nulls.parquet")
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        opened = open_embeddings(f"{folder}/{spec}")
        list(opened.batches())
    assert "\n" not in str(caught.value)


def test_another_dimension_is_refused(folder):
    assert open_embeddings(folder / "f4.npy", dim=3).dim == 3
    with pytest.raises(InvalidArgumentError, match=r"must have 4 dimensions\. Got 3"):
        open_embeddings(folder / "f4.npy", dim=4)


def test_ids_that_are_no_strings_are_refused(folder):
    np.save(folder / "floats.npy", np.ones(ROWS))
    for ids in (f"{folder}/floats.npy", [1.5] * ROWS):
        with pytest.raises(InvalidArgumentError, match="string"):
            list(open_embeddings(folder / "f4.npy", ids).ids())
