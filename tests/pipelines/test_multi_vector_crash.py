"""A writer of a multi-vector index may die or fail at any moment, as any other: see `test_crash`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ragq
from ragq.errors import InvalidArgumentError
from tests import crash_tokens
from tests.crash_server import ENDED, REFUSED
from tests.indexes import content, expected_files, on_disk
from tests.pipelines.test_crash import FAST, Server, changed, start

CHANGES = ["index", "add", "delete", "compact"]
State = tuple[int, list[tuple], list] | None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("tests.crash_tokens")
    yield server
    server.close()


def state(path: Path) -> State:
    """Return what a whole index holds and finds; None when there is none."""
    try:
        with ragq.open(path) as index:
            index.verify()
            queries = crash_tokens.vectors(3, 1)
            found = [index.search_embeddings(queries, 5, **how) for how in ({"exact": True}, {"candidates": 5})]
            return index.manifest.generation, content(index), [[f.ids.tolist(), f.scores.tolist()] for f in found]
    except InvalidArgumentError:
        return None


@pytest.fixture(scope="module")
def states(server: Server) -> Iterator[dict[str, tuple]]:
    """For each change: the folder before it, what it holds before and after, and how long the change takes."""
    with tempfile.TemporaryDirectory(dir=FAST) as root:
        found = changed(server, CHANGES, state, Path(root))
        assert all(old != new for _, old, new, _ in found.values())
        yield found


STRIDES = [("killed before", 29), pytest.param("killed before", 7, marks=pytest.mark.slow)]
STRIDES += [pytest.param(how, 23, marks=pytest.mark.slow) for how in ("killed after", "EIO", "ENOSPC")]


@pytest.mark.parametrize(("how", "stride"), STRIDES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_failure_at_any_change_of_the_disk_leaves_the_old_or_the_new_generation(
    change: str, how: str, stride: int, server: Server, states: dict
) -> None:
    before, old, new, _ = states[change]
    seen = []
    for n in range(1, 1000, stride):
        with tempfile.TemporaryDirectory(dir=FAST) as root:
            path = start(change, before, Path(root) / "index")
            status = server(change, path, at=n, how=how)["status"]
            found = state(path)
            assert found in (old, new) and status in (0, ENDED, REFUSED, -9)
            assert status not in (0, ENDED) or found == new, "what was acknowledged is not there"
            if found is None:
                crash_tokens.index(path)
                assert (state(path) or ())[1:] == states["index"][2][1:]
            with ragq.open(path, mode="w") as index:
                names = [d.id for d in index]
                index.add([{"id": "after", "text": "the crash"}], embeddings=crash_tokens.vectors(1, 3))
                assert [d.id for d in index] == [*names, "after"]
            assert on_disk(path) - {"build/progress.json"} == expected_files(path)
            seen.append("new" if found == new else "old")
            if status == ENDED:
                break
    assert status == ENDED, "the change never came to its end"
    if how.startswith("killed"):  # an error in what is only tidying stops no change
        assert seen == sorted(seen, reverse=True), "the new generation was there, and then the old one again"
    assert {"old", "new"} == set(seen)
