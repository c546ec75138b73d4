"""Data sets to evaluate on: documents, queries and, where there are any, judgements.

What `load` accepts:

==========================  =========================================================================================
a folder                    BEIR's layout: ``corpus.jsonl``, ``queries.jsonl``, ``qrels/<split>.tsv`` (or ``qrels.tsv``)
``mteb:NAME``               an MTEB retrieval task, from the hub or its cache; a bare task name works too
``mteb:NAME=FOLDER``        the same from a local copy in BEIR's layout
``ir:ID``                   an ir_datasets id such as ``ir:beir/scifact/test``
``limit``, ``limit-small``  the LIMIT tasks of MTEB
any other source            what `ragq index` reads, or an index, with your own ``queries.jsonl`` (and ``qrels.tsv``)
==========================  =========================================================================================

Without judgements a spec is measured by its agreement with exact float32 search.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

import ragq
from ragq.errors import InvalidArgumentError
from ragq.eval.qrels import Qrels, check_qrels, read_qrels
from ragq.manifest import MANIFEST
from ragq.types import passage_text

__all__ = ["Dataset", "load", "read_folder"]


@dataclass
class Dataset:
    """Documents, queries and judgements.

    Attributes
    ----------
    name : str
        How results name it.
    ids, titles, texts : list of str
        The documents, in corpus order.
    query_ids, queries : list of str
        The queries that are evaluated: the judged ones, or all when nothing is judged.
    qrels : dict, optional
        Query id to document id to grade.
    split : str
    query_rows : list of int
        Place of each query in the queries file, which is its row in ``queries.NAME.npy``.
    queries_in_file : int
        Queries in that file, judged or not; 0 when there is no file.
    folder : Path, optional
        Where ready embeddings lie.
    warnings : list of str
        What was odd in the files, counted.
    """

    name: str
    ids: list[str]
    titles: list[str]
    texts: list[str]
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels | None
    split: str = "test"
    query_rows: list[int] = field(default_factory=list)
    queries_in_file: int = 0
    folder: Path | None = None
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_unique(self.ids, "document", self.name)
        _check_unique(self.query_ids, "query", self.name)
        rows = list(range(len(self.query_ids)))
        if self.qrels is not None:
            self.qrels, odd = check_qrels(self.qrels, set(self.ids), set(self.query_ids))
            self.warnings += odd
            keep = [i for i, query in enumerate(self.query_ids) if query in self.qrels]
            self.query_ids, self.queries = [self.query_ids[i] for i in keep], [self.queries[i] for i in keep]
            rows = keep
        self.query_rows = rows
        if not self.ids or not self.query_ids:
            raise InvalidArgumentError(
                f"The data set '{self.name}' has {len(self.ids)} documents and {len(rows)} queries."
            )

    @property
    def passages(self) -> list[str]:
        """What is embedded: title and text joined by a blank, as BEIR and MTEB do."""
        return [passage_text(title, text) for title, text in zip(self.titles, self.texts, strict=True)]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that a result depends on, text apart from embeddings included."""
        digest = xxhash.xxh3_128()
        for part in (self.ids, self.titles, self.texts, self.query_ids, self.queries):
            digest.update(json.dumps(part).encode())
        digest.update(json.dumps(self.qrels, sort_keys=True).encode())
        return digest.hexdigest()


def _check_unique(ids: Sequence[str], kind: str, name: str) -> None:
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise InvalidArgumentError(f"The {kind} id '{twice}' comes twice in '{name}'. Ids must be unique.")


