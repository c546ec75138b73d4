"""`where`: which documents a search or a delete may touch.

A filter is a dict in the style of MongoDB or a pyarrow compute expression. It speaks of the keys of a document's
metadata and of ``id``, ``title``, ``text`` and ``source``; where a document has a metadata key of the same name, that
one counts.

=====================================  ==============================================================================
``{"lang": "en"}``                     equal; several keys must all hold
``{"year": {"$gte": 2020}}``           ``$eq $ne $gt $gte $lt $lte`` compare numbers with numbers, text with text
``{"tag": {"$in": ["a", "b"]}}``       ``$in $nin``
``{"tags": {"$contains": "a"}}``       a list that holds the value, or text that holds the substring
``{"lang": {"$exists": true}}``        the key is there (and not null)
``{"$or": [{...}, {...}]}``            ``$and $or $not``
=====================================  ==============================================================================

A value of another type, and a key that a document lacks, compare as not equal and not ordered; so ``$ne`` and ``$nin``
hold for them, as in MongoDB. A key that no document of the index has is an error.
"""

from __future__ import annotations

import json
import operator as op
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.shards import Shard

__all__ = ["Where", "check_where", "evaluate_rows", "known_fields", "matching_rows", "no_such_field", "unknown_fields"]

Where = Mapping[str, Any] | Any
"""A filter: a mapping as above, or a `pyarrow.compute.Expression`."""

OWN_FIELDS = ("id", "title", "text", "source")
COMPARISONS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")
OPERATORS = (*COMPARISONS, "$in", "$nin", "$contains", "$exists")
ROW = "__row__"
DEEPEST = 64  # filters within filters
KEPT_FIELDS = 32  # columns that a shard keeps for later filters, the oldest given up first
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()

Values = list[Any]


def is_expression(where: Any) -> bool:
    """Tell whether a filter is a pyarrow expression."""
    import pyarrow.compute as pc

    return isinstance(where, pc.Expression)


def check_where(where: Where | None, depth: int = 0) -> Where | None:
    """Return a filter that is well formed; raise `InvalidArgumentError` on an unknown operator or a wrong operand."""
    if not depth and (where is None or is_expression(where)):
        return where
    if depth > DEEPEST:
        raise InvalidArgumentError(f"'where' has more than {DEEPEST} filters within filters.")
    if not isinstance(where, Mapping):
        raise InvalidArgumentError(f"'where' must be a mapping or a pyarrow expression. Got {type(where).__name__}.")
    for key, value in where.items():
        if not isinstance(key, str):
            raise InvalidArgumentError(f"The keys of 'where' must be strings. Got {key!r}.")
        if key in ("$and", "$or"):
            if not isinstance(value, (list, tuple)) or not value:
                raise InvalidArgumentError(f"'{key}' takes a list of filters. Got {value!r}.")
            for part in value:
                check_where(part, depth + 1)
        elif key == "$not":
            check_where(value, depth + 1)
        elif key.startswith("$"):
            raise InvalidArgumentError(f"Unknown operator '{key}'; known: $and, $or, $not, {', '.join(OPERATORS)}.")
        elif isinstance(value, Mapping):
            for operator, operand in value.items():
                check_operand(key, operator, operand)
        else:
            check_operand(key, "$eq", value)
    return where


def check_operand(field: str, operator: str, operand: Any) -> None:
    """Raise `InvalidArgumentError` when an operator is unknown or cannot take the operand."""
    if operator not in OPERATORS:
        raise InvalidArgumentError(f"Unknown operator '{operator}' for '{field}'; known: {', '.join(OPERATORS)}.")
    scalar = operand is None or isinstance(operand, (str, int, float, bool))
    if operator in ("$in", "$nin"):
        if not isinstance(operand, (list, tuple, set, frozenset)):
            raise InvalidArgumentError(f"'{operator}' of '{field}' takes a list. Got {operand!r}.")
    elif operator == "$exists":
        if not isinstance(operand, bool):
            raise InvalidArgumentError(f"'$exists' of '{field}' takes true or false. Got {operand!r}.")
    elif operator in ("$gt", "$gte", "$lt", "$lte"):
        if not isinstance(operand, (str, int, float)) or isinstance(operand, bool):
            raise InvalidArgumentError(f"'{operator}' of '{field}' takes a number or text. Got {operand!r}.")
    elif not scalar and not (operator in ("$eq", "$ne") and isinstance(operand, (list, tuple, Mapping))):
        raise InvalidArgumentError(f"'{operator}' of '{field}' takes a plain value. Got {operand!r}.")


def fields_of(where: Mapping[str, Any]) -> set[str]:
    """Return the fields that a mapping filter speaks of."""
    found: set[str] = set()
    for key, value in where.items():
        if key in ("$and", "$or"):
            found.update(*(fields_of(part) for part in value))
        elif key == "$not":
            found |= fields_of(value)
        else:
            found.add(key)
    return found


def matching_rows(shards: list[Shard], where: Where) -> list[NDArray[np.bool_]]:
    """Evaluate a filter on every row of some shards.

    Returns
    -------
    list of ndarray of bool, shape (rows,)
        One a shard; deleted rows are evaluated too.

    Raises
    ------
    InvalidArgumentError
        A field that no document has, an unknown operator, or an expression that Arrow refuses.
    """
    check_where(where)
    if is_expression(where):
        return evaluate_expression(shards, where)
    missing = unknown_fields(shards, where)
    if missing:
        raise no_such_field(missing[0], known_fields(shards))
    return evaluate_rows(shards, where)


