"""Bad input gets a typed error in one line, a non-zero exit and no traceback; the index from before stays as it was."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ragq
from ragq.cli import main
from ragq.manifest import MANIFEST, Manifest, checksum
from ragq.storage import HashingFile, WriterLock
from tests.indexes import content, expected_files, on_disk

X = np.random.default_rng(3).normal(size=(6, 8)).astype(np.float32)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in this process: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ragq", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An index of six documents, with some deleted."""
    names = [f"d{i}" for i in range(6)]
    docs = [{"id": name, "text": name, "n": i} for i, name in enumerate(names)]
    index = ragq.build(docs, tmp_path / "old.ragq", embeddings=X, codec="FP8", shard_rows=3)
    index.delete(["d1"])
    index.close()
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "ids.txt").write_text("\n".join(names))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
    return tmp_path / "old.ragq"


def fails(result: tuple[int, str, str], pattern: str, code: int = 1) -> None:
    """Check that a command failed as it should."""
    status, out, err = result
    assert status == code, (out, err)
    assert "Traceback" not in err
    assert out == ""
    if code == 1:
        assert err.count("\n") == 1 and err.startswith("Error: "), err
    assert re.search(pattern, err), err


def with_ids(values: object) -> str:
    Path("bad.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))  # type: ignore[attr-defined]
    return "bad.jsonl"


def bad_vectors(change: Callable[[np.ndarray], Any]) -> str:
    x = X.copy()
    found = change(x)
    np.save("bad.npy", x if found is None else found)
    return "bad.npy"


def put(row: int, value: float) -> Callable[[np.ndarray], Any]:
    def change(x: np.ndarray) -> None:
        x[row, 2] = value

    return change


READY = ("--embeddings", "x.npy", "--ids", "ids.txt")
CASES: dict[str, tuple[Callable[[], list[object]], str]] = {
    "missing folder": (lambda: ["nowhere/"], "No such file or folder: 'nowhere/'"),
    "empty corpus": (lambda: [Path("empty").mkdir() or "empty", "--embeddings", "x.npy"], "empty holds no documents"),
    "embeddings as the source": (lambda: ["x.npy"], "x.npy holds no documents.*given by --embeddings"),
    "id over 64 KiB": (
        lambda: [with_ids({"id": "a" * n, "text": "t"} for n in (1, 2, 3, 4, 5, 65537)), "--embeddings", "x.npy"],
        r"bad.jsonl:6: an id must have 1 byte to 64 KiB. Got 65,537",
    ),
    "ready id over 64 KiB": (
        lambda: ["--embeddings", "x.npy", "--ids", with_ids({"id": "a" * n} for n in (1, 2, 3, 4, 5, 65537))],
        r"Row 5 of x.npy: an id must have 1 byte to 64 KiB",
    ),
    "NaN": (lambda: ["corpus.jsonl", "--embeddings", bad_vectors(put(4, np.nan))], "embedding of 'd4' holds NaN"),
    "infinity": (lambda: ["corpus.jsonl", "--embeddings", bad_vectors(put(0, -np.inf))], "embedding of 'd0' holds NaN"),
    "infinity in the sample": (
        lambda: ["corpus.jsonl", "--embeddings", bad_vectors(put(2, np.inf)), "--codec", "PCA4,FP8"],
        "embedding of 'd2' holds NaN",
    ),
    "integers": (lambda: ["corpus.jsonl", "--embeddings", bad_vectors(lambda x: x.astype(int))], "must hold float16"),
    "one dimension": (
        lambda: ["corpus.jsonl", "--embeddings", bad_vectors(lambda x: x[0])],
        r"must have shape \(n, dim",
    ),
    "fewer rows": (lambda: ["corpus.jsonl", "--embeddings", bad_vectors(lambda x: x[:3])], "more documents than the 3"),
    "more rows": (
        lambda: ["corpus.jsonl", "--embeddings", bad_vectors(lambda x: np.concatenate([x, x]))],
        "12 embeddings but only 6 documents",
    ),
    "fewer vectors than a codebook": (
        lambda: [*READY, "--codec", "PQ4x8"],
        "PQ4x8 needs at least 256 embeddings.*Got 6",
    ),
    "metadata that is not JSON": (
        lambda: [
            Path("bad.jsonl").write_text('{"id": "a", "text": "t", "n": NaN}\n') and "bad.jsonl",
            "--embeddings",
            "x.npy",
        ],
        "bad.jsonl:1: not valid JSON",
    ),
    "metadata that is no text": (
        lambda: [with_ids({"id": f"a{i}", "text": "t", "m": "\ud800"} for i in range(6)), "--embeddings", "x.npy"],
        "without lone surrogates",
    ),
    "unknown spec": (lambda: [*READY, "--codec", "FP9"], "FP9"),
    "impossible spec": (lambda: [*READY, "--codec", "PCA9,FP8"], "PCA9"),
    "no ids": (lambda: ["--embeddings", "x.npy"], "comes without ids"),
    "not an array": (lambda: ["--embeddings", "ids.txt", "--ids", "ids.txt"], "must be .npy, .parquet or .arrow"),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_bad_input_of_an_index(run: Run, old: Path, case: str) -> None:
    before, files = content(ragq.open(old)), on_disk(old)
    arguments, pattern = CASES[case]
    fails(run("index", *arguments(), "-o", old, "--json"), pattern)
    assert content(ragq.open(old)) == before
    assert ragq.open(old).verify() > 0
    assert {
        name for name in on_disk(old) if not name.startswith(("build/", "compressor-", "shards/0000000"))
    } | files >= files
    fresh = arguments() if case != "empty corpus" else ["empty", "--embeddings", "x.npy"]
    fails(run("index", *fresh, "-o", "new.ragq"), pattern)
    fails(run("search", "new.ragq", "question"), "There is no index at|is not finished")


def test_a_file_that_is_not_utf8_is_counted_or_fails(run: Run, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "good.txt").write_text("good")
    (tmp_path / "docs" / "bad.txt").write_bytes(b"caf\xe9 and more words")
    from tests.indexes import words_model

    index = ragq.build(tmp_path / "docs", tmp_path / "i", model=words_model)
    assert index.report is not None and index.report.skipped == {"not UTF-8": 1}
    with pytest.raises(ragq.InvalidArgumentError, match=r"bad\.txt: not UTF-8"):
        ragq.build(tmp_path / "docs", tmp_path / "j", model=words_model, strict=True)


def test_wrong_embeddings_for_an_index(run: Run, old: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.ones((6, 9), np.float32))
    before = content(ragq.open(old))
    fails(run("add", old, "corpus.jsonl", "--embeddings", "wide.npy"), "must have 8 dimensions. Got 9")
    fails(run("add", old, "corpus.jsonl", "--embeddings", bad_vectors(put(5, np.nan))), "embedding of 'd5' holds NaN")
    fails(run("search", old, "question"), "was made from ready embeddings; open it with the model")
    assert content(ragq.open(old)) == before
    assert on_disk(old) == expected_files(old)


@pytest.mark.parametrize("command", [["add", "corpus.jsonl", "--embeddings", "x.npy"], ["delete", "d0"], ["compact"]])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses(
    run: Run, old: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], number: int
) -> None:
    before = content(ragq.open(old))

    def refuse(self: HashingFile, data: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(HashingFile, "write", refuse)
        reason = {errno.ENOSPC: "the disk is full", errno.EROFS: "read-only", errno.EACCES: "permission denied"}[number]
        fails(run(command[0], old, *command[1:]), rf"Cannot write .*{reason}")
    assert content(ragq.open(old)) == before
    assert on_disk(old) == expected_files(old)


@pytest.mark.parametrize("call", ["fsync", "replace", "link", "open"])
def test_a_disk_that_fails_later(run: Run, old: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    original = getattr(os, call)
    for n in range(60):
        left = [n]

        def failing(*args: Any, left: list[int] = left, **kwargs: Any) -> Any:
            if call != "open" or ".tmp-" in str(args[0]):
                left[0] -= 1
                if left[0] == -1:
                    raise OSError(errno.ENOSPC, "no space")
            return original(*args, **kwargs)

        before = content(ragq.open(old))
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            result = run("add", old, "corpus.jsonl", "--embeddings", "x.npy")
        if left[0] >= 0:
            assert result[0] == 0
            break
        fails(result, "the disk is full")
        after = content(ragq.open(old))
        assert after == before or [row[0] for row in after] == [f"d{i}" for i in range(6)]
        assert ragq.open(old).verify() > 0
        assert not [name for name in on_disk(old) if ".tmp-" in name]
    else:
        pytest.fail("the command never came to its end")
    assert n > 0


def test_a_second_writer_is_told_who_writes(run: Run, old: Path) -> None:
    with WriterLock(old):
        for command in (["delete", old, "d0"], ["index", *READY, "-o", old]):
            fails(run(*command), rf"old.ragq is being written by process {os.getpid()} .* since \d+ s. Try again later")
    assert run("delete", old, "d0")[0] == 0


def files_of(folder: Path) -> list[str]:
    manifest = Manifest.load(folder / MANIFEST, (folder / MANIFEST).read_bytes())
    return [MANIFEST, *(file.name for file in manifest.files)]


def truncate(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) * 2 // 3])


def flip(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 0x55
    (folder / name).write_bytes(data)


def rename(folder: Path, name: str) -> None:
    (folder / name).rename(folder / f"{name}.bak")


def link(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder.parent / "outside")
    (folder / name).symlink_to(folder.parent / "outside")


def swap(folder: Path, name: str) -> None:
    kind = name.split(".")[-2]
    other = next((f for f in files_of(folder) if f != name and f.split(".")[-2] == kind), MANIFEST)
    one, two = (folder / name).read_bytes(), (folder / other).read_bytes()
    (folder / name).write_bytes(two)
    (folder / other).write_bytes(one)


@pytest.mark.parametrize("damage", [truncate, flip, rename, swap, link])
def test_a_damaged_file_is_named(run: Run, old: Path, tmp_path: Path, damage: Callable[[Path, str], None]) -> None:
    for number, name in enumerate(files_of(old)):
        folder = tmp_path / f"copy{number}.ragq"
        shutil.copytree(old, folder)
        if damage in (link, swap) and name == MANIFEST:
            continue
        damage(folder, name)
        (tmp_path / "outside").unlink(missing_ok=True) if damage is not link else None
        fails(run("verify", folder), re.escape(str(folder)))
        for command in (["delete", folder, "d0"], ["info", folder], ["compact", folder]):
            status, _, err = run(*command)  # these need not touch the damaged part
            assert status in (0, 1) and "Traceback" not in err
    assert stat.S_ISREG((old / MANIFEST).stat().st_mode)


def rewrite(folder: Path, change: Callable[[dict], Any]) -> None:
    """Change a manifest and give it a right checksum again, as somebody with intent would."""
    body = json.loads((folder / MANIFEST).read_bytes())
    body.pop("checksum")
    change(body)
    (folder / MANIFEST).write_text(json.dumps(body | {"checksum": checksum(body)}))


def test_a_newer_format_is_refused_with_the_way_out(run: Run, old: Path) -> None:
    rewrite(old, lambda body: body.update(format=3, something="new"))
    for command in (["verify", old], ["delete", old, "d0"], ["index", *READY, "-o", old]):
        fails(run(*command), "has format 3; this ragq reads 1 to 2. Update ragq")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "shards/../../outside", "shards/./x", "", ".", "a\0b"])
def test_a_manifest_cannot_name_files_outside(run: Run, old: Path, name: str) -> None:
    (old.parent / "outside").write_bytes(b"secret")
    for part in ("codes", "docs", "ids"):
        rewrite(old, lambda body, part=part: body["shards"][0][part].update(name=name))  # type: ignore[misc]
    fails(run("verify", old), "names a file outside of itself")
    rewrite(old, lambda body: body["compressor"].update(name=name))
    fails(run("verify", old), "names a file outside of itself")
    run("delete", old, "d0")
    assert (old.parent / "outside").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"spec": "NOPE"},
        {"spec": "FP8e5m2x"},
        {"layout": "rows:9x8+0"},
        {"layout": "rows"},
        {"dim": 9},
        {"dim": 0},
        {"dim": "8"},
        {"metric": "manhattan"},
        {"generation": -1},
        {"generation": 1 << 70},
        {"shards": {}},
        {"shards": [{}]},
        {"format": True},
        {"format": None},
        {"compressor": None},
        {"normalize": 1},
    ],
    ids=str,
)
def test_a_manifest_of_nonsense_is_corrupt(run: Run, old: Path, change: dict) -> None:
    rewrite(old, lambda body: body.update(change))
    fails(run("verify", old), "manifest.json|compressor-")


def test_wrong_filters(run: Run, old: Path) -> None:
    for where, pattern in [
        ('{"nope": 1}', "No document has the field 'nope'. Fields: id, n, source, text, title"),
        ('{"n": {"$near": 1}}', r"Unknown operator '\$near' for 'n'"),
        ('{"$xor": []}', r"Unknown operator '\$xor'"),
        ('{"n": {"$in": 1}}', r"takes a list"),
        ("[1]", "'where' must be a mapping"),
        ("{n: 1}", "--where must be JSON"),
    ]:
        fails(run("delete", old, "--where", where), pattern)
    assert len(ragq.open(old)) == 5


def test_no_index(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "folder", "file"):
        for command in ("info", "verify", "compact"):
            fails(run(command, name), "no index at|is not an index")
    fails(run("delete", "nowhere", "d0"), "Make one with: ragq index SOURCE")
    fails(run("info", "ftp://bucket/index"), "is a URL, and neither s3:// nor gs://")
