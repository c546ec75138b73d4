"""Files that hold one document a record: JSON lines, CSV, TSV, Parquet, Arrow and BEIR folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ragq.pipelines.readers import arrow, delimited, jsonl
from ragq.pipelines.readers.base import Counts, Options, Reader
from ragq.types import Document

__all__ = ["RecordFilesReader", "beir_corpus", "record_kind"]

_KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_ESTIMATES = {
    "jsonl": jsonl.estimate,
    "csv": delimited.estimate,
    "tsv": delimited.estimate,
    "parquet": arrow.estimate,
    "arrow": arrow.estimate,
}


def record_kind(path: Path) -> str | None:
    """Return the kind of a file of records by its name, ``x.jsonl.gz`` included; None for any other file."""
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    kind = _KINDS.get(Path(plain).suffix)
    return kind if plain == name or kind in ("jsonl", "csv", "tsv") else None


def beir_corpus(folder: Path) -> Path | None:
    """Return the ``corpus.jsonl`` of a BEIR folder, or None when it is no such folder."""
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


class RecordFilesReader(Reader):
    """Documents of one or more files of records of one kind, in the order given."""

    def __init__(self, kind: str, source: str, files: Sequence[Path], options: Options) -> None:
        super().__init__(kind, source, options)
        self.files = list(files)
        self.chunked = kind != "beir"

    @property
    def total(self) -> int | None:
        """Number of records: exact for Parquet and Arrow, lines for text, an estimate for large text files."""
        counts = [_ESTIMATES[record_kind(file) or "jsonl"](file) for file in self.files]
        return None if None in counts else sum(n for n in counts if n is not None)

    def parts(self) -> list[Reader]:
        self.counts, self.notes = Counts(), []
        return [RecordFilesReader(self.kind, self.source, [file], self.options) for file in self.files]

    def _documents(self) -> Iterator[Document]:
        for file in self.files:
            for number, record in self._records(file):
                where = f"{file}:{number}"
                if record is None:
                    self.skip("not UTF-8", where, fault=True)
                elif (document := self.document(record, where)) is not None:
                    yield document

    def _records(self, file: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
        kind, options = record_kind(file), self.options
        if kind == "jsonl":
            return jsonl.records(file)
        if kind in ("csv", "tsv"):
            return delimited.records(
                file, tuple(filter(None, (options.id_field, options.text_field, options.title_field)))
            )
        return arrow.records(file)
