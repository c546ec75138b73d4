"""Laws of durable writes, locks, leases and names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import xxhash

from ragq.errors import CorruptIndexError, IndexLockedError, StorageError
from ragq.storage import WriterLock, durable_write, file_digest, inside, is_leased, lease, write_bytes


def test_a_durable_write_counts_and_hashes(tmp_path: Path) -> None:
    with durable_write(tmp_path / "file") as file:
        file.write(b"abc")
        file.write(memoryview(b"def"))
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"abcdef"
    assert (file.size, file.digest) == (6, xxhash.xxh3_128_hexdigest(b"abcdef"))
    assert file_digest(tmp_path / "file") == file.digest
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (calls.append(name), original(*a))[1])
    write_bytes(tmp_path / "file", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    with pytest.raises(StorageError, match="the disk is full; free some space"), durable_write(tmp_path / "file") as f:
        f.write(b"new")
        raise OSError(errno.ENOSPC, "no space")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path)
    with pytest.raises(IndexLockedError, match=rf"process {os.getpid()} "):
        WriterLock(tmp_path)
    lock.release()
    lock.release()
    with WriterLock(tmp_path) as other:
        assert other.held
    assert not (tmp_path / "write.owner").exists()


def test_a_lock_whose_owner_cannot_be_written_is_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(StorageError):
            WriterLock(tmp_path)
    WriterLock(tmp_path).release()


def test_a_lease_follows_the_file_and_not_the_name(tmp_path: Path) -> None:
    path, kept = tmp_path / "manifest", tmp_path / "kept"
    write_bytes(path, b"one")
    reader = lease(path)
    os.link(path, kept)
    write_bytes(path, b"two")
    assert is_leased(kept) and not is_leased(path)
    assert reader.read() == b"one"
    reader.close()
    assert not is_leased(kept)


@pytest.mark.parametrize("name", ["", ".", "..", "/x", "a/../../x", "a/..", "a//b", "./a", "a\0", "a/", "a/\ud800"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorruptIndexError):
        inside(tmp_path, name)
    assert inside(tmp_path, "shards/a.arrow") == tmp_path / "shards" / "a.arrow"


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "index" / "shards").symlink_to(tmp_path / "out")
    (tmp_path / "index" / "file").symlink_to(tmp_path / "out")
    (tmp_path / "index" / "circle").symlink_to("circle")
    for name in ("shards/a", "shards/b/c", "file", "circle"):
        with pytest.raises(CorruptIndexError, match="is a link"):
            inside(tmp_path / "index", name)
    with pytest.raises(CorruptIndexError, match="cannot be"):
        inside(tmp_path / "index", "circle/a")


def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    (tmp_path / "index" / "real").mkdir(parents=True)
    (tmp_path / "index" / "shards").symlink_to("real")
    (tmp_path / "link").symlink_to("index")
    for folder in (tmp_path / "index", tmp_path / "link"):
        assert inside(folder, "shards/a") == folder / "shards" / "a"
