"""Runs changes of an index in forked children that die or fail on purpose; used by `test_crash`, without torch.

Reads one JSON object a line from stdin, answers with one on stdout:

``{"operation", "path", "kill_after"}``
    Kills the child with SIGKILL after so many seconds.
``{"operation", "path", "at", "how"}``
    Something happens at the child's n-th call that changes the disk; see `HOW`.
``{"operation", "path", "environment", "pid_file"}``
    Tells who the child is before it begins, so that somebody else can kill it.

The answer's ``status`` is 0 when the change was acknowledged, 4 when it was and had no n-th call, 3 when it was refused
by an error of ragq's own, -9 after a kill, and 1 after any other error.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import ragq
from ragq.storage import HashingFile

CALLS = ("fsync", "replace", "link", "unlink", "rmdir", "mkdir", "open")
HOW = {
    "killed before": "kill -9 in place of the call; a write gets half of its bytes out",
    "killed after": "kill -9 right after the call",
    "EIO": "the call fails, a write after half of its bytes",
    "ENOSPC": "the same, with a full disk",
    "EIO from there on": "so do all calls after it",
}
REFUSED, ENDED = 3, 4
DIM = 4


def vectors(n: int, first: int = 0) -> np.ndarray:
    """Return one vector a document, told apart by its number."""
    return np.array([[i, 1, i % 3, -1] for i in range(first, first + n)], np.float32)


def ids(n: int, first: int = 0) -> list[str]:
    """Return the ids `first` to `first + n`."""
    return [f"d{i}" for i in range(first, first + n)]


def index(path: Path | str) -> None:
    """Build 12 documents in three shards, fitted."""
    ragq.build(None, path, embeddings=vectors(12), ids=ids(12), codec="FP8", shard_rows=4).close()


def resume(path: Path | str) -> None:
    """Go on with `index`."""
    ragq.build(None, path, embeddings=vectors(12), ids=ids(12), codec="FP8", shard_rows=4, resume=True).close()


def add(path: Path | str) -> None:
    """Add two documents and replace one."""
    with ragq.open(path, mode="w") as opened:
        opened.add([{"id": f"d{i}", "text": f"new {i}"} for i in (3, 20, 21)], embeddings=vectors(3, 20))


def delete(path: Path | str) -> None:
    """Delete documents of several shards."""
    with ragq.open(path, mode="w") as opened:
        opened.delete(["d0", "d1", "d30"])


def compact(path: Path | str) -> None:
    """Merge the shards."""
    with ragq.open(path, mode="w") as opened:
        opened.compact()


def structure(path: Path | str) -> None:
    """Build lists over the rows."""
    with ragq.open(path, mode="w") as opened:
        opened.restructure("ivf")


def prepare(path: Path | str) -> None:
    """Make the index that the changes start from: four shards, one with deletes."""
    with ragq.build(None, path, embeddings=vectors(8, 30), ids=ids(8, 30), codec="FP8", shard_rows=4) as opened:
        opened.add([{"id": name, "text": "t"} for name in ("d0", "d1", "d3", "d31")], embeddings=vectors(4, 0))


OPERATIONS: dict[str, Callable[[Path | str], None]] = {
    f.__name__: f for f in (index, resume, add, delete, compact, structure, prepare)
}


def fail_at(n: int, how: str) -> Callable[[], bool]:
    """Let something happen at this process's n-th call that changes the disk; return what tells whether it came."""
    left = n

    def count() -> bool:
        nonlocal left
        left -= 1
        return left == 0 or (left < 0 and how == "EIO from there on")

    def fail() -> NoReturn:
        if how.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC if how == "ENOSPC" else errno.EIO, "on purpose")

    def patched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            hit = (original is not os_open or (args[1] & os.O_CREAT and ".tmp-" in str(args[0]))) and count()
            if hit and how != "killed after":
                fail()
            try:
                return original(*args, **kwargs)
            finally:
                if hit:
                    fail()

        return call

    os_open, write = os.open, HashingFile.write
    for name in CALLS:
        setattr(os, name, patched(getattr(os, name)))

    def torn(self: HashingFile, data: Any) -> int:
        if count():
            view = memoryview(data).cast("B")
            write(self, view if how == "killed after" else view[: len(view) // 2])
            self._raw.flush()
            fail()
        return write(self, data)

    HashingFile.write = torn  # type: ignore[method-assign]
    return lambda: left <= 0


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Do one request in a child."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.environ.update(request.get("environment", {}))
            if "pid_file" in request:
                Path(request["pid_file"]).write_text(str(os.getpid()))
            came = fail_at(request["at"], request["how"]) if "at" in request else lambda: True
            OPERATIONS[request["operation"]](request["path"])
            status = 0 if came() else ENDED
        except ragq.RagqError:
            status = REFUSED
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


def serve() -> None:
    """Answer a request a line, until there are no more."""
    with tempfile.TemporaryDirectory() as folder:  # what is imported on the way is imported once, before the forks
        for change in ("prepare", "add", "delete", "compact", "index"):
            OPERATIONS[change](Path(folder) / "index")
    assert "torch" not in sys.modules
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    import boto3  # noqa: F401
    import pyarrow.fs  # noqa: F401 - imported, but not used: its threads would not survive a fork

    serve()
