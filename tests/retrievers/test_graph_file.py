"""No graph reaches hnswlib whose links lead anywhere but to its own rows."""

from __future__ import annotations

from pathlib import Path

import hnswlib
import numpy as np
import pytest

from ragq.errors import CorruptIndexError
from ragq.retrievers.structures.graph_file import HEAD, check_graph

DIM = 4


def saved(path: Path, n: int) -> bytearray:
    graph = hnswlib.Index(space="l2", dim=DIM)
    graph.init_index(max_elements=n, M=4, ef_construction=20, random_seed=0)
    graph.add_items(np.random.default_rng(0).standard_normal((n, DIM)).astype(np.float32), np.arange(n), num_threads=1)
    graph.save_index(str(path))
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("n", [1, 2, 300])
def test_what_hnswlib_writes_passes(tmp_path: Path, n: int) -> None:
    saved(tmp_path / "graph", n)
    check_graph(tmp_path / "graph", DIM, n)
    for dim, count in ((DIM + 1, n), (DIM, n + 1)):
        with pytest.raises(CorruptIndexError, match="is no graph of"):
            check_graph(tmp_path / "graph", dim, count)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    whole = saved(path, 300)
    record = 4 + 4 * 8 + 4 * DIM + 8
    upper = HEAD.itemsize + 300 * record
    sizes, at = [], upper
    while at < len(whole):
        size = int.from_bytes(whole[at : at + 4], "little")
        sizes.append((at, size))
        at += 4 + size
    first = next(at for at, size in sizes if size) + 4
    places = {
        "level 0": HEAD.itemsize + 4,
        "links of a row": HEAD.itemsize,
        "upper": first + 4,
        "links above": first,
        "label": HEAD.itemsize + record - 8,
        "float": HEAD.itemsize + record - 9,
        "size above": sizes[0][0],
    }
    for name, place in places.items():
        changed = bytearray(whole)
        changed[place : place + 2] = b"\xff\xff" if name != "float" else b"\x7f\x00"
        if name == "float":
            changed[place - 3 : place + 1] = np.float32(np.nan).tobytes()
        path.write_bytes(changed)
        with pytest.raises(CorruptIndexError):
            check_graph(path, DIM, 300)
    lowest = next(row for row, (_, size) in enumerate(sizes) if not size)
    changed = bytearray(whole)
    changed[first + 4 : first + 8] = lowest.to_bytes(4, "little")  # a row without that level
    path.write_bytes(changed)
    with pytest.raises(CorruptIndexError, match="without that level"):
        check_graph(path, DIM, 300)
    for size in (0, 10, HEAD.itemsize, upper - 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptIndexError):
            check_graph(path, DIM, 300)


def test_every_field_of_the_head_counts(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    whole = saved(path, 50)
    for name in HEAD.names or ():
        if name in ("mult", "ef_construction"):
            continue  # of building, which never goes on
        changed = bytearray(whole)
        changed[HEAD.fields[name][1]] ^= 0x40  # type: ignore[index]
        path.write_bytes(changed)
        with pytest.raises(CorruptIndexError):
            check_graph(path, DIM, 50)
