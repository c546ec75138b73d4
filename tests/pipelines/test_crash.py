"""A writer may die or fail at any moment: the index is then at the old or the new generation, whole, and writable.

With ``RAGQ_CRASHES=FILE`` every point of every change is tried, or every n-th with ``RAGQ_CRASHES_STRIDE=n``, and noted
in the file; an interrupted run goes on.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import ragq
from ragq.errors import InvalidArgumentError
from tests import crash_server
from tests.crash_server import ENDED, HOW, REFUSED
from tests.indexes import content, expected_files, on_disk
from tests.object_store import BUCKET, ObjectStore

CHANGES = ["index", "reindex", "add", "delete", "compact", "structure"]
REQUESTS = ["killed before", "killed after", "refused", "lost", "outage"]  # see `ObjectStore.fail`
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
EVERY = os.environ.get("RAGQ_CRASHES")
EVERY_STRIDE = int(os.environ.get("RAGQ_CRASHES_STRIDE", "1"))

State = tuple[int, list[tuple]] | None  # generation and documents of an index; None when there is none


class Server:
    """A process that forks for every change, so that each costs no start of Python."""

    def __init__(self, module: str = "tests.crash_server") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def __call__(self, change: str, path: Path | str, **how: object) -> dict:
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
        yield changed(server, CHANGES, state, Path(root))


def changed(server: Server, changes: Sequence[str], state: Callable[[Path], Any], root: Path) -> dict[str, tuple]:
    """Make every change once: the folder before it, what it holds before and after, and the seconds it took."""
    before = root / "before"
    assert server("prepare", before)["status"] == 0
    found = {}
    for change in changes:
        after = start(change, before, root / change)
        old = state(after)
        done = server(change, after)
        assert done["status"] == 0
        found[change] = (before, old, state(after), done["seconds"])
        assert on_disk(after) == expected_files(after)
    return found


def state(path: Path | str) -> State:
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


def check_after(change: str, path: Path | str, old: State, new: State, status: int) -> str:
    """Check what a crash left and that a new writer works; return which generation there was."""
    found = state(path)
    assert found in (old, new)
    assert status in (0, ENDED, REFUSED, -9)
    assert status not in (0, ENDED) or found == new, "what was acknowledged is not there"
    if found is None or change == "reindex":
        crash_server.index(path)
        assert new is not None
        assert (state(path) or (0, []))[1] == new[1]
    with ragq.open(path, mode="w") as index:
        names = [d.id for d in index]
        index.add([{"id": "after", "text": "the crash"}], embeddings=crash_server.vectors(1))
        assert [d.id for d in index] == [*names, "after"]
    if isinstance(path, Path):
        assert on_disk(path) - {"build/progress.json"} == expected_files(path)
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
            status = server(change, path, kill_after=rng.uniform(0, seconds * 1.1))["status"]
            killed += status == -9
            seconds *= 1 if status == -9 else 0.7  # it ended first: it is quicker than when it was timed
            check_after(change, path, old, new, status)
    assert killed > 0


class Points:
    """The points of a change, in order, with what was found at each: every `stride`-th, or all of them."""

    def __init__(self, name: str, stride: int) -> None:
        self.name, self.stride = name, EVERY_STRIDE if EVERY else stride
        self.seen: list[str] = []
        self._noted = {}
        if EVERY and Path(EVERY).exists():
            lines = [line.split("\t") for line in Path(EVERY).read_text().splitlines()]
            self._noted = {int(point): found for known, point, found in lines if known == name}

    def __iter__(self) -> Iterator[int]:
        for n in range(1, 1000, self.stride):
            if n not in self._noted:
                yield n
                if self._ended:
                    return
            else:
                self.seen.append(self._noted[n])
                if self._noted[n] == "ended":
                    return
        pytest.fail("the change never came to its end")

    def note(self, n: int, found: str, ended: bool) -> None:
        """Keep what was found at a point; `ended` when the change came to its end before it."""
        self._ended = ended
        self.seen.append("ended" if ended else found)
        if EVERY:
            with Path(EVERY).open("a") as file:
                file.write(f"{self.name}\t{n}\t{self.seen[-1]}\n")

    def check(self, least: int, how: str) -> None:
        """Check that kills found the old generation up to some point and the new one after it, and count the points.

        After an error that does not matter, as when something is cleaned up, the change goes on to its end.
        """
        *seen, ended = self.seen
        assert ended == "ended"
        if how.startswith("killed"):
            assert seen == sorted(seen, reverse=True), "the new generation was there, and then the old one again"
        assert "old" in seen
        assert self.stride > 1 or (len(seen) >= least and "new" in seen)


STRIDES = [pytest.param("killed before", 12)]
STRIDES += [
    pytest.param(how, stride, marks=pytest.mark.slow) for how, stride in zip(HOW, (2, 5, 5, 11, 11), strict=True)
]


@pytest.mark.parametrize(("how", "stride"), STRIDES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_failure_at_any_change_of_the_disk_leaves_the_old_or_the_new_generation(
    change: str, how: str, stride: int, server: Server, states: dict
) -> None:
    before, old, new, _ = states[change]
    points = Points(f"disk, {change}, {how}", stride)
    for n in points:
        with tempfile.TemporaryDirectory(dir=FAST) as root:
            path = start(change, before, Path(root) / "index")
            status = server(change, path, at=n, how=how)["status"]
            found = check_after(change, path, old, new, status)
        points.note(n, found, status == ENDED)
    points.check(30, how)


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    store = ObjectStore()
    store.client().create_bucket(Bucket=BUCKET)
    yield store
    store.close()


def copy_up(store: ObjectStore, folder: Path, prefix: str) -> None:
    """Put the files of an index into the store."""
    client = store.client()
    for name in on_disk(folder):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=(folder / name).read_bytes())


REMOTE = [pytest.param("add", "killed after", 9)]
REMOTE += [
    pytest.param(change, how, 7, marks=pytest.mark.slow, id=f"{change}-{how}-slow")
    for i, change in enumerate(CHANGES)
    for j, how in enumerate(REQUESTS)
    if EVERY or (i + j) % 4 == 0  # each change, and each way
]


@pytest.mark.parametrize(("change", "how", "stride"), REMOTE)
def test_a_failure_at_any_request_leaves_the_old_or_the_new_generation(
    change: str,
    how: str,
    stride: int,
    server: Server,
    states: dict,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, old, new, _ = states[change]
    points = Points(f"store, {change}, {how}", stride)
    for n in points:
        with tempfile.TemporaryDirectory(dir=FAST) as root:
            name = f"{change}-{how.replace(' ', '-')}-{n}"
            if change != "index":
                copy_up(store, before, name)
            for variable, value in (store.environment | {"RAGQ_CACHE": f"{root}/crashed"}).items():
                monkeypatch.setenv(variable, value)
            pid_file = Path(root) / "pid"
            store.fail(n, how, pid_file)
            environment = store.environment | {"RAGQ_CACHE": f"{root}/crashed"}
            url = f"s3://{BUCKET}/{name}"
            status = server(change, url, environment=environment, pid_file=str(pid_file))["status"]
            ended = store.requests < n
            store.fail(0, "none")
            found = check_after(change, url, old, new, status)
            monkeypatch.setenv("RAGQ_CACHE", f"{root}/elsewhere")
            assert len((state(url) or (0, []))[1]) > 0
        points.note(n, found, ended)
    points.check(5, how)
