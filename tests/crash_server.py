"""Runs changes of an index in forked children that die on purpose; used by `test_crash`, without torch.

Reads one JSON object a line from stdin, answers with one on stdout:

``{"operation", "path", "kill_after"}``
    Kills the child with SIGKILL after so many seconds.
``{"operation", "path", "stop_at"}``
    The child dies (`os._exit`) in place of its n-th call that changes the disk; a write gets half of its bytes out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ragq
from ragq.storage import HashingFile

CALLS = ("fsync", "replace", "link", "unlink", "rmdir", "mkdir", "open")
DIM = 4


def vectors(n: int, first: int = 0) -> np.ndarray:
    """Return one vector a document, told apart by its number."""
    return np.array([[i, 1, i % 3, -1] for i in range(first, first + n)], np.float32)


def ids(n: int, first: int = 0) -> list[str]:
    """Return the ids `first` to `first + n`."""
    return [f"d{i}" for i in range(first, first + n)]


def index(path: Path) -> None:
    """Build 12 documents in three shards, fitted."""
    ragq.build(None, path, embeddings=vectors(12), ids=ids(12), codec="FP8", shard_rows=4).close()


def resume(path: Path) -> None:
    """Go on with `index`."""
    ragq.build(None, path, embeddings=vectors(12), ids=ids(12), codec="FP8", shard_rows=4, resume=True).close()


def add(path: Path) -> None:
    """Add two documents and replace one."""
    with ragq.open(path, mode="w") as opened:
        opened.add([{"id": f"d{i}", "text": f"new {i}"} for i in (3, 20, 21)], embeddings=vectors(3, 20))


def delete(path: Path) -> None:
    """Delete documents of several shards."""
    with ragq.open(path, mode="w") as opened:
        opened.delete(["d0", "d1", "d30"])


def compact(path: Path) -> None:
    """Merge the shards."""
    with ragq.open(path, mode="w") as opened:
        opened.compact()


def structure(path: Path) -> None:
    """Build lists over the rows."""
    with ragq.open(path, mode="w") as opened:
        opened.restructure("ivf")


def prepare(path: Path) -> None:
    """Make the index that the changes start from: four shards, one with deletes."""
    with ragq.build(None, path, embeddings=vectors(8, 30), ids=ids(8, 30), codec="FP8", shard_rows=4) as opened:
        opened.add([{"id": name, "text": "t"} for name in ("d0", "d1", "d3", "d31")], embeddings=vectors(4, 0))


OPERATIONS: dict[str, Callable[[Path], None]] = {
    f.__name__: f for f in (index, resume, add, delete, compact, structure, prepare)
}


def die_at(n: int) -> None:
    """Let this process end in place of its n-th call that changes the disk."""
    left = n

    def count() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def patched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if (original is not os_open or (args[1] & os.O_CREAT and ".tmp-" in str(args[0]))) and count():
                os._exit(9)
            return original(*args, **kwargs)

        return call

    os_open, write = os.open, HashingFile.write
    for name in CALLS:
        setattr(os, name, patched(getattr(os, name)))

    def torn(self: HashingFile, data: Any) -> int:
        if count():
            view = memoryview(data).cast("B")
            write(self, view[: len(view) // 2])
            self._raw.flush()
            os._exit(9)
        return write(self, data)

    HashingFile.write = torn  # type: ignore[method-assign]


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Do one request in a child."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if "stop_at" in request:
                die_at(request["stop_at"])
            OPERATIONS[request["operation"]](Path(request["path"]))
            status = 0
        finally:
            os._exit(status)
    started = time.perf_counter()
    kill_after = request.get("kill_after")
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        seconds = time.perf_counter() - started
        if done:
            break
        if kill_after is not None and seconds >= kill_after:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.0003)
    return {"status": os.waitstatus_to_exitcode(status), "seconds": seconds}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:  # what is imported on the way is imported once, before the forks
        for change in ("prepare", "add", "delete", "compact", "index"):
            OPERATIONS[change](Path(folder) / "index")
    assert "torch" not in sys.modules
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
