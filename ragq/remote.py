"""An index in an object store: the same files under the same names, and a manifest that is replaced conditionally.

Reading
    A snapshot reads the manifest; other files come into the local cache (`ragq.cache`) when they are first needed, and
    are compared with their checksums on the way.
Writing
    A transaction writes its files into a local folder and sends them; their names hold a random mark, so that two
    writers never write the same object. The commit is one conditional put of ``manifest.json``: it succeeds only when
    the manifest is still the version that the transaction started from (``If-Match``; ``If-None-Match: *`` for a new
    index; a generation precondition on ``gs://``). Of two writers one wins, and the other gets a `CommitConflictError`.
Removing
    Right after a commit its writer removes objects that no manifest names, once they are older than `GRACE`; so
    readers elsewhere, who can hold no lease, have that long to finish. Before its commit a writer leaves a note in
    ``retired/`` of what it takes out, from whose time on that counts. Files that another writer is sending are younger
    than the commit that its own started from, so they stay.

Everything here does nothing for a local folder, so that callers need not ask.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ragq.cache import cache_folder, cached, fetch, keep_file, place
from ragq.errors import CommitConflictError, CorruptIndexError, InvalidArgumentError, RagqError, StorageError
from ragq.manifest import MANIFEST, MAXIMUM_BYTES, FileEntry, Manifest
from ragq.storage import inside, lease, storage_errors, write_bytes
from ragq.stores import ChangedError, Store, is_url, open_store, store_errors

__all__ = [
    "Sender",
    "address",
    "discard_scratch",
    "forget",
    "locate",
    "measure",
    "open_data",
    "open_manifest",
    "prefetch",
    "present",
    "reference",
    "send_files",
    "send_scratch",
    "sender",
]

GRACE = 24 * 3600.0  # seconds that files stay after no manifest names them any more
PROMPT = 3600.0  # seconds after a commit within which what is too old is still told safely
THREADS = 8
RETRIES = 3
RETIRED = "retired"
OWN_OBJECTS = re.compile(r"(shards|deletes|structures|build|retired)/.*|compressor-.*|write\.(lock|owner)|\.tmp-.*")

_stores: dict[Path, Store] = {}  # of every local folder that stands for an index in a store


def locate(path: str | os.PathLike[str]) -> Path:
    """Return the local folder of an index: the path itself, or one in the cache that stands for a URL."""
    if not is_url(path):
        return Path(path)
    store = open_store(path)
    name = re.sub(r"[^\w.-]+", "-", store.prefix.rpartition("/")[2])
    folder = cache_folder() / "indexes" / f"{name}-{xxhash.xxh3_128_hexdigest(store.reference.encode())}"
    with storage_errors(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
    _stores.setdefault(folder, store)
    return folder


def address(folder: Path) -> str:
    """Return the path or URL that `locate` was given, without options; for messages."""
    store = _stores.get(folder)
    return str(folder) if store is None else store.url


def reference(folder: Path) -> str | Path:
    """Return what `locate` takes, in another process too, to give this folder again."""
    store = _stores.get(folder)
    return folder if store is None else store.reference


def open_manifest(folder: Path, name: str = MANIFEST) -> BinaryIO:
    """Open the newest manifest: a local one under a lease; raises `FileNotFoundError` when there is none.

    A local folder can have older ones, too, under the `name` that they were retired to.
    """
    store = _stores.get(folder)
    if store is None:
        return lease(folder / name)
    if name != MANIFEST:
        raise FileNotFoundError(name)
    path = Path(f"{store.url}/{MANIFEST}")
    for attempt in range(RETRIES):
        data = store.read(MANIFEST)
        if data is None:
            break
        try:
            Manifest.load(path, data)
        except CorruptIndexError:  # perhaps replaced between the requests that it was read by
            if attempt == RETRIES - 1:
                raise
        else:
            return io.BytesIO(data)
    raise FileNotFoundError(MANIFEST)


def present(folder: Path, file: FileEntry) -> Path:
    """Return the local path of a file of an index, after fetching it from the store when it is not there."""
    path = inside(folder, file.name)
    store = _stores.get(folder)
    if store is None or path.exists():
        return path
    return cached(file) or fetch(file, f"{store.url}/{file.name}", lambda sink: store.download(file.name, sink))


def prefetch(folder: Path, files: Iterable[FileEntry]) -> None:
    """Bring files of an index into the cache, several at a time; does nothing for a local folder."""
    if folder in _stores:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda file: present(folder, file), files))


def forget(folder: Path, files: Iterable[FileEntry]) -> None:
    """Let the cache drop what it has of an index, so that the next look is at the store."""
    if folder in _stores:
        for file in files:
            place(file).unlink(missing_ok=True)


def measure(folder: Path, names: list[str]) -> int:
    """Return the bytes of files of an index, as they are on the disk or in the store."""
    store = _stores.get(folder)
    if store is None:
        with storage_errors(folder, "measure the files of"):
            return sum(inside(folder, name).stat().st_size for name in names)
    return sum(size or 0 for size in store.sizes(names).values())


def open_data(folder: Path, name: str) -> Any:
    """Open a scratch file of a build as an Arrow file: mapped, or read by ranges from the store."""
    import pyarrow as pa

    store = _stores.get(folder)
    if store is None or (folder / name).exists():
        return pa.memory_map(str(folder / name))
    with store_errors(f"{store.url}/{name}", "read"):
        return store.fs.open_input_file(store.path(name))


def send_files(folder: Path, files: Iterable[FileEntry]) -> None:
    """Copy finished files of an index into its store, and let the cache take them; does nothing for a local folder."""
    store, here = _stores.get(folder), list(files)
    if store is None:
        return
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda file: store.upload(folder / file.name, file.name), here))
    for file in here:
        keep_file(folder / file.name, file)


def send_scratch(folder: Path, name: str) -> None:
    """Move a scratch file of a build into the store, for others to read; does nothing for a local folder."""
    store = _stores.get(folder)
    if store is not None:
        store.upload(folder / name, name)
        (folder / name).unlink()


def discard_scratch(folder: Path, names: Iterable[str]) -> None:
    """Remove scratch files from the store; does nothing for a local folder."""
    store = _stores.get(folder)
    if store is not None:
        store.delete(names)


class Sender:
    """The store's side of one transaction.

    Attributes
    ----------
    mark : str
        What the names of this writer's files hold, so that no other writer's are the same.
    manifest : Manifest or None
        What the store holds; changes are made to this, and to nothing newer.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder, store
        self.mark = f".{secrets.token_hex(4)}"
        path = folder / MANIFEST
        data, self._version = store.read_version(MANIFEST)
        self.manifest = None if data is None else Manifest.load(Path(f"{store.url}/{MANIFEST}"), data)
        if data is None:
            foreign = next((name for name in store.list() if not OWN_OBJECTS.fullmatch(name)), None)
            if foreign is not None:
                raise InvalidArgumentError(
                    f"{store.url} is not an index and not empty: it holds {foreign!r}. Choose another place."
                )
            path.unlink(missing_ok=True)
        elif len(data) <= MAXIMUM_BYTES:
            write_bytes(path, data)  # so that what interrupted runs left here is told from what is of use
        self._sent = {file.name for file in self.manifest.files} if self.manifest else set()

    def send(self, files: Iterable[FileEntry]) -> None:
        """Copy files into the store, unless they are there; the cache takes the local copies."""
        waiting = {file.name: file for file in files if file.name not in self._sent}
        here = [file for file in waiting.values() if (self.folder / file.name).exists()]
        there = self.store.sizes(name for name in waiting if not (self.folder / name).exists()) if waiting else {}
        for name, size in there.items():
            if size != waiting[name].size:
                raise StorageError(f"{self.store.url}/{name} is not there (any more). Start anew without --resume.")
        send_files(self.folder, here)
        self._sent |= set(waiting)

    def commit(self, manifest: Manifest, data: bytes) -> None:
        """Send what the store lacks, then make a manifest the newest one, if nobody else did.

        Raises
        ------
        CommitConflictError
            Somebody did.
        StorageError
            The store did not answer, and still has the old manifest.
        """
        self.send(manifest.files)
        names = {file.name for file in manifest.files}
        dropped = sorted({file.name for file in self.manifest.files} - names) if self.manifest else []
        if dropped:
            note = f"{RETIRED}/{manifest.generation - 1:08d}{self.mark}.json"
            self.store.put(note, json.dumps(dropped).encode())
        if self._version is None:
            self.store.check_conditions(f".tmp-{self.mark}")
        try:
            self._version = self.store.replace(MANIFEST, data, self._version)
        except (ChangedError, StorageError) as error:  # perhaps of a request that was repeated after it had succeeded
            found, version = self.store.read_version(MANIFEST)
            if found != data:
                if version == self._version and isinstance(error, StorageError):
                    raise
                raise CommitConflictError(
                    f"Another writer has changed {self.store.url} since generation {manifest.generation - 1}; "
                    "nothing of this change is in it. Open it again and repeat the change."
                ) from error
            self._version = version
        committed = time.monotonic()
        started_anew = self.manifest is None or dropped
        self.manifest = manifest
        if started_anew:
            self._collect(names, committed)

    def _collect(self, names: set[str], committed: float) -> None:
        """Remove what nobody can need any more; best effort, as a later commit comes back to it."""
        try:
            objects, now = self.store.list(), time.time()
            old = {name for name, changed in objects.items() if now - changed > GRACE and OWN_OBJECTS.fullmatch(name)}
            notes = {name for name in objects if name.startswith(f"{RETIRED}/")} - old
            if not old - names:
                return
            for note in notes:
                names = names.union(json.loads(self.store.read(note) or b"[]"))
            if time.monotonic() - committed < PROMPT:
                self.store.delete(old - names)
        except (RagqError, OSError, ValueError):
            return


def sender(folder: Path) -> Sender | None:
    """Start to write to an index; None for a local folder."""
    store = _stores.get(folder)
    return None if store is None else Sender(folder, store)
