"""The file of an hnswlib graph, checked before hnswlib reads it: hnswlib follows every link without looking.

Layout (hnswlib 0.7 and 0.8, little-endian): a head of 96 bytes; then a record a row: the number of its links (two bytes
of four), ``2 M`` links, the floats, the label; then for each row the bytes of its upper levels, and for each of those
levels a number of links and ``M`` links.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragq.errors import CorruptIndexError

__all__ = ["check_graph"]

HEAD = np.dtype(
    [
        ("offset_level0", "<u8"),
        ("max_elements", "<u8"),
        ("count", "<u8"),
        ("record", "<u8"),
        ("label_offset", "<u8"),
        ("data_offset", "<u8"),
        ("max_level", "<i4"),
        ("entry", "<u4"),
        ("max_links", "<u8"),
        ("max_links0", "<u8"),
        ("links", "<u8"),
        ("mult", "<f8"),
        ("ef_construction", "<u8"),
    ]
)
SIZE = struct.Struct("<I")
MOST_LINKS = 1024
MOST_LEVELS = 64


def check_graph(path: Path, dim: int, count: int) -> None:
    """Raise `CorruptIndexError` unless a file holds a graph of `count` rows whose links all lead to rows of it.

    Parameters
    ----------
    path : Path
    dim : int
        Floats a row.
    count : int
    """
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    reason = why_not(data, dim, count)
    if reason:
        raise CorruptIndexError(f"{path} is no graph of {count} rows of {dim} dimensions: {reason}.")


def why_not(data: NDArray[np.uint8], dim: int, count: int) -> str:
    """Return what is wrong with the bytes of a graph, or nothing."""
    if len(data) < HEAD.itemsize:
        return "it ends within its head"
    head = data[: HEAD.itemsize].view(HEAD)[0]
    links, links0 = int(head["max_links"]), int(head["max_links0"])
    if not 1 <= links <= MOST_LINKS or links0 != 2 * links or head["links"] != links:
        return f"it has {links} and {links0} links a row"
    record = np.dtype([("n", "<u2"), ("mark", "<u2"), ("to", "<u4", (links0,)), ("x", "<f4", (dim,)), ("label", "<u8")])
    sizes = (head["offset_level0"], head["max_elements"], head["count"], head["record"])
    if sizes != (0, count, count, record.itemsize) or head["data_offset"] != 4 * links0 + 4:
        return "its sizes are of another one"
    if head["label_offset"] != record.fields["label"][1]:  # type: ignore[index]
        return "its labels lie elsewhere"
    end = HEAD.itemsize + count * record.itemsize
    if len(data) < end or not 0 <= head["max_level"] < MOST_LEVELS or head["entry"] >= count:
        return "it ends early, or begins at a row that it does not have"
    rows = data[HEAD.itemsize : end].view(record)
    if not np.array_equal(np.sort(rows["label"]), np.arange(count, dtype=np.uint64)):
        return "its labels are not its rows"
    if rows["mark"].any() or not np.isfinite(rows["x"]).all():
        return "it holds deleted rows, NaN or infinity"
    if (rows["n"] > links0).any() or bad_links(rows["to"], rows["n"], count):
        return "a link leads out of it"
    return why_not_upper(data[end:], head, links, count)


def bad_links(to: NDArray[np.uint32], n: NDArray[np.uint16], count: int) -> bool:
    """Tell whether one of the first `n` links of a row leads to no row."""
    used = np.arange(to.shape[1]) < n[:, None]
    return bool((used & (to >= count)).any())


def why_not_upper(data: NDArray[np.uint8], head: np.void, links: int, count: int) -> str:
    """Return what is wrong with the upper levels, or nothing."""
    level = np.dtype([("n", "<u2"), ("mark", "<u2"), ("to", "<u4", (links,))])
    levels, at, buffer = np.zeros(count, np.int64), 0, memoryview(data)  # type: ignore[arg-type]
    found: list[NDArray[np.uint8]] = []
    for row in range(count):
        if at + 4 > len(data):
            return "it ends within its upper levels"
        size = SIZE.unpack_from(buffer, at)[0]
        at += 4
        if size:
            if size % level.itemsize or at + size > len(data) or size // level.itemsize > head["max_level"]:
                return "its upper levels are not whole"
            levels[row] = size // level.itemsize
            found.append(data[at : at + size])
            at += size
    if at != len(data) or levels[head["entry"]] != head["max_level"]:
        return "its upper levels are not those of its head"
    if not found:
        return ""
    parts = np.concatenate(found).view(level)
    if (parts["n"] > links).any() or bad_links(parts["to"], parts["n"], count):
        return "an upper link leads out of it"
    number = np.concatenate([np.arange(1, n + 1) for n in levels[levels > 0]])
    used = np.arange(links) < parts["n"][:, None]
    if (used & (levels[np.minimum(parts["to"], count - 1)] < number[:, None])).any():
        return "an upper link leads to a row without that level"
    return ""
