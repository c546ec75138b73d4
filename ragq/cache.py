"""The local cache of an object store: files by their checksum, within a size bound.

``$RAGQ_CACHE`` (``$XDG_CACHE_HOME/ragq`` or ``~/.cache/ragq`` without it) holds

``files/<xxh3-128>-<bytes>``
    Files of indexes, whole and checked. Those that were used least recently go when all of them together have more than
    ``$RAGQ_CACHE_BYTES`` (16 GiB). A file that a process has mapped stays readable to it.
``indexes/<name>-<hash>/``
    One folder an index and its URL: the writer's lock, and what a writer has not sent yet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.manifest import FileEntry
from ragq.storage import HashingFile, durable_write, storage_errors

__all__ = ["cache_folder", "cached", "fetch", "keep_file"]

CACHE_BYTES = 16 << 30


def cache_folder() -> Path:
    """Return where the cache is."""
    chosen = os.environ.get("RAGQ_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ragq"


def cache_bytes() -> int:
    """Return how many bytes the files of the cache may have."""
    text = os.environ.get("RAGQ_CACHE_BYTES") or str(CACHE_BYTES)
    if not text.isdecimal():
        raise InvalidArgumentError(f"RAGQ_CACHE_BYTES must be a number of bytes. Got {text!r}.")
    return int(text)


def place(file: FileEntry) -> Path:
    """Return where the cache keeps a file."""
    return cache_folder() / "files" / f"{file.xxh3}-{file.size}"


def cached(file: FileEntry) -> Path | None:
    """Return the path of a file that is in the cache, and mark it as used; None when it is not there."""
    path = place(file)
    try:
        if path.stat().st_size == file.size:
            os.utime(path)
            return path
    except FileNotFoundError:
        pass
    return None


def fetch(file: FileEntry, source: str, download: Callable[[HashingFile], None]) -> Path:
    """Bring a file into the cache.

    Parameters
    ----------
    file : FileEntry
    source : str
        Where it comes from, for messages.
    download : callable
        ``download(sink)`` writes it, or raises `CorruptIndexError` when there is none.

    Raises
    ------
    CorruptIndexError
        What came has another size or checksum, or there is none.
    """
    path = place(file)
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with durable_write(path) as sink:
        download(sink)
        if sink.size != file.size or sink.digest != file.xxh3:
            raise CorruptIndexError(f"{source} was altered: its size or checksum is not the manifest's.")
    shrink(path)
    return path


def keep_file(path: Path, file: FileEntry) -> None:
    """Move a file that the store has, too, into the cache."""
    kept = place(file)
    with storage_errors(kept, "write"):
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.replace(kept)
    shrink(kept)


def shrink(newest: Path) -> None:
    """Remove the files that were used least recently, until the rest is within the bound; `newest` stays."""
    files = []
    with os.scandir(newest.parent) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                stat = entry.stat()
                files.append((stat.st_mtime, stat.st_size, entry.path))
    excess = sum(size for _, size, _ in files) - cache_bytes()
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        if path != str(newest):
            Path(path).unlink(missing_ok=True)
            excess -= size
