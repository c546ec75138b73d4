"""Laws of a build: the same input gives the same bytes, also when it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ragq
from ragq.errors import IndexLockedError, InvalidArgumentError
from ragq.shards import ShardWriter
from ragq.storage import WriterLock
from tests.indexes import content, documents, expected_files, make, on_disk, words_model

X = np.random.default_rng(5).normal(size=(30, 8)).astype(np.float32)
NAMES = [f"d{i}" for i in range(30)]
SOURCES: dict[str, dict[str, Any]] = {
    "ready": {"source": None, "embeddings": X, "ids": NAMES},
    "model": {"source": documents(30), "model": words_model},
}
HOW = {"codec": "PCA4,FP8", "shard_rows": 7, "sample": 20}


def build(path: Path, kind: str = "ready", **options: Any) -> ragq.Index:
    return ragq.build(out=path, **SOURCES[kind] | HOW | options)


def shard_bytes(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in on_disk(path) if name != "write.lock"}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    finish = ShardWriter.finish
    left = [shards]

    def interrupted(self: ShardWriter) -> Any:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return finish(self)

    monkeypatch.setattr(ShardWriter, "finish", interrupted)


@pytest.mark.parametrize("kind", sorted(SOURCES))
@pytest.mark.parametrize("shards", [0, 1, 2, 4])
def test_a_resumed_build_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shards: int
) -> None:
    build(tmp_path / "whole", kind).close()
    with monkeypatch.context() as patch:
        interrupt_after(patch, shards)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "index", kind)
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "index" / "shards").glob("*")}
    assert len(written) == 3 * shards
    with pytest.raises(InvalidArgumentError, match=r"not finished\. Go on with|There is no index"):
        ragq.open(tmp_path / "index")
    build(tmp_path / "index", kind, resume=True).close()
    assert shard_bytes(tmp_path / "index") == shard_bytes(tmp_path / "whole")
    assert all(file.stat().st_mtime_ns == time for file, time in written.items()), "a finished shard was written again"


def test_a_resumed_build_embeds_the_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[str] = []

    def counting(texts: list[str]) -> np.ndarray:
        embedded.extend(texts)
        return words_model(texts)

    monkeypatch.setattr("ragq.pipelines.feeds.EMBED_ROWS", 5)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "index", "model", model=counting)
    build(tmp_path / "index", "model", model=counting, resume=True)
    texts = [text for text in embedded if text != "dimension"]
    assert len(texts) == len({*texts}) + len([t for t in {*texts} if texts.count(t) > 1])
    assert {*texts} == {f"{d['title']} {d['text']}" for d in documents(30)}


@pytest.mark.parametrize(
    "other", [{"codec": "FP8"}, {"shard_rows": 8}, {"seed": 1}, {"metric": "ip"}, {"ids": "file"}, {"sample": 5}]
)
def test_a_build_is_not_resumed_with_other_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict
) -> None:
    (tmp_path / "ids.txt").write_text("\n".join(NAMES))
    other = {"ids": tmp_path / "ids.txt"} if "ids" in other else other
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "index")
    with pytest.raises(InvalidArgumentError, match=r"interrupted run had .* this one has"):
        build(tmp_path / "index", resume=True, **other)
    build(tmp_path / "index", resume=True).close()
    assert on_disk(tmp_path / "index") == expected_files(tmp_path / "index")


def test_a_build_is_not_resumed_from_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", X)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "index", embeddings=tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.concatenate([X, X])[:30].astype(np.float64))
    with pytest.raises(InvalidArgumentError, match="interrupted run had embeddings"):
        build(tmp_path / "index", embeddings=tmp_path / "x.npy", resume=True)


def test_a_build_is_not_resumed_after_the_index_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make(tmp_path / "index", 5)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "index")
    assert old.delete(["unknown"]) == 0  # no change: what is finished is kept
    assert len(list((tmp_path / "index" / "build").iterdir())) >= 1
    old.delete(["d0"])
    with pytest.raises(InvalidArgumentError, match="has changed since the interrupted run"):
        build(tmp_path / "index", resume=True)
    assert len(old) == 4
    assert not old.refresh()
    build(tmp_path / "index").close()
    assert old.refresh()
    assert len(old) == 30
    old.delete(["d1"])
    assert on_disk(tmp_path / "index") == expected_files(tmp_path / "index")


def test_readers_see_the_old_index_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = content(make(tmp_path / "index", 5))
    for shards in (0, 3):
        with monkeypatch.context() as patch:
            interrupt_after(patch, shards)
            with pytest.raises(KeyboardInterrupt):
                build(tmp_path / "index")
        with ragq.open(tmp_path / "index") as reader:
            assert content(reader) == old
            assert reader.verify() > 0


def test_the_last_of_equal_ids_wins_and_the_others_are_counted(tmp_path: Path) -> None:
    names = [f"d{i % 10}" for i in range(30)]
    index = build(tmp_path / "index", ids=names)
    assert index.report is not None
    assert (index.report.documents, index.report.duplicates, len(index)) == (10, 20, 10)
    assert [d.id for d in index] == [f"d{i}" for i in range(10)]
    hits = index.search_embeddings(X, 10)
    assert {name for row in hits.ids for name in row} == {f"d{i}" for i in range(10)}
    index.verify()
    new = index.add([{"id": "d1", "text": "a"}, {"id": "d1", "text": "b"}], embeddings=X[:2])
    assert (new.added, new.replaced, new.duplicates) == (1, 1, 1)
    assert len(index) == 10 == len(list(index))
    assert index.get("d1")[0].text == "b"


def test_ids_whose_hashes_collide_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragq.shards.xxhash.xxh3_64_intdigest", lambda data: len(data))
    index = build(tmp_path / "index")
    assert len(index) == 30
    assert [d.id for d in index.get(NAMES)] == NAMES
    index.add([{"id": "d3", "text": "new"}], embeddings=X[:1])
    assert index.delete(["d4", "d29"]) == 2
    assert len(index) == 28 == len(list(index))
    assert "d5" in index and "d4" not in index


def test_a_second_builder_leaves_the_first_alone(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    with WriterLock(tmp_path / "index"):
        (tmp_path / "index" / "build").mkdir()
        (tmp_path / "index" / "build" / "sample.f32").write_bytes(b"work")
        with pytest.raises(IndexLockedError, match="is being written by process"):
            build(tmp_path / "index")
        assert (tmp_path / "index" / "build" / "sample.f32").read_bytes() == b"work"


@pytest.mark.parametrize("name", ["build/main.o", "shards/a", "src/x.py", "manifest.json"])
def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path, name: str) -> None:
    file = tmp_path / "project" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(ragq.RagqError):
        build(tmp_path / "project")
    assert file.read_text() == "{}"


def test_links_do_not_lead_the_tidying_out_of_the_index(tmp_path: Path) -> None:
    index = make(tmp_path / "index")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "1.json").write_text("{}")
    for name in ("deletes", "retired"):
        (tmp_path / "index" / name).symlink_to(precious)
    index.delete(["unknown"])
    assert (precious / "1.json").exists()


def test_a_failed_fresh_build_leaves_nothing(tmp_path: Path) -> None:
    bad = X.copy()
    bad[3, 3] = np.nan
    with pytest.raises(InvalidArgumentError, match="The embedding of 'd3' holds NaN"):
        build(tmp_path / "index", embeddings=bad, codec="F32")
    assert not (tmp_path / "index").exists()


def test_a_build_takes_no_more_than_a_shard_at_a_time(tmp_path: Path) -> None:
    index = build(tmp_path / "index")
    assert [shard.rows for shard in index.manifest.shards] == [7, 7, 7, 7, 2]
    with pytest.raises(InvalidArgumentError, match="overwrite=True"):
        build(tmp_path / "index", overwrite=False)
