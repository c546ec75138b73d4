"""Laws of the manifest: it reads back as it was, and nothing that was altered reads at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragq.errors import CorruptIndexError, IncompatibleIndexError
from ragq.manifest import Deletes, FileEntry, Manifest, ShardEntry, checksum

FILE = FileEntry("shards/é.arrow", 5, "0" * 32)
SHARD = ShardEntry("1", 5, 3, FILE, FILE, FILE, Deletes(FILE, 2, 1))
MANIFEST = Manifest("FP8", "rows:4x8+0", 4, "ip", False, FILE, {"kind": "x", "prompts": {"q": "é"}}, {}, (SHARD,), 7)
PATH = Path("index/manifest.json")


def test_it_reads_back() -> None:
    assert Manifest.load(PATH, MANIFEST.dump()) == MANIFEST
    assert (MANIFEST.rows, MANIFEST.documents, MANIFEST.next().generation) == (3, 2, 8)


@given(st.data())
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    text = bytearray(MANIFEST.dump())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255))
    try:
        assert Manifest.load(PATH, bytes(text)) == MANIFEST  # white space may differ
    except (CorruptIndexError, IncompatibleIndexError) as error:
        assert "index/manifest.json" in str(error)


@given(st.integers(0, 400))
def test_no_part_of_it_reads(size: int) -> None:
    with pytest.raises(CorruptIndexError):
        Manifest.load(PATH, MANIFEST.dump()[:size])


def test_a_newer_format_is_not_called_damaged() -> None:
    body = json.loads(MANIFEST.dump()) | {"format": 3, "something": "new"}
    with pytest.raises(IncompatibleIndexError, match=r"has format 3; this ragq reads 1 to 2\. Update ragq"):
        Manifest.load(PATH, json.dumps(body).encode())


@pytest.mark.parametrize(
    "shard", [{"rows": 2}, {"documents": 6}, {"rows": 1 << 33}, {"rows": True}, {"rows": -1}, {"id": 5}, {"more": 1}]
)
def test_counts_that_cannot_be_are_corrupt(shard: dict) -> None:
    body = json.loads(MANIFEST.dump())
    del body["checksum"]
    body["shards"][0] |= shard
    with pytest.raises(CorruptIndexError):
        Manifest.load(PATH, json.dumps(body | {"checksum": checksum(body)}).encode())
