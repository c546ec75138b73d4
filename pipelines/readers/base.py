"""What all readers share: counts, options, and the checks that turn a record into a `Document`."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import numbers
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import xxhash

from ragq.errors import InvalidArgumentError
from ragq.types import Document

__all__ = ["MAX_ID_BYTES", "Counts", "Options", "Reader", "plain_json"]

MAX_ID_BYTES = 64 * 1024
_EXAMPLES = 3


@dataclass(slots=True)
class Counts:
    """What a reader has seen since its iteration began.

    Attributes
    ----------
    read : int
        Documents found, those passed over by `Options.skip` included.
    skipped : Counter
        Reason to count of what was left out. A folder that is left out counts once, whatever it holds.
    examples : dict
        Reason to the first few paths.
    """

    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, where: str) -> None:
        """Count something that is left out."""
        self.skipped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(where)

    def __str__(self) -> str:
        """Return ``3 read, 2 hidden, 1 binary``."""
        return ", ".join([f"{self.read:,} read", *(f"{n:,} {reason}" for reason, n in self.skipped.most_common())])


@dataclass(frozen=True, slots=True)
class Options:
    """How to read; see `ragq.pipelines.readers.read`."""

    strict: bool = False
    aligned: bool = False
    skip: int = 0
    id_field: str | None = None
    text_field: str = "text"
    title_field: str = "title"
    max_bytes: int = 32 * 2**20


class Reader:
    """A stream of documents, in the same order every time.

    Iterating again starts again from the source and resets `counts`; only a one-shot iterable cannot be read twice.

    Attributes
    ----------
    kind : str
        ``folder``, ``file``, ``beir``, ``jsonl``, ``csv``, ``tsv``, ``parquet``, ``arrow`` or ``iterable``.
    source : str
        What is read, for messages.
    counts : Counts
        What was read and skipped so far.
    notes : list of str
        Lines that the user should see once: ids that were numbers, a missing extra.
    chunked : bool
        Whether long documents should be cut into passages. False for BEIR folders, whose protocol is one embedding
        a document, cut off at the model's length.
    """

    chunked = True

    def __init__(self, kind: str, source: str, options: Options) -> None:
        self.kind = kind
        self.source = source
        self.options = options
        self.counts = Counts()
        self.notes: list[str] = []

    @property
    def total(self) -> int | None:
        """Number of documents, where it is cheap to know or estimate; else None."""
        return None

    @property
    def skipped(self) -> Counter[str]:
        """Reason to count of what was left out so far."""
        return self.counts.skipped

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents after the first `Options.skip`; see `documents`."""
        return self.documents(self.options.skip)

    def documents(self, skip: int = 0) -> Iterator[Document]:
        """Yield the documents from number `skip` on.

        Raises
        ------
        InvalidArgumentError
            A record is not what it has to be, or the source holds no document at all.
        """
        yield from self.part(skip)
        self.check_found()

    def part(self, skip: int = 0) -> Iterator[Document]:
        """Yield as `documents` does; to find none is no error, since other parts may hold some."""
        self.counts, self.notes = Counts(), []
        for document in self._documents():
            self.counts.read += 1
            if self.counts.read > skip:
                yield document

    def parts(self) -> list[Reader]:
        """Return readers of what can be read apart, in order, and reset `counts`; of one part, this reader."""
        return [self]

    def take_counts(self, counts: Counts, notes: list[str]) -> None:
        """Add what the reader of a part has counted and noted."""
        self.counts.read += counts.read
        self.counts.skipped.update(counts.skipped)
        for line in notes:
            self.note(line)

    def check_found(self) -> None:
        """Raise `InvalidArgumentError` when no document was found."""
        if self.counts.read == 0:
            left_out = ", ".join(f"{n:,} {reason}" for reason, n in self.skipped.most_common())
            ready = " Ready embeddings are given by --embeddings (embeddings=…)." * str(self.source).endswith(".npy")
            raise InvalidArgumentError(f"{self.source} holds no documents. Skipped: {left_out or 'nothing'}.{ready}")

    def _documents(self) -> Iterator[Document]:
        raise NotImplementedError

    def note(self, line: str) -> None:
        """Keep a line for the user, once."""
        if line not in self.notes:
            self.notes.append(line)

    def skip(self, reason: str, where: str, *, fault: bool = False) -> None:
        """Leave something out; a `fault` (it should have been readable) is an error where nothing may be left out."""
        if fault and (self.options.strict or self.options.aligned):
            raise InvalidArgumentError(f"{where}: {reason}. Take it out, or read without 'strict'.")
        self.counts.skip(reason, where)

    def document(self, record: Mapping[str, Any], where: str) -> Document | None:
        """Return a record of a file or an iterable as a document; None when it is left out (and counted).

        The id, the text and the title have fields of their own; the object `metadata` and all other fields become the
        metadata (the object wins). A record without an id gets the xxh3-128 of its title, text and metadata, so that
        the same record has the same id in every run.
        """
        options = self.options
        rest = dict(record)
        key = options.id_field or ("_id" if "_id" in rest else "id")
        if options.id_field is not None and key not in rest:
            raise InvalidArgumentError(f"{where}: no field '{key}' for the id. Found {_names(rest)}.")
        if options.text_field not in rest:
            raise InvalidArgumentError(
                f"{where}: no field '{options.text_field}'. Found {_names(rest)}. Name the field that holds the text."
            )
        document_id, text = rest.pop(key, None), self._string(rest.pop(options.text_field), options.text_field, where)
        title = self._string(rest.pop(options.title_field, None), options.title_field, where)
        own = _metadata(rest.pop("metadata", None), where)
        metadata = {**rest, **own}
        if document_id is None:
            document_id = _content_id(title, text, metadata)
        return self.checked(Document(self._id(document_id, where), text, title, metadata, where), where)

    def checked(self, document: Document, where: str) -> Document | None:
        """Return a document that has something to embed and can be stored; None when it is left out (and counted)."""
        try:
            _ = document.id.isascii() or document.id.encode()
            _ = document.text.isascii() or document.text.encode()
            _ = document.title.isascii() or document.title.encode()
        except UnicodeEncodeError:  # a lone surrogate, as in "\ud800"
            self.skip("not UTF-8", where, fault=True)
            return None
        check_id(document.id, where)
        if not self.options.aligned and not document.text.strip() and not document.title.strip():
            self.skip("empty", where)
            return None
        return document

    def _id(self, value: object, where: str) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            self.note("Ids that are numbers are stored as strings.")
            return str(value)
        raise InvalidArgumentError(f"{where}: an id must be a string. Got {type(value).__name__}.")

    @staticmethod
    def _string(value: object, name: str, where: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InvalidArgumentError(f"{where}: '{name}' must be a string. Got {type(value).__name__}.")
        return value


def check_id(name: str, where: str) -> None:
    """Raise `InvalidArgumentError` on an id that is empty or too long."""
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > MAX_ID_BYTES or size == 0:
        raise InvalidArgumentError(f"{where}: an id must have 1 byte to 64 KiB. Got {size:,} bytes.")


def _metadata(value: object, where: str) -> Mapping[str, Any]:
    """Return the object of the field `metadata`; tables hold it as a string of JSON."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InvalidArgumentError(f"{where}: 'metadata' is not valid JSON: {error}.") from error
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{where}: 'metadata' must be an object. Got {type(value).__name__}.")
    return value


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in list(record)[:12]) or "nothing"


def _content_id(title: str, text: str, metadata: Mapping[str, Any]) -> str:
    content = json.dumps([title, text, dict(metadata)], ensure_ascii=True, sort_keys=True)
    return xxhash.xxh3_128_hexdigest(content.encode())


def plain_json(value: Any, where: str, *, columnar: bool = False) -> Any:
    """Return `value` as JSON can hold it, with tuples as lists and NumPy scalars as numbers.

    Parameters
    ----------
    value
        Metadata, or a part of it.
    where : str
        What to name in an error.
    columnar : bool
        The value comes from a table: dates become ISO strings, decimals strings, and NaN (a missing value there) None.

    Raises
    ------
    InvalidArgumentError
        JSON has no such value.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        if columnar and math.isnan(value):
            return None
        raise InvalidArgumentError(f"{where}: metadata must be JSON, which has no {value}.")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InvalidArgumentError(f"{where}: the keys of metadata must be strings. Got {list(value)[:5]!r}.")
        return {key: plain_json(item, f"{where}: '{key}'", columnar=columnar) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item, where, columnar=columnar) for item in value]
    if columnar and isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if columnar and isinstance(value, decimal.Decimal):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain_json(value.item(), where, columnar=columnar)
    raise InvalidArgumentError(f"{where}: metadata must be JSON. Got {type(value).__name__}.")
