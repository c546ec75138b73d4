"""Relevance judgements read from a file, with everything that is wrong in it said or counted.

Accepted: tab-separated ``query-id  corpus-id  score`` with or without a header line (BEIR; an id that holds a tab is
quoted), JSON lines with the same three keys (the hub's copies), and TREC's ``query 0 document grade``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from ragq.errors import InvalidArgumentError

__all__ = ["check_qrels", "read_qrels"]

Qrels = dict[str, dict[str, int]]
HEADER = ("query-id", "corpus-id", "score")


def read_qrels(path: str | Path) -> tuple[Qrels, list[str]]:
    """Read judgements.

    Parameters
    ----------
    path : path-like
        A ``.tsv``, ``.jsonl`` or TREC file.

    Returns
    -------
    qrels : dict of str to dict of str to int
        Query id to document id to grade.
    warnings : list of str
        One line for each kind of oddity, with its count.

    Raises
    ------
    InvalidArgumentError
        No such file, no judgement in it, a line of another shape, a grade that is no whole number, or one pair judged
        twice with different grades; names the line.
    """
    file = Path(path)
    if not file.is_file():
        raise InvalidArgumentError(f"There is no qrels file '{file}'.")
    qrels: Qrels = {}
    repeated = 0
    for line, (query, document, grade) in _rows(file):
        judged = qrels.setdefault(query, {})
        if judged.setdefault(document, grade) != grade:
            raise InvalidArgumentError(
                f"'{file}' line {line} judges query '{query}' and document '{document}' a second time, "
                f"as {grade} after {judged[document]}. Keep one of the two lines."
            )
        repeated += 1
    repeated -= sum(map(len, qrels.values()))
    if not qrels:
        raise InvalidArgumentError(
            f"'{file}' holds no judgement. Expected lines: query-id, tab, corpus-id, tab, score."
        )
    return qrels, [f"{repeated} judgements in {file.name} are repeated; each pair counts once."] if repeated else []


def _rows(file: Path) -> Iterator[tuple[int, tuple[str, str, int]]]:
    """Yield (line number, (query, document, grade))."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            if file.suffix == ".jsonl":
                rows: Iterable[list[object]] = (
                    [json.loads(line)[key] for key in HEADER] if line.strip() else [] for line in lines
                )
            else:
                rows = _columns(lines)
            for number, row in enumerate(rows, 1):
                if row and not (number == 1 and _is_header(row)):
                    yield number, _judgement(file, number, row)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, csv.Error) as error:
        raise InvalidArgumentError(f"'{file}' is not a qrels file: {type(error).__name__}: {error}.") from None


def _columns(lines: Iterable[str]) -> Iterator[list[object]]:
    """Split at tabs (quotes protect them), or at blanks when the line has none (TREC); drop TREC's second column."""
    for line in lines:
        row: list[object] = list(next(csv.reader([line], delimiter="\t"), [])) if "\t" in line else list(line.split())
        if len(row) == 4 and row[1] in ("0", "Q0"):
            del row[1]
        yield row


def _is_header(row: list[object]) -> bool:
    return len(row) == 3 and not str(row[2]).strip().lstrip("-").isdecimal()


def _judgement(file: Path, number: int, row: list[object]) -> tuple[str, str, int]:
    if len(row) != 3:
        raise InvalidArgumentError(
            f"'{file}' line {number} has {len(row)} columns; expected 3: query-id, tab, corpus-id, tab, score. "
            'Put an id that holds a tab in double quotes ("a\tb").'
        )
    try:
        return str(row[0]), str(row[1]), int(str(row[2]))
    except ValueError:
        raise InvalidArgumentError(f"'{file}' line {number}: the score '{row[2]}' is not a whole number.") from None


def check_qrels(qrels: Qrels, documents: Container[str], queries: Container[str]) -> tuple[Qrels, list[str]]:
    """Hold judgements against the documents and queries that there are.

    Judgements of unknown queries are left out (there is no text to search with). Judgements of unknown documents stay,
    as in trec_eval: no search can return them, so they lower recall. A query whose judgements are all 0 stays and
    scores 0, as in trec_eval. All three are counted.

    Raises
    ------
    InvalidArgumentError
        No judged query, or no judged document, exists: the files do not belong together.
    """
    known = {query: judged for query, judged in qrels.items() if query in queries}
    if not known:
        raise InvalidArgumentError(
            f"None of the {len(qrels)} judged queries is among the queries; for example '{next(iter(qrels))}'. "
            "The qrels and the queries do not belong together."
        )
    judged = [document for grades in known.values() for document in grades]
    missing = sum(document not in documents for document in judged)
    if missing == len(judged):
        raise InvalidArgumentError(
            f"None of the {missing} judged documents is in the corpus; for example '{judged[0]}'. "
            "The qrels and the corpus do not belong together."
        )
    idle = sum(not any(grade > 0 for grade in grades.values()) for grades in known.values())
    counts = {
        "judged queries are not among the queries and are left out": len(qrels) - len(known),
        "judgements name documents that are not in the corpus; no search can find them": missing,
        "judged queries have no relevant document and score 0 for every spec": idle,
    }
    return known, [f"{count} {what}." for what, count in counts.items() if count]
