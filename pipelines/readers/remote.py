"""Sources in an object store: the same readers, over one object at a time, fetched to a temporary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ragq.errors import InvalidArgumentError
from ragq.pipelines.readers.base import Counts, Options, Reader
from ragq.pipelines.readers.folder import FilesReader
from ragq.pipelines.readers.record_files import RecordFilesReader, record_kind
from ragq.storage import HashingFile
from ragq.stores import Store, open_store
from ragq.types import Document

__all__ = ["RemoteReader", "open_remote"]

_PART = 256  # objects that are read by one worker, when each is one document
_BEIR = ("corpus.jsonl", "corpus.jsonl.gz")


class RemoteReader(Reader):
    """Documents of some objects, in the order given; `Document.source` is the URL, and a line where there are lines.

    Parameters
    ----------
    kind : str
        ``beir``, a kind of records, or ``folder`` for one document an object, whose id is its name.
    url : str
        What the names begin at.
    names : sequence of str
    options : Options
    """

    def __init__(self, kind: str, url: str, names: Sequence[str], options: Options) -> None:
        super().__init__(kind, url, options)
        self.names = names
        self.chunked = kind != "beir"

    def parts(self) -> list[Reader]:
        self.counts, self.notes = Counts(), []
        size = _PART if self.kind == "folder" else 1
        groups = [self.names[i : i + size] for i in range(0, len(self.names), size)]
        return [RemoteReader(self.kind, self.source, names, self.options) for names in groups]

    def _documents(self) -> Iterator[Document]:
        store = open_store(self.source, bucket=True)
        for name in self.names:
            if any(part.startswith(".") for part in name.split("/")):
                self.skip("hidden", f"{store.url}/{name}")
            else:
                yield from self._object(store, name)

    def _object(self, store: Store, name: str) -> Iterator[Document]:
        url = f"{store.url}/{name}"
        with tempfile.TemporaryDirectory(prefix="ragq-source-") as folder:
            path = Path(folder) / name.rpartition("/")[2]
            with path.open("wb") as file:
                store.download(name, HashingFile(file))
            reader: Reader
            if self.kind == "folder":
                reader = FilesReader(Path(folder), [(path, name)], self.options)
            else:
                reader = RecordFilesReader(self.kind, url, [path], self.options)
            try:
                for document in reader.part():
                    yield replace(document, source=document.source.replace(str(path), url, 1))
            except InvalidArgumentError as error:
                raise type(error)(str(error).replace(str(path), url)) from None
            self.counts.skipped.update(reader.counts.skipped)
            for line in reader.notes:
                self.note(line)


def open_remote(url: str | os.PathLike[str], options: Options) -> Reader:
    """Return the reader of an object, or of all objects below a prefix, by the rules for files and folders.

    Raises
    ------
    InvalidArgumentError
        There is nothing.
    """
    store = open_store(url, bucket=True)
    names = sorted(store.list(), key=lambda name: name.split("/"))
    beir = next((name for name in _BEIR if name in names), None)
    if beir is not None:
        return RemoteReader("beir", store.reference, [beir], options)
    if names:
        kinds = {None if "/" in name else record_kind(Path(name)) for name in names if not name.startswith(".")}
        kind = kinds.pop() if len(kinds) == 1 else None
        return RemoteReader(kind or "folder", store.reference, names, options)
    folder, _, name = store.prefix.rpartition("/")
    above = open_store(store.reference.replace(f"/{store.prefix}", f"/{folder}", 1), bucket=True)
    if not name or above.sizes([name])[name] is None:
        raise InvalidArgumentError(f"No such object or prefix: {store.url}.")
    return RemoteReader(record_kind(Path(name)) or "folder", above.reference, [name], options)
