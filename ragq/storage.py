"""Durable writes, checksums, the writer's lock and the readers' leases: everything that touches the file system.

Guarantees
----------
* A file written with `durable_write` is either absent (or its old self) or whole, also after a power cut.
* Only one process holds a `WriterLock`; the kernel frees it when its owner dies.
* A reader's `lease` on a manifest outlives any commit; the writer deletes no file that a leased manifest names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import secrets
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import filelock
import xxhash

from ragq.errors import CorruptIndexError, IndexLockedError, StorageError

__all__ = [
    "TEMPORARY",
    "HashingFile",
    "WriterLock",
    "durable_write",
    "file_digest",
    "fsync_folder",
    "inside",
    "is_leased",
    "lease",
    "storage_errors",
    "write_bytes",
]

TEMPORARY = ".tmp-"
CHUNK = 1 << 20


@contextlib.contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` that names the path and the way out."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full; free some space",
            errno.EDQUOT: "the disk quota is used up; free some space",
            errno.EROFS: "the file system is read-only; choose another place",
            errno.EACCES: "permission denied; choose another place or change its rights",
            errno.EPERM: "permission denied; choose another place or change its rights",
            errno.EMFILE: "too many open files; raise the limit with 'ulimit -n'",
        }.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"Cannot {doing} {path}: {reason}.") from error


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class HashingFile(io.RawIOBase):
    """A write-only binary file that counts and hashes (xxh3-128) what goes through it."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._hash = xxhash.xxh3_128()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        view = memoryview(data).cast("B")
        self._raw.write(view)
        self._hash.update(view)
        self.size += len(view)
        return len(view)

    def tell(self) -> int:
        return self.size

    @property
    def digest(self) -> str:
        """Checksum of what was written so far, 32 hex digits."""
        return self._hash.hexdigest()


@contextlib.contextmanager
def durable_write(path: Path) -> Iterator[HashingFile]:
    """Open a file that appears under `path` only when it is whole and on the disk.

    Writes to a temporary file in the same folder, then fsync, rename, fsync of the folder. The mode follows the umask.
    On any error the temporary file is removed and `path` is as it was.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with storage_errors(path, "write"):
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb", buffering=CHUNK) as raw:  # noqa: PTH123
                yield HashingFile(raw)
                raw.flush()
                os.fsync(raw.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file durably."""
    with durable_write(path) as file:
        file.write(data)


def file_digest(path: Path) -> str:
    """Return the xxh3-128 of a file, 32 hex digits."""
    digest = xxhash.xxh3_128()
    with storage_errors(path, "read"), path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def inside(folder: Path, name: str) -> Path:
    """Return `folder / name`, refusing names that lead out of the folder, links included."""
    path, parts = folder / name, name.split("/")
    if "\x00" in name or not {"", ".", ".."}.isdisjoint(parts):
        raise CorruptIndexError(f"{folder} names a file outside of itself: {name!r}.")
    try:
        linked = any(is_link(f"{folder}/{'/'.join(parts[:end])}") for end in range(1, len(parts)))
        leads_away = is_link(path) or (linked and not path.parent.resolve().is_relative_to(folder.resolve()))
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, or links in a circle
        raise CorruptIndexError(f"{folder} names a file that cannot be: {name[:100]!r}.") from None
    if leads_away:
        raise CorruptIndexError(f"{path} is a link; an index holds only files of its own.")
    return path


def is_link(path: str | Path) -> bool:
    """Tell whether a path is a link; unlike `Path.is_symlink`, raise on names that no file can have."""
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


class WriterLock:
    """The right to write to an index; held by one process (and one object in it) at a time.

    Parameters
    ----------
    folder : Path
        The index folder; it must exist.
    timeout : float
        Seconds to wait for another writer.
    name : str, optional
        What messages call the folder.

    Raises
    ------
    IndexLockedError
        Another writer holds it: names its process, host and age.
    """

    def __init__(self, folder: Path, timeout: float = 0, name: str | None = None) -> None:
        self._owner = folder / "write.owner"
        self._lock = filelock.FileLock(folder / "write.lock")
        with storage_errors(folder, "write to"):
            try:
                self._lock.acquire(timeout=timeout)
            except filelock.Timeout:
                raise IndexLockedError(
                    f"{name or folder} is being written by {self._describe_owner()}. Try again later."
                ) from None
            command = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.time()}
            try:
                self._owner.write_text(json.dumps(owner))
            except BaseException:
                self._lock.release()
                raise

    def _describe_owner(self) -> str:
        try:
            owner = json.loads(self._owner.read_text())
            age = max(0, round(time.time() - owner["since"]))
            return f"process {owner['pid']} ({owner['command']}) on {owner['host']} since {age} s"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    @property
    def held(self) -> bool:
        """Whether this object still has the right."""
        return self._lock.is_locked

    def release(self) -> None:
        """Give the right back; harmless when called twice."""
        if self.held:
            with contextlib.suppress(OSError):
                self._owner.unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lease(path: Path) -> BinaryIO:
    """Open a file and hold a shared lock on it until it is closed.

    The file that is opened is the one that `path` names at the moment the lock is held, so that a writer that replaces
    it later sees the lock on the old one.
    """
    while True:
        file = path.open("rb")
        try:
            with contextlib.suppress(OSError):  # a file system without locks: the reader goes unprotected
                fcntl.flock(file, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # replaced between the two calls: look again
        except BaseException:
            file.close()
            raise
        file.close()


def is_leased(path: Path) -> bool:
    """Tell whether some reader holds a `lease` on this very file; nobody can on a file system without locks."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        return False
