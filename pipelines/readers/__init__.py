"""Readers: every source as a stream of documents, and ready embeddings as a stream of rows.

`read` picks the reader: a folder of text, a BEIR folder, files of records, or an iterable. A reader never holds the
corpus; it keeps counts of what it left out and why. `open_embeddings` reads embeddings that exist already.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ragq.checks import check_int
from ragq.errors import InvalidArgumentError
from ragq.pipelines.readers.base import MAX_ID_BYTES, Counts, Options, Reader
from ragq.pipelines.readers.embeddings import Embeddings, open_embeddings
from ragq.pipelines.readers.folder import FileReader, FolderReader
from ragq.pipelines.readers.iterables import IterableReader
from ragq.pipelines.readers.record_files import RecordFilesReader, beir_corpus, record_kind
from ragq.pipelines.readers.remote import open_remote
from ragq.stores import is_url

__all__ = [
    "MAX_ID_BYTES",
    "Counts",
    "Embeddings",
    "Options",
    "Reader",
    "open_embeddings",
    "read",
]


def read(
    source: Any,
    *,
    strict: bool = False,
    aligned: bool = False,
    skip: int = 0,
    ids: Iterable[str] | None = None,
    id_field: str | None = None,
    text_field: str = "text",
    title_field: str = "title",
    max_bytes: int = 32 * 2**20,
) -> Reader:
    """Return the reader of a source.

    Parameters
    ----------
    source : str, Path, Iterable or Reader
        ``s3://`` and ``gs://`` URLs name what is there by the same rules, but for ignored files. Else:
        A folder of text files; a BEIR folder (its ``corpus.jsonl`` alone is read); a folder that holds nothing but
        files of records of one kind; a file of records (``.jsonl .ndjson .csv .tsv .parquet .arrow .feather``, text
        ones also ``.gz``); any other text, HTML, PDF or Office file; or an iterable of str, dict, `Document` or
        LangChain `Document`, a mapping from id to one of these, a pyarrow Table or a pandas DataFrame.
    strict : bool
        Raise where a file or record that should be readable would be left out and counted: not UTF-8, too large,
        unreadable, or a PDF without the extra ``files``. Hidden, ignored, binary and empty files are left out in any
        case.
    aligned : bool
        Every record must give a document, because row i of ready embeddings belongs to record i: as `strict`, and empty
        records are kept.
    skip : int
        Documents to pass over at the start; the order is the same every time.
    ids : iterable of str, optional
        Ids of the items of an iterable.
    id_field, text_field, title_field : str, optional
        Names of the fields or columns of a record; the id's is ``_id`` or ``id`` by default. All other fields, and the
        object ``metadata``, are metadata. Ids that are numbers become strings; a record without an id gets a hash of
        its content.
    max_bytes : int
        A text file above this size is left out.

    Raises
    ------
    InvalidArgumentError
        There is no such source. While iterating: a record is not what it has to be (named with path and line), or no
        document was found.
    """
    options = Options(
        strict=strict,
        aligned=aligned,
        skip=check_int(skip, "skip", 0),
        id_field=id_field,
        text_field=text_field,
        title_field=title_field,
        max_bytes=check_int(max_bytes, "max_bytes", 1),
    )
    if isinstance(source, Reader):
        return source
    if not isinstance(source, (str, os.PathLike)):
        return IterableReader(source, options, ids)
    if ids is not None:
        raise InvalidArgumentError("'ids' goes with an iterable. For files, name the field of the id: id_field=….")
    if is_url(source):
        return open_remote(source, options)
    path = Path(source).expanduser()
    if not path.exists():
        raise InvalidArgumentError(f"No such file or folder: {str(source)!r}.")
    return _read_folder(path, options) if path.is_dir() else _read_file(path, options)


def _read_file(path: Path, options: Options) -> Reader:
    if not path.is_file():
        raise InvalidArgumentError(f"{path} is neither a file nor a folder.")
    kind = record_kind(path)
    return FileReader(path, options) if kind is None else RecordFilesReader(kind, str(path), [path], options)


def _read_folder(path: Path, options: Options) -> Reader:
    corpus = beir_corpus(path)
    if corpus is not None:
        return RecordFilesReader("beir", str(path), [corpus], options)
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    kinds = {record_kind(entry) if entry.is_file() else None for entry in entries}
    if len(kinds) == 1 and (kind := kinds.pop()) is not None:
        return RecordFilesReader(kind, str(path), entries, options)
    return FolderReader(path, options)
