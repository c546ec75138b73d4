"""The neighbour graph: each row's nearest rows by the codes, stored, so that an expansion looks them up.

It is a file ``neighbours`` of any structure, ``4 k`` bytes a row: the numbers of the `k` nearest other rows, nearest
first. Similarities are not stored: an expansion decodes the rows that it joins anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragq.errors import CorruptIndexError
from ragq.layouts import Layout
from ragq.manifest import FileEntry, StructureEntry
from ragq.retrievers.structures.base import Coverage, Masks
from ragq.shards import read_block, write_block

__all__ = ["NO_ROW", "NeighbourGraph", "passing", "write_neighbours"]

NO_ROW = np.uint32(0xFFFFFFFF)  # behind the last neighbour

Rows = NDArray[np.int64]


class NeighbourGraph:
    """The stored neighbours of the rows that a structure covers.

    Parameters
    ----------
    folder : Path
        The index folder.
    described : StructureEntry
        One that has neighbours.
    coverage : Coverage

    Raises
    ------
    CorruptIndexError
        The file names rows that the structure does not have.
    """

    def __init__(self, folder: Path, described: StructureEntry, coverage: Coverage) -> None:
        file, rows, degree = described.files["neighbours"], coverage.rows, described.parameters.get("neighbours")
        if not isinstance(degree, int) or not 1 <= degree <= 1 << 16:
            raise CorruptIndexError(f"The structure of {folder} has {degree!r} neighbours a row.")
        block = read_block(folder, file, Layout("rows", 4 * degree), rows)
        self.links = block.columns["codes"].view("<u4")[:rows]
        self.coverage = coverage
        if ((self.links >= rows) & (self.links != NO_ROW)).any():
            raise CorruptIndexError(f"{folder / file.name} names rows that the structure does not have.")

    def of(self, rows: Rows, starts: Rows) -> Rows:
        """Return the neighbours of rows of the snapshot, (n, k); -1 for missing ones and for rows not covered.

        Parameters
        ----------
        rows : ndarray of int64, shape (n,)
        starts : ndarray of int64
            First row of each shard of the snapshot.
        """
        covered = ~np.isin(np.searchsorted(starts, rows, "right") - 1, self.coverage.others)
        found = np.full((len(rows), self.links.shape[1]), -1, np.int64)
        links = self.links[self.coverage.own(rows[covered])]
        found[covered] = self.coverage.current(np.where(links == NO_ROW, -1, links.astype(np.int64)))
        return found


def passing(rows: Rows, masks: Masks, starts: Rows) -> NDArray[np.bool_]:
    """Tell which rows of a snapshot its masks let through; -1 never passes."""
    owner = np.maximum(np.searchsorted(starts, rows, "right") - 1, 0)
    passes = rows >= 0
    for number in np.unique(owner[passes]):
        mask, here = masks[number], passes & (owner == number)
        if mask is not None:
            local = rows[here] - starts[number]
            passes[here] = mask[local >> 3] >> (local & 7).astype(np.uint8) & 1
    return passes


def write_neighbours(
    folder: Path,
    name: str,
    degree: int,
    chunks: Iterator[tuple[int, Rows]],
    rows: int,
    progress: Callable[[str, int, int], None],
) -> FileEntry:
    """Write the neighbours of all rows.

    Parameters
    ----------
    chunks : iterator of (int, ndarray of int64, shape (n, degree + 1))
        The first row of each run of rows with the rows nearest to each, perhaps itself among them; -1 at the end.
    rows : int
        How many there are.
    """
    links = np.full((rows, degree), NO_ROW, np.uint32)
    for first, near in chunks:
        itself = near == np.arange(first, first + len(near))[:, None]
        order = np.argsort(itself | (near < 0), axis=1, kind="stable")[:, :degree]  # those that count come first
        picked = np.take_along_axis(np.where(itself | (near < 0), NO_ROW, near), order, axis=1)
        links[first : first + len(near), : picked.shape[1]] = picked
        progress("neighbours", first + len(near), rows)
    packed = links.astype("<u4", copy=False).view(np.uint8)
    return write_block(folder, name, Layout("rows", 4 * degree), packed)
