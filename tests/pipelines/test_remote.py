"""An index in an object store is the index that a folder would hold, and two writers cannot both change it."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ragq
import ragq.remote
from ragq.errors import CommitConflictError, CorruptIndexError, IndexLockedError, InvalidArgumentError, StorageError
from ragq.stores import S3Store, open_store
from tests.indexes import content, documents, make, on_disk, words_model
from tests.object_store import BUCKET, ObjectStore


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    server = ObjectStore()
    server.client().create_bucket(Bucket=BUCKET)
    yield server
    server.close()


@pytest.fixture
def url(server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of this test's own in the store, and a cache of its own."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    on_machine(monkeypatch, tmp_path / "cache")
    server.fail(0, "none")
    return f"s3://{BUCKET}/{tmp_path.name}/x.ragq"


def on_machine(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Go on as another machine would: with a cache of its own."""
    monkeypatch.setenv("RAGQ_CACHE", str(cache))


def key(url: str) -> str:
    return url.removeprefix(f"s3://{BUCKET}/")


def test_it_equals_a_local_index_through_every_change(
    url: str, tmp_path: Path, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = words_model(["text 3", "of 1"])
    with make(url, 20, shard_rows=8) as remote, make(tmp_path / "local", 20, shard_rows=8) as local:
        for change in (
            lambda index: index.add(documents(6, 17)),
            lambda index: index.delete(["d1", "d2", "d30"]),
            lambda index: index.delete(where={"lang": "de"}),
            lambda index: index.restructure("ivf"),
            lambda index: index.compact(),
        ):
            assert change(remote) == change(local)
            assert content(remote) == content(local)
            for exact in (False, True):
                mine, theirs = (i.search_embeddings(queries, 5, exact=exact) for i in (remote, local))
                assert (mine.ids == theirs.ids).all() and (mine.scores == theirs.scores).all()
            remote.verify()
        assert repr(remote).startswith(f"Index('{url}'")
        sizes = remote.info()["bytes"]
        assert sizes["codes"] == local.info()["bytes"]["codes"] > 0
    on_machine(monkeypatch, tmp_path / "elsewhere")
    with ragq.open(url) as remote, pickle.loads(pickle.dumps(remote)) as again:
        assert content(remote) == content(local) == content(again)
        assert "d18" in remote and remote.get("d18") == local.get("d18")
        named = {file.name for file in remote.manifest.files} | {"manifest.json"}
    assert named <= server.names(key(url))


def test_an_index_that_was_copied_into_a_store_opens_there(url: str, tmp_path: Path, server: ObjectStore) -> None:
    with make(tmp_path / "local") as local:
        local.delete("d3")
    for name in on_disk(tmp_path / "local"):
        server.client().put_object(
            Bucket=BUCKET, Key=f"{key(url)}/{name}", Body=(tmp_path / "local" / name).read_bytes()
        )
    with ragq.open(Path(url), mode="w", model=words_model) as remote:  # a Path has one slash where a URL has two
        assert content(remote) == content(local)
        remote.add(documents(1, 50))
        assert len(remote) == 10


def test_of_two_writers_one_wins_and_the_other_is_told(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(url).close()
    first = ragq.open(url, mode="w", model=words_model)
    on_machine(monkeypatch, tmp_path / "elsewhere")
    second = ragq.open(url, mode="w", model=words_model)
    transaction = second._writing()
    on_machine(monkeypatch, tmp_path / "cache")
    first.add(documents(1, 70))
    on_machine(monkeypatch, tmp_path / "elsewhere")
    with transaction:
        transaction.delete(["d0", "d70"])
        with pytest.raises(CommitConflictError, match=r"Another writer has changed s3://.*repeat the change") as error:
            transaction.commit()
    assert isinstance(error.value, IndexLockedError)
    assert second.refresh() and "d0" in second and "d70" in second
    assert second.delete(["d0", "d70"]) == 2
    assert first.refresh() and "d0" not in first
    first.verify()


def test_two_new_indexes_in_one_place_do_not_mix(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ragq.pipelines.build import Build

    run = Build.run

    def overtaken(self: Build, *arguments: object) -> object:
        monkeypatch.setattr(Build, "run", run)
        on_machine(monkeypatch, tmp_path / "elsewhere")
        make(url, 3).close()
        on_machine(monkeypatch, tmp_path / "cache")
        return run(self, *arguments)

    monkeypatch.setattr(Build, "run", overtaken)
    with pytest.raises(CommitConflictError):
        make(url, 8)
    assert len(ragq.open(url)) == 3


def test_two_writers_of_one_machine_wait_for_each_other(url: str) -> None:
    make(url).close()
    first, second = (ragq.open(url, mode="w") for _ in range(2))
    with first._writing(), pytest.raises(IndexLockedError, match=rf"{url} is being written by process \d+"):
        second.delete("d1")


def test_a_store_that_overwrites_all_the_same_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = S3Store.replace
    monkeypatch.setattr(S3Store, "replace", lambda self, name, data, version: self.put(name, data) or str(len(data)))
    with pytest.raises(StorageError, match="does not heed conditional writes"):
        make(url)
    monkeypatch.setattr(S3Store, "replace", replace)
    make(url).close()


def test_a_repeated_request_that_had_succeeded_is_no_conflict(url: str, server: ObjectStore) -> None:
    index = make(url)
    server.fail(0, "none")
    index.delete("d0")
    puts = server.requests
    for lost in range(1, puts + 1):
        server.fail(lost, "lost")
        try:
            index.delete(f"d{lost}")
        except StorageError:
            server.fail(0, "none")
            index.refresh()
            assert f"d{lost}" in index  # what was refused did not happen
    server.fail(0, "none")
    assert index.verify() and ragq.open(url).manifest == index.manifest


def test_a_search_fetches_only_what_it_needs(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(url, 40, shard_rows=10).close()
    on_machine(monkeypatch, tmp_path / "elsewhere")
    with ragq.open(url) as index:
        index.search_embeddings(words_model(["text 1"]), 1)
        here = {path.name for path in (tmp_path / "elsewhere" / "files").iterdir()}
        docs = {f"{shard.docs.xxh3}-{shard.docs.size}" for shard in index.manifest.shards}
        assert len(here & docs) == 1 and len(docs) == 4


def test_the_cache_stays_within_its_bound(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(url, 400, shard_rows=50).close()
    on_machine(monkeypatch, tmp_path / "elsewhere")
    monkeypatch.setenv("RAGQ_CACHE_BYTES", "20000")
    with ragq.open(url) as index:
        assert len(list(index)) == 400
        files = list((tmp_path / "elsewhere" / "files").iterdir())
        assert files and sum(path.stat().st_size for path in files) <= 20_000
        assert index.search_embeddings(words_model(["text 1"]), 400).ids[0, -1] is not None
    monkeypatch.setenv("RAGQ_CACHE_BYTES", "much")
    with pytest.raises(InvalidArgumentError, match=r"RAGQ_CACHE_BYTES must be a number of bytes. Got 'much'"):
        ragq.open(url).verify()


@pytest.mark.parametrize("what", ["codes", "docs", "ids", "compressor"])
def test_altered_and_missing_objects_are_found(
    url: str, what: str, server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(url, codec="FP8") as index:
        file = index.manifest.compressor if what == "compressor" else getattr(index.manifest.shards[0], what)
    client, name = server.client(), f"{key(url)}/{file.name}"
    data = client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
    client.put_object(Bucket=BUCKET, Key=name, Body=data[:-1] + bytes([data[-1] ^ 1]))
    for machine in ("cache", "elsewhere"):  # what the cache holds is no proof of what the store holds
        on_machine(monkeypatch, tmp_path / machine)
        with pytest.raises(CorruptIndexError, match=f"s3://.*{what}.*was altered"):
            ragq.open(url).verify()
    client.delete_object(Bucket=BUCKET, Key=name)
    with pytest.raises(CorruptIndexError, match=f"s3://.*{what}.*is missing"):
        ragq.open(url).verify()


def test_what_no_manifest_names_goes_after_the_grace_and_not_before(
    url: str, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make(url, 12, shard_rows=4)
    old = ragq.open(url)
    server.client().put_object(Bucket=BUCKET, Key=f"{key(url)}/shards/orphan.codes.arrow", Body=b"x")
    server.client().put_object(Bucket=BUCKET, Key=f"{key(url)}/notes.txt", Body=b"somebody else's")
    index.delete("d1")
    index.compact()
    assert content(old)[1][0] == "d1"
    old.verify()
    monkeypatch.setattr(ragq.remote, "GRACE", 0.0)
    time.sleep(1.1)  # the times of objects are whole seconds
    index.delete("d2")
    index.compact()
    left = server.names(key(url))
    assert left == {file.name for file in index.manifest.files} | {"manifest.json", "notes.txt"} | {
        name for name in left if name.startswith("retired/")
    }
    with pytest.raises(CorruptIndexError, match="call refresh"):
        old.verify()
    assert old.refresh() and old.verify()


def test_places_that_are_not_indexes(url: str, server: ObjectStore) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"There is no index at {url}"):
        ragq.open(url)
    server.client().put_object(Bucket=BUCKET, Key=f"{key(url)}/thesis.doc", Body=b"x")
    with pytest.raises(InvalidArgumentError, match=r"not empty: it holds 'thesis.doc'"):
        make(url)
    with pytest.raises(InvalidArgumentError, match=r"There is no index at s3://no-such-bucket/x"):
        ragq.open("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match=r"Cannot read s3://no-such-bucket/x/manifest.json: .*bucket"):
        make("s3://no-such-bucket/x")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("http://example.org/x", "neither s3:// nor gs://"),
        ("s3://bucket", "must name a path"),
        ("s3://bucket/a/../b", "must name a path"),
        ("s3://key:secret@bucket/x", "Credentials belong into the environment"),
        ("s3://bucket/x?colour=red", "Got 'colour'"),
    ],
)
def test_urls_that_name_no_place(bad: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        ragq.open(bad)


def test_the_region_of_a_bucket_is_looked_up_when_nobody_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pyarrow.fs.resolve_s3_region", {"a-bucket": "eu-west-3"}.__getitem__)
    assert open_store("s3://a-bucket/x").fs.region == "eu-west-3"
    assert open_store("s3://a-bucket/x?region=us-west-2").fs.region == "us-west-2"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    assert open_store("s3://a-bucket/x").fs.region == "ap-south-1"


def test_an_unanswered_store_is_a_storage_error(url: str, server: ObjectStore) -> None:
    index = make(url)
    server.fail(1, "outage")
    for call in (index.refresh, lambda: ragq.open(url), lambda: index.delete("d1"), lambda: make(url)):
        with pytest.raises(StorageError, match=r"Cannot read s3://"):
            call()
    server.fail(0, "none")
    assert index.delete("d1") == 1


def test_a_build_goes_on_after_an_outage(url: str, server: ObjectStore) -> None:
    x = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    build = {"embeddings": x, "ids": [f"i{i}" for i in range(30)], "codec": "INT8", "shard_rows": 5}
    expected = ragq.build(None, f"{url}-2", **build)
    server.fail(12, "outage")
    with pytest.raises(StorageError):
        ragq.build(None, url, **build)
    server.fail(0, "none")
    with pytest.raises(InvalidArgumentError, match="is not finished"):
        ragq.open(url)
    with ragq.build(None, url, **build, resume=True) as index:
        assert content(index) == content(expected)
        index.verify()
    assert [s.codes.xxh3 for s in index.manifest.shards] == [s.codes.xxh3 for s in expected.manifest.shards]


def test_a_store_can_be_named_by_options_of_the_url(
    url: str, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    full = f"{url}?scheme=http&endpoint_override={server.endpoint.removeprefix('http://')}"
    make(full).close()
    assert len(ragq.open(full)) == 10
    assert "AWS_ENDPOINT_URL" not in os.environ