def unknown_fields(shards: Sequence[Shard], where: Mapping[str, Any]) -> list[str]:
    """Return the fields of a filter that no document of some shards has; of no shards at all, none."""
    return [
        name
        for name in sorted(fields_of(where))
        if shards and name not in OWN_FIELDS and all(value is MISSING for s in shards for value in column(s, name))
    ]


def known_fields(shards: Sequence[Shard]) -> list[str]:
    """Return the fields that filters on some shards may speak of."""
    return sorted(set(OWN_FIELDS).union(*(keys(shard) for shard in shards)))


def no_such_field(name: str, known: Sequence[str]) -> InvalidArgumentError:
    """Return the error for a field that no document has."""
    return InvalidArgumentError(f"No document has the field '{name}'. Fields: {', '.join(known)}.")


def evaluate_rows(shards: Sequence[Shard], where: Mapping[str, Any]) -> list[NDArray[np.bool_]]:
    """Evaluate a mapping filter that was checked on every row of some shards; a field that is nowhere is absent."""
    names = sorted(fields_of(where))
    return [evaluate(where, {name: column(shard, name) for name in names}, shard.rows) for shard in shards]


def metadata(shard: Shard) -> Iterable[dict[str, Any]]:
    """Yield the metadata object of every row."""
    for batch in shard.docs_batches(["metadata"]):
        for text in batch.column(0).to_pylist():
            try:
                value = json.loads(text)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise CorruptIndexError(f"{shard.folder / shard.entry.docs.name} holds metadata that is not JSON.")
            yield value


def keys(shard: Shard) -> frozenset[str]:
    """Return every metadata key of a shard."""
    if shard.keys is None:
        shard.keys = frozenset(key for record in metadata(shard) for key in record)
    return shard.keys


def column(shard: Shard, name: str) -> Values:
    """Return one field of every row, `MISSING` where it is absent or null; kept for later filters if that is cheap."""
    cache = shard.fields
    if name in cache:
        return cache[name]
    if name in keys(shard):
        values = [MISSING if (v := record.get(name)) is None else v for record in metadata(shard)]
    else:
        values = [MISSING] * shard.rows
    if name in OWN_FIELDS:  # the rule holds document by document, however they lie in shards
        own = (v for batch in shard.docs_batches([name]) for v in batch.column(0).to_pylist())
        values = [mine if v is MISSING else v for v, mine in zip(values, own, strict=True)]
    elif name not in keys(shard):
        return values  # names that a stranger makes up must not fill the memory
    if name != "text":  # all texts would be the whole corpus
        while len(cache) >= KEPT_FIELDS:
            cache.pop(next(iter(cache)), None)
        cache[name] = values
    return values


def evaluate(where: Mapping[str, Any], table: Mapping[str, Values], rows: int) -> NDArray[np.bool_]:
    """Evaluate a mapping filter on columns."""
    result = np.ones(rows, bool)
    for key, value in where.items():
        if key == "$and":
            parts = [evaluate(part, table, rows) for part in value]
            result &= np.logical_and.reduce(parts)
        elif key == "$or":
            parts = [evaluate(part, table, rows) for part in value]
            result &= np.logical_or.reduce(parts)
        elif key == "$not":
            result &= ~evaluate(value, table, rows)
        else:
            conditions = value if isinstance(value, Mapping) else {"$eq": value}
            for operator, operand in conditions.items():
                test = predicate(operator, operand)
                result &= np.fromiter(map(test, table[key]), bool, rows)
    return result


def kind(value: Any) -> str:
    """Return the JSON type of a value, so that true is not 1 and "1" is not 1."""
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def predicate(operator: str, operand: Any) -> Callable[[Any], bool]:
    """Return the test of one value; `MISSING` is the absent value."""
    if operator == "$exists":
        return lambda value: (value is not MISSING) == operand
    if operator in ("$eq", "$ne"):
        wanted = MISSING if operand is None else list(operand) if isinstance(operand, tuple) else operand
        same = equals(wanted)
        return same if operator == "$eq" else lambda value: not same(value)
    if operator in ("$in", "$nin"):
        tests = [equals(MISSING if item is None else item) for item in operand]
        inside = operator == "$in"
        return lambda value: any(test(value) for test in tests) == inside
    if operator == "$contains":
        same = equals(operand)

        def contains(value: Any) -> bool:
            if isinstance(value, list):
                return any(same(item) for item in value)
            return isinstance(value, str) and isinstance(operand, str) and operand in value

        return contains
    order = {"$gt": op.gt, "$gte": op.ge, "$lt": op.lt, "$lte": op.le}[operator]
    wanted_kind = kind(operand)
    return lambda value: kind(value) == wanted_kind and bool(order(value, operand))


def equals(wanted: Any) -> Callable[[Any], bool]:
    """Return the test for JSON equality with a value."""
    wanted_kind = kind(wanted)
    return lambda value: kind(value) == wanted_kind and value == wanted


def evaluate_expression(shards: list[Shard], where: Any) -> list[NDArray[np.bool_]]:
    """Evaluate a pyarrow expression on a table of every field of each shard."""
    names = known_fields(shards)
    results = []
    for shard in shards:
        columns = {name: [None if v is MISSING else v for v in column(shard, name)] for name in names}
        arrays = {ROW: pa.array(np.arange(shard.rows))}
        for name, values in columns.items():
            try:
                arrays[name] = pa.array(values)
            except pa.ArrowException:  # values of several types: only a mapping filter can tell them apart
                continue
        try:
            kept = pa.table(arrays).filter(where)[ROW].to_numpy()
        except (pa.ArrowException, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InvalidArgumentError(
                f"'where' {where} cannot be used: {reason} Fields: {', '.join(names)}."
            ) from None
        matches = np.zeros(shard.rows, bool)
        matches[kept] = True
        results.append(matches)
    return results
