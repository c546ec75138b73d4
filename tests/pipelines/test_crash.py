"""A writer may die at any moment: the index is then at the old or the new generation, whole, and can be written to."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ragq
from ragq.errors import InvalidArgumentError
from tests import crash_server
from tests.indexes import content, expected_files, on_disk

CHANGES = ["index", "reindex", "add", "delete", "compact", "structure"]
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None

State = tuple[int, list[tuple]] | None  # generation and documents of an index; None when there is none


class Server:
    """A process that forks for every change, so that each costs no start of Python."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def __call__(self, change: str, path: Path, **how: float) -> dict:
        assert self._process.stdin and self._process.stdout
        operation = "index" if change == "reindex" else change
        self._process.stdin.write(json.dumps({"operation": operation, "path": str(path), **how}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def states(server: Server) -> Iterator[dict[str, tuple[Path, State, State, float]]]:
    """For each change: the folder before it, what it holds before and after, and how long the change takes."""
    with tempfile.TemporaryDirectory(dir=FAST) as root:
        before = Path(root) / "before"
        assert server("prepare", before)["status"] == 0
        found = {}
        for change in CHANGES:
            after = Path(root) / change
            if change != "index":
                shutil.copytree(before, after)
            old = state(after)
            seconds = server(change, after)
            assert seconds["status"] == 0
            found[change] = (before, old, state(after), seconds["seconds"])
            assert on_disk(after) == expected_files(after)
        yield found


def state(path: Path) -> State:
    """Return what the index at `path` holds, after checking that it is whole."""
    try:
        with ragq.open(path) as index:
            index.verify()
            assert len(index) == len(content(index)) == index.manifest.documents
            names = [d.id for d in index]
            assert [d.id for d in index.get(names)] == names
            return index.manifest.generation, content(index)
    except InvalidArgumentError:  # there is none, or it is not finished
        return None


def start(change: str, before: Path, path: Path) -> Path:
    if change != "index":
        shutil.copytree(before, path)
    return path


def check_after(change: str, path: Path, old: State, new: State) -> str:
    """Check what a crash left and that a new writer works; return which generation there was."""
    found = state(path)
    assert found in (old, new)
    if found is None or change == "reindex":
        crash_server.index(path)
        assert new is not None
        assert (state(path) or (0, []))[1] == new[1]
    with ragq.open(path, mode="w") as index:
        names = [d.id for d in index]
        index.add([{"id": "after", "text": "the crash"}], embeddings=crash_server.vectors(1))
        assert [d.id for d in index] == [*names, "after"]
    allowed = expected_files(path)
    assert on_disk(path) - {"build/progress.json"} == allowed
    return "new" if found == new else "old"


@pytest.mark.parametrize("moments", [8, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_generation(
    change: str, moments: int, server: Server, states: dict
) -> None:
    before, old, new, seconds = states[change]
    rng = random.Random(change)
    killed = 0
    for _ in range(moments):
        with tempfile.TemporaryDirectory(dir=FAST) as root:
            path = start(change, before, Path(root) / "index")
            killed += server(change, path, kill_after=rng.uniform(0, seconds * 1.1))["status"] == -9
            check_after(change, path, old, new)
    assert killed > 0


@pytest.mark.parametrize("stride", [12, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
def test_an_end_between_any_two_changes_of_the_disk_leaves_the_old_or_the_new_generation(
    change: str, stride: int, server: Server, states: dict
) -> None:
    before, old, new, _ = states[change]
    seen = []
    for n in range(1, 1000, stride):
        with tempfile.TemporaryDirectory(dir=FAST) as root:
            path = start(change, before, Path(root) / "index")
            status = server(change, path, stop_at=n)["status"]
            seen.append(check_after(change, path, old, new))
        if status == 0:
            break
    assert status == 0, "the change never came to its end"
    assert seen == sorted(seen, reverse=True), "the new generation was there, and then the old one again"
    assert {"old", "new"} == set(seen)
    assert stride > 1 or len(seen) > 30
