"""Documents that are in memory already: strings, dicts, documents of ragq or LangChain, tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from ragq.errors import InvalidArgumentError
from ragq.pipelines.readers.arrow import rows_of
from ragq.pipelines.readers.base import Options, Reader, plain_json
from ragq.types import Document

__all__ = ["IterableReader"]

_END = object()
_BATCH = 1024


class IterableReader(Reader):
    """Documents of an iterable.

    Parameters
    ----------
    source : iterable
        Of `str`, mapping (fields as in JSON lines), `Document` or LangChain `Document`; or a mapping from id to one of
        these; or a pyarrow Table or a pandas DataFrame.
    ids : iterable of str, optional
        One id an item, in place of the items' own.
    """

    def __init__(self, source: Any, options: Options, ids: Iterable[Any] | None = None) -> None:
        super().__init__("iterable", f"the {type(source).__name__} given", options)
        if hasattr(source, "iterrows") and hasattr(source, "columns"):
            source = pa.Table.from_pandas(source, preserve_index=False)
        if isinstance(source, Mapping):
            if ids is not None:
                raise InvalidArgumentError("'ids' cannot be given with a mapping, whose keys are the ids.")
            source, ids = source.values(), source.keys()
        if not isinstance(source, (pa.Table, Iterable)):
            raise InvalidArgumentError(
                f"'source' must be a path or an iterable of str, dict or Document. Got {type(source).__name__}."
            )
        self._items = source
        self._ids = ids

    @property
    def total(self) -> int | None:
        """Number of items, where the source knows it."""
        if isinstance(self._items, pa.Table):
            return int(self._items.num_rows)
        return len(self._items) if isinstance(self._items, Sized) else None

    def _documents(self) -> Iterator[Document]:
        items = _table_rows(self._items) if isinstance(self._items, pa.Table) else iter(self._items)
        if self._ids is None:
            pairs: Iterator[tuple[Any, Any]] = ((item, None) for item in items)
        else:
            pairs = zip_longest(items, self._ids, fillvalue=_END)
        for number, (item, given) in enumerate(pairs):
            where = f"item {number}"
            if item is _END or given is _END:
                raise InvalidArgumentError(f"'ids' must have one id an item. Item {number} has no counterpart.")
            if self._ids is not None and given is None:
                raise InvalidArgumentError(f"{where}: an id must be a string. Got None.")
            document = self._document(item, given, where)
            if document is not None:
                yield document

    def _document(self, item: Any, given: Any, where: str) -> Document | None:
        options = self.options
        key, text, title = options.id_field or "id", options.text_field, options.title_field
        source = where
        if isinstance(item, Document):
            record: dict[Any, Any] = {key: item.id, text: item.text, title: item.title, "metadata": item.metadata}
            source = item.source or where
        elif isinstance(item, str):
            record = {text: item}
        elif isinstance(item, Mapping):
            record = dict(item)
        elif hasattr(item, "page_content"):
            record = {key: getattr(item, "id", None), text: item.page_content, "metadata": item.metadata}
            source = str((item.metadata or {}).get("source") or where)
        else:
            raise InvalidArgumentError(f"{where}: must be a str, a dict or a Document. Got {type(item).__name__}.")
        if given is not None:
            record.pop("_id", None)
            record[key] = given
        own = {key, "_id", text, title}
        record = {name: value if name in own else plain_json(value, where) for name, value in record.items()}
        document = self.document(record, where)
        return document if document is None or source == where else replace(document, source=source)


def _table_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    row = 0
    for batch in table.to_batches(max_chunksize=_BATCH):
        yield from rows_of(batch, "row", row)
        row += batch.num_rows
