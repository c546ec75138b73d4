"""What the structures share: the search contract, the rows that they cover, and their small files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors import Compressor
from ragq.compressors.refine import Refined
from ragq.compressors.scorers import LinearScorer, Scorer
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.manifest import FileEntry, StructureEntry
from ragq.select import live_rows, pack_mask, unpack_mask
from ragq.shards import Shard, entry, verify_file
from ragq.snapshot import Snapshot
from ragq.storage import durable_write

__all__ = [
    "Allowed",
    "Coverage",
    "Prepared",
    "Probe",
    "Structure",
    "load_arrays",
    "merge",
    "principal",
    "save_arrays",
]

Floats = NDArray[np.float32]
Found = tuple[Floats, NDArray[np.int64]]
Masks = Sequence[NDArray[np.uint8] | None]

REDUCED = 96  # dimensions in which centroids and graphs compare: most of the variance for a quarter of the work
PRINCIPAL_ROWS = 16_384


@dataclass(frozen=True)
class Probe:
    """How far one search goes; None is what was tuned when the structure was built.

    Attributes
    ----------
    nprobe : int or None
        Lists that are scanned.
    ef_search : int or None
        Candidates that a graph keeps.
    exact : bool
        Scan every row instead.
    candidates : int or None
        Passages that the first stage of a multi-vector index hands to MaxSim.
    """

    nprobe: int | None = None
    ef_search: int | None = None
    exact: bool = False
    candidates: int | None = None

    def __post_init__(self) -> None:
        for name in ("nprobe", "ef_search", "candidates"):
            if getattr(self, name) is not None:
                check_int(getattr(self, name), name, 1)


class Prepared:
    """Queries with their scorers: one for all, and one for each.

    Parameters
    ----------
    compressor : Compressor
    queries : ndarray of float32, shape (n_queries, dim)
        Normalised when the index does that.
    metric : {'ip', 'l2'}
        Of the scores.
    """

    def __init__(self, compressor: Compressor, queries: Floats, metric: str) -> None:
        self.compressor, self.queries, self.metric = compressor, queries, metric

    @cached_property
    def all(self) -> Scorer:
        """The scorer of all queries."""
        if self.metric == "ip" and not isinstance(self.compressor, Refined):
            return self.compressor._scorer(self.queries)  # checked already
        return self.compressor.scorer(self.queries, self.metric)

    def part(self, which: Any) -> Prepared:
        """Return some of the queries, by their numbers."""
        return Prepared(self.compressor, self.queries[which], self.metric)

    def one(self, i: int) -> Scorer:
        """Return the scorer of a query."""
        if isinstance(self.all, LinearScorer):
            return self.all.part(slice(i, i + 1))
        return self.compressor.scorer(self.queries[i : i + 1], self.metric)


class Coverage:
    """The rows of a structure: those of some shards of a snapshot, one after the other.

    A shard that the index no longer has keeps its place among the rows, and none of them may be returned.

    Raises
    ------
    CorruptIndexError
        A shard has not the rows that the structure names.
    """

    def __init__(self, snapshot: Snapshot, described: StructureEntry) -> None:
        number = {shard.entry.id: i for i, shard in enumerate(snapshot.shards)}
        self.shards = [number.get(name) for name in described.shards]
        self.sizes = described.rows
        self.starts = np.concatenate([[0], np.cumsum(described.rows)]).astype(np.int64)
        for i, rows in zip(self.shards, described.rows, strict=True):
            if i is not None and snapshot.shards[i].rows != rows:
                raise CorruptIndexError(f"{snapshot.folder} has a structure over {rows} rows of another shard.")
        known = {i for i in self.shards if i is not None}
        self.others = [i for i in range(len(snapshot.shards)) if i not in known]
        first = snapshot.starts
        self.shifts = np.asarray(
            [0 if i is None else first[i] - start for i, start in zip(self.shards, self.starts, strict=False)], np.int64
        )

    @cached_property
    def moved(self) -> bool:
        """Whether rows have other numbers in the snapshot."""
        return bool(self.shifts.any())

    @property
    def rows(self) -> int:
        """Rows of the structure."""
        return int(self.starts[-1])

    def allowed(self, masks: Masks) -> Allowed:
        """Return what the masks of the snapshot's shards let through."""
        return Allowed(self, masks)

    def current(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers that rows of the structure have in the snapshot; -1 stays."""
        if not self.moved:
            return rows
        owner = np.maximum(np.searchsorted(self.starts, rows, "right") - 1, 0)
        return np.where(rows >= 0, rows + self.shifts[owner], -1)

    def own(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Undo `current`, for rows of the snapshot that the structure covers."""
        places = [i for i, number in enumerate(self.shards) if number is not None]
        first = self.starts[places] + self.shifts[places]
        order = np.argsort(first)
        owner = order[np.maximum(np.searchsorted(first[order], rows, "right") - 1, 0)]
        return np.where(rows >= 0, rows - self.shifts[places][owner], -1)

    def masks(self, rows: NDArray[np.int64], shards: Sequence[Shard]) -> list[NDArray[np.uint8]]:
        """Return a bitset a shard of the snapshot that lets only some rows of the structure through."""
        picked = [np.zeros(shard.rows, bool) for shard in shards]
        owner = np.searchsorted(self.starts, rows, "right") - 1
        for place in np.unique(owner):
            i = self.shards[place]
            if i is not None:
                picked[i][rows[owner == place] - self.starts[place]] = True
        return [pack_mask(mask) for mask in picked]


class Allowed:
    """Which rows of a structure may be returned; those of a filter that leads to a scan are only counted.

    Attributes
    ----------
    count : int
        How many.
    bits : ndarray of uint8 or None
        The rows as a bitset in the order of an inverted file, which fills it in.
    """

    def __init__(self, coverage: Coverage, masks: Masks) -> None:
        self._coverage, self._masks = coverage, masks
        sizes = zip(coverage.shards, coverage.sizes, strict=False)
        self.count = sum(live_rows(masks[i], size) for i, size in sizes if i is not None)
        self.bits: NDArray[np.uint8] | None = None

    @cached_property
    def rows(self) -> NDArray[np.bool_]:
        """Whether each row of the structure may be returned, (n,)."""
        coverage = self._coverage
        rows = np.zeros(coverage.rows, bool)
        for i, start, size in zip(coverage.shards, coverage.starts, coverage.sizes, strict=False):
            if i is not None:
                mask = self._masks[i]
                rows[start : start + size] = True if mask is None else unpack_mask(mask, size)
        return rows


class Structure(ABC):
    """A loaded structure.

    Attributes
    ----------
    kind : str
    """

    kind: str

    def pays(self, allowed: Allowed, probe: Probe) -> bool:
        """Tell whether a search is faster than scanning the rows that a narrow filter lets through."""
        return True

    @abstractmethod
    def search(self, prepared: Prepared, k: int, allowed: Allowed, probe: Probe, threads: int | None) -> Found:
        """Return the best rows that it finds for each query.

        Parameters
        ----------
        prepared : Prepared
        k : int
        allowed : Allowed
            Which rows of the structure may be returned.
        probe : Probe
        threads : int, optional
            As for `ragq.retrievers.scan.scan`.

        Returns
        -------
        scores : ndarray of float32, shape (n_queries, k)
            As the scan of the same rows would score them, descending, padded with -inf.
        rows : ndarray of int64, shape (n_queries, k)
            Rows of the structure, padded with -1; ``min(k, allowed.count)`` of them are always found.
        """


def merge(parts: Sequence[Found], k: int) -> Found:
    """Merge finds whose rows are numbered over the same whole: higher score first, then the lower row."""
    scores = np.concatenate([s for s, _ in parts], axis=1)
    rows = np.concatenate([r for _, r in parts], axis=1)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def principal(x: Floats, most: int = REDUCED) -> Floats:
    """Return the directions of the largest second moment of rows, at most `most` of them, as rows `(d, dim)`."""
    moments = x.astype(np.float64).T @ x.astype(np.float64)
    _, axes = np.linalg.eigh(moments)
    return np.ascontiguousarray(axes[:, ::-1][:, :most].T, np.float32)


def save_arrays(folder: Path, name: str, arrays: dict[str, NDArray[Any]]) -> FileEntry:
    """Write named arrays durably."""
    with durable_write(folder / name) as file:
        file.write(safetensors.numpy.save({key: np.ascontiguousarray(array) for key, array in arrays.items()}))
    return entry(name, file)


def load_arrays(folder: Path, file: FileEntry, shapes: dict[str, tuple[str, int]]) -> dict[str, NDArray[Any]]:
    """Read named arrays, after comparing the file with its checksum.

    Parameters
    ----------
    shapes : dict of str to (str, int)
        Each array's type and number of dimensions.

    Raises
    ------
    CorruptIndexError
        An array is missing, of another type, or not finite.
    """
    path = verify_file(folder, file)
    try:
        arrays = safetensors.numpy.load(path.read_bytes())
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptIndexError(f"{path} cannot be read: {error}") from None
    for name, (dtype, dimensions) in shapes.items():
        array = arrays.get(name)
        if array is None or array.dtype.str[1:] != dtype or array.ndim != dimensions:
            raise CorruptIndexError(f"{path} has no '{name}' of type {dtype} with {dimensions} dimensions.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CorruptIndexError(f"'{name}' in {path} holds NaN or infinity.")
    return dict(arrays)


def parameter(described: StructureEntry, name: str, folder: Path) -> int:
    """Return a parameter that must be a positive integer."""
    try:
        return check_int(described.parameters.get(name), name, 1)
    except InvalidArgumentError as error:
        raise CorruptIndexError(f"The structure of {folder} is damaged: {error}") from None