def load(
    source: str | Path, *, split: str = "test", queries: str | Path | None = None, qrels: str | Path | None = None
) -> list[Dataset]:
    """Load a data set, or several when an MTEB task has several subsets.

    Parameters
    ----------
    source : str or path
        See the table at the top of this module.
    split : str
    queries, qrels : path-like, optional
        Files that replace those of a folder. Queries without qrels are evaluated by agreement with float32.

    Raises
    ------
    InvalidArgumentError
        Nothing of that name, or files that do not belong together.
    MissingExtraError
        mteb or ir_datasets is not installed.
    """
    from ragq.eval import sources

    text = str(source)
    kind, colon, rest = text.partition(":")
    if (Path(text) / "corpus.jsonl").is_file():
        return [read_folder(Path(text), split=split, queries=queries, qrels=qrels)]
    if Path(text).exists():
        return [_with_queries(Path(text), queries, qrels)]
    if queries is not None or qrels is not None:
        raise InvalidArgumentError(f"--queries and --qrels go with documents of your own. There is no '{text}'.")
    if colon and kind == "ir":
        return [sources.from_ir_datasets(rest)]
    if colon and kind == "mteb":
        name, equals, folder = rest.partition("=")
        if not equals:
            return sources.from_mteb(name, split)
        sources.check_task(name)
        return [read_folder(Path(folder), split=split, name=name)]
    if "/" in text or text.startswith("."):
        raise InvalidArgumentError(
            f"There is no folder '{text}'. "
            "Give a BEIR folder (corpus.jsonl, queries.jsonl, qrels/test.tsv), mteb:NAME, or ir:ID."
        )
    return sources.from_mteb(sources.ALIASES.get(text.lower(), text), split)


def _with_queries(source: Path, queries: str | Path | None, qrels: str | Path | None) -> Dataset:
    """Join documents of any kind, or those of an index, with the user's own queries and perhaps judgements."""
    from ragq.pipelines.readers import read

    if queries is None:
        raise InvalidArgumentError(
            f"'{source}' has no corpus.jsonl with queries.jsonl. Give --queries FILE to search it with your own."
        )
    is_index = (source / MANIFEST).is_file()
    documents = list(ragq.open(source) if is_index else read(source))
    asked = list(_records(Path(queries)))
    judged, warnings = (None, []) if qrels is None else read_qrels(qrels)
    return Dataset(
        name=source.resolve().name,
        ids=[document.id for document in documents],
        titles=[document.title for document in documents],
        texts=[document.text for document in documents],
        query_ids=[_field(record, "_id") for record in asked],
        queries=[_field(record, "text") for record in asked],
        qrels=judged,
        queries_in_file=len(asked),
        folder=source if source.is_dir() else source.parent,
        warnings=warnings,
    )


def read_folder(
    folder: Path,
    *,
    split: str = "test",
    name: str | None = None,
    queries: str | Path | None = None,
    qrels: str | Path | None = None,
) -> Dataset:
    """Read a folder in BEIR's layout; without any qrels the data set has no judgements."""
    if not folder.is_dir():
        raise InvalidArgumentError(f"There is no folder '{folder}'.")
    documents = list(_records(folder / "corpus.jsonl"))
    asked = list(_records(Path(queries) if queries is not None else folder / "queries.jsonl"))
    judgements = Path(qrels) if qrels is not None else None if queries is not None else _find_qrels(folder, split)
    judged, warnings = (None, []) if judgements is None else read_qrels(judgements)
    return Dataset(
        name=name or folder.resolve().name,
        ids=[_field(record, "_id") for record in documents],
        titles=[_field(record, "title") for record in documents],
        texts=[_field(record, "text") for record in documents],
        query_ids=[_field(record, "_id") for record in asked],
        queries=[_field(record, "text") for record in asked],
        qrels=judged,
        split=split,
        queries_in_file=len(asked),
        folder=folder,
        warnings=warnings,
    )


def _find_qrels(folder: Path, split: str) -> Path | None:
    """Return the qrels file of a split; None when the folder has no judgements at all."""
    places = [folder / "qrels" / f"{split}.tsv", folder / "qrels" / f"{split}.jsonl"]
    if split == "test":
        places.append(folder / "qrels.tsv")
    for place in places:
        if place.is_file():
            return place
    known = sorted(path.stem for path in (folder / "qrels").glob("*.*"))
    if known or (folder / "qrels.tsv").is_file():
        raise InvalidArgumentError(f"'{folder}' has no split '{split}'. Its splits: {', '.join(known) or 'test'}.")
    return None


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, one a line."""
    if not path.is_file():
        raise InvalidArgumentError(f"There is no file '{path}'. A data set needs corpus.jsonl and queries.jsonl.")
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict) or not ({"_id", "id"} & record.keys()) or "text" not in record:
                        raise InvalidArgumentError(f"'{path}' line {number} must be an object with '_id' and 'text'.")
                    yield record
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidArgumentError(f"'{path}' is not JSON lines in UTF-8: {error}.") from None


def _field(record: dict[str, Any], key: str) -> str:
    value = record.get(key, record.get("id") if key == "_id" else None)
    return "" if value is None else str(value)
