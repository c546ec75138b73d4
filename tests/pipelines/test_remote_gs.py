"""The same on Google Cloud Storage, whose objects have generations instead of entity tags."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ragq
import ragq.remote
import ragq.stores
from ragq.errors import CommitConflictError, CorruptIndexError, InvalidArgumentError
from tests.gcs_server import GCSServer
from tests.indexes import content, documents, make, words_model


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GCSServer]:
    server = GCSServer()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
    monkeypatch.setenv("RAGQ_CACHE", str(tmp_path / "cache"))
    yield server
    server.close()


@pytest.mark.parametrize("part", [8 << 20, 100])  # one request a file, or a stream
def test_it_equals_a_local_index(server: GCSServer, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragq.stores, "PART", part)
    monkeypatch.setattr(ragq.remote, "GRACE", 0.0)
    with make("gs://bucket/a/x.ragq", 20, shard_rows=8) as remote, make(tmp_path / "local", 20, shard_rows=8) as local:
        for index in (remote, local):
            index.add(documents(6, 17))
            index.delete(["d1", "d2"])
            index.compact()
        assert content(remote) == content(local)
        named = {file.name for file in remote.manifest.files} | {"manifest.json"}
    monkeypatch.setenv("RAGQ_CACHE", str(tmp_path / "elsewhere"))
    with ragq.open("gs://bucket/a/x.ragq") as again:
        again.verify()
        assert content(again) == content(local)
    left = {name.removeprefix("a/x.ragq/") for _, name in server.objects}
    assert {name for name in left if not name.startswith("retired/")} == named


def test_of_two_writers_one_wins(server: GCSServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "gs://bucket/x.ragq"
    make(url).close()
    first = ragq.open(url, mode="w", model=words_model)
    monkeypatch.setenv("RAGQ_CACHE", str(tmp_path / "elsewhere"))
    second = ragq.open(url, mode="w", model=words_model)
    with second._writing() as transaction:
        monkeypatch.setenv("RAGQ_CACHE", str(tmp_path / "cache"))
        first.add(documents(1, 70))
        transaction.delete(["d0"])
        with pytest.raises(CommitConflictError, match=r"Another writer has changed gs://bucket/x.ragq"):
            transaction.commit()
    assert second.refresh() and "d0" in second and "d70" in second


def test_what_is_not_there(server: GCSServer) -> None:
    with pytest.raises(InvalidArgumentError, match=r"There is no index at gs://bucket/nothing"):
        ragq.open("gs://bucket/nothing")
    index = make("gs://bucket/x.ragq", codec="FP8")
    name = f"x.ragq/{index.manifest.shards[0].docs.name}"
    generation, data = server.objects["bucket", name]
    server.objects["bucket", name] = (generation, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptIndexError, match=r"gs://bucket/x.ragq/shards/.*docs.arrow was altered"):
        index.verify()
    del server.objects["bucket", name]
    with pytest.raises(CorruptIndexError, match=r"docs.arrow is missing"):
        index.verify()
