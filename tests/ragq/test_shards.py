"""Laws of shards: what was written is read back, and a damaged file is never believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragq.errors import CorruptIndexError, InvalidArgumentError, StorageError
from ragq.layouts import Layout
from ragq.manifest import ShardEntry
from ragq.shards import BATCH_ROWS, Shard, ShardWriter, hash_ids, write_deletes
from ragq.types import Passage

LAYOUT = Layout("rows", 6, 8, 1)


def write(folder: Path, rows: int, layout: Layout = LAYOUT) -> tuple[ShardEntry, list[Passage], np.ndarray]:
    passages = [Passage(f"d{i // 3}", i % 3, f"text {i}", metadata={"i": i}, start=i) for i in range(rows)]
    codes = np.random.default_rng(rows).integers(0, 256, (rows, layout.code_size), np.uint8)
    with ShardWriter(folder, "1", layout) as writer:
        for start in range(0, rows, 700):
            writer.add(passages[start : start + 700], codes[start : start + 700])
        return writer.finish(), passages, codes


@pytest.mark.parametrize("rows", [1, 63, 64, 65, BATCH_ROWS, BATCH_ROWS + 1])
@pytest.mark.parametrize("text", ["rows:6x8+1", "blocks:7x4+0", "nibbles:5x8+2", "planes:9x3+1"])
def test_what_was_written_is_read(tmp_path: Path, rows: int, text: str) -> None:
    layout = Layout.parse(text)
    entry, passages, codes = write(tmp_path, rows, layout)
    shard = Shard(tmp_path, entry, layout)
    shard.verify()
    read = shard.block.codes(0, rows)
    assert read.shape == codes.shape
    if layout.kind == "rows":
        assert (read == codes).all()
    wanted = np.array([rows - 1, 0, rows // 2, 0])
    assert shard.docs(wanted, ["text"]).column(0).to_pylist() == [passages[i].text for i in wanted]
    which, first = shard.find(hash_ids(["nobody", "d0"]))
    assert (which.tolist(), first.tolist()) == ([1], [0])
    assert entry.documents == -(-rows // 3)


@given(part=st.sampled_from(["codes", "docs", "ids"]), where=st.floats(0, 1), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_is_found_and_never_crashes(tmp_path_factory, part: str, where: float, bit: int) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("shard")
    entry, _, _ = write(folder, 40)
    path = folder / getattr(entry, part).name
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)
    shard = Shard(folder, entry, LAYOUT)
    with pytest.raises(CorruptIndexError, match="was altered"):
        shard.verify()
    try:
        _ = shard.block, shard.documents
        shard.find(hash_ids([f"d{i}" for i in range(14)]))
        list(shard.docs_batches(["id", "text", "metadata"]))
    except (CorruptIndexError, StorageError) as error:
        assert str(path) in str(error)


def test_a_delete_bitset_counts_what_the_manifest_says(tmp_path: Path) -> None:
    entry, _, _ = write(tmp_path, 9)
    gone = np.zeros(9, bool)
    gone[3:6] = True
    from dataclasses import replace

    deletes = write_deletes(tmp_path, entry, 2, gone, 1)
    shard = Shard(tmp_path, replace(entry, deletes=deletes), LAYOUT)
    assert shard.deleted is not None and (shard.deleted == gone).all()
    with pytest.raises(CorruptIndexError, match="deletes 3 rows, not 2"):
        _ = Shard(tmp_path, replace(entry, deletes=replace(deletes, rows=2)), LAYOUT).deleted


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="lone surrogates"), ShardWriter(tmp_path, "1", LAYOUT) as writer:
        writer.add([Passage("d", 0, "\ud800")], np.zeros((1, LAYOUT.code_size), np.uint8))
        writer.finish()
    assert not list((tmp_path / "shards").iterdir())
