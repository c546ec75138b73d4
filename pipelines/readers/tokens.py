"""Token embeddings that exist already: the pair of `values` (total, dim) and `offsets` (n + 1,), read by documents."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragq.errors import InvalidArgumentError
from ragq.pipelines.readers.embeddings import Embeddings, open_embeddings
from ragq.pipelines.readers.ids import open_ids
from ragq.pipelines.readers.npy import readable
from ragq.tokens import TokenEmbeddings, check_offsets, run_rows

__all__ = ["ReadyTokens", "open_tokens"]

WAYS = (
    "an .npz with the arrays 'values' (tokens, dim) and 'offsets' (documents + 1,), an .npy of values beside "
    "NAME.offsets.npy, a TokenEmbeddings, or a list of arrays of shape (tokens, dim)"
)


class ReadyTokens(Embeddings):
    """Ready token embeddings, a run of rows a document; memory holds the documents that are asked for.

    Attributes
    ----------
    offsets : ndarray of int64, shape (n + 1,)
        Where each document begins in the values, and the end of the last.
    """

    def __init__(self, values: Embeddings, offsets: NDArray[np.int64]) -> None:
        super().__init__(values.name, (len(offsets) - 1, values.dim), values.dtype, values._stored)
        self._values = values
        self.offsets = offsets

    def tokens(self, start: int, stop: int) -> TokenEmbeddings:
        """Return documents `start` to `stop`; quick when it goes on where the last call ended."""
        part = self.offsets[start : stop + 1]
        return TokenEmbeddings(self._values.rows(int(part[0]), int(part[-1])), part - part[0])

    def take_tokens(self, documents: NDArray[np.int64]) -> TokenEmbeddings:
        """Return chosen documents, in ascending order. One pass over the file."""
        rows, offsets = run_rows(self.offsets, documents)
        return TokenEmbeddings(self._values.take(rows), offsets)


class _NpzRows:
    """Rows of an array in an `.npz`, read in order; a step back starts from the beginning."""

    def __init__(self, path: Path, member: str) -> None:
        self.path, self.member = path, member
        self._stream: IO[bytes] | None = None
        self._rewind()

    def _rewind(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._archive = zipfile.ZipFile(self.path)
        self._stream = self._archive.open(self.member)
        version = np.lib.format.read_magic(self._stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, by_columns, self.dtype = read(self._stream)
        if by_columns and len(self.shape) > 1:
            raise ValueError("its columns come first; save np.ascontiguousarray(values)")
        self._position = 0

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        width = math.prod(self.shape[1:]) * self.dtype.itemsize
        with readable(self.path, ".npz"):
            if start < self._position:
                self._rewind()
            self._skip((start - self._position) * width)
            assert self._stream is not None
            data = self._stream.read((stop - start) * width)
        self._position = stop
        if len(data) < (stop - start) * width:
            raise InvalidArgumentError(f"{self.path} ends before row {stop} of {self.shape[0]}.")
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def _skip(self, size: int) -> None:
        assert self._stream is not None
        while size > 0 and (part := self._stream.read(min(size, 1 << 20))):
            size -= len(part)


def open_tokens(spec: Any, ids: Any = None, *, dim: int | None = None) -> ReadyTokens:
    """Open ready token embeddings without loading their values.

    Parameters
    ----------
    spec : str, Path, TokenEmbeddings or sequence of array_like
        ``x.npz`` with the arrays ``values`` (total, dim) and ``offsets`` (n + 1,); ``x.npy`` of values
        beside ``x.offsets.npy``; or in memory, an array of shape (tokens, dim) for each document too.
    ids : str, Path or sequence, optional
        One id a document, see `open_embeddings`.
    dim : int, optional
        The dimension that is needed.

    Raises
    ------
    InvalidArgumentError
        No such file, arrays that are not as described, another dimension, or another number of ids than documents.
    """
    if isinstance(spec, ReadyTokens):
        found = spec
    elif isinstance(spec, (str, Path)):
        found = _open_file(Path(spec).expanduser())
    else:
        tokens = _in_memory(spec)
        found = ReadyTokens(open_embeddings(tokens.values), tokens.offsets)
    if dim is not None and found.dim != dim:
        raise InvalidArgumentError(f"{found.name} must have {dim} dimensions. Got {found.dim}.")
    if ids is not None:
        count, found._ids = open_ids(ids)
        if count != len(found):
            raise InvalidArgumentError(f"{found.name} has {len(found):,} documents, but there are {count:,} ids.")
    return found


def _in_memory(spec: Any) -> TokenEmbeddings:
    if isinstance(spec, TokenEmbeddings):
        return spec
    many: Sequence[ArrayLike] = spec
    if not isinstance(spec, (list, tuple)) and not (isinstance(spec, np.ndarray) and spec.ndim == 3):
        raise InvalidArgumentError(f"Token embeddings must be {WAYS}. Got {type(spec).__name__}.")
    return TokenEmbeddings.from_list(many)


def _open_file(path: Path) -> ReadyTokens:
    if not path.is_file():
        raise InvalidArgumentError(f"No such file: {str(path)!r}.")
    if path.suffix == ".npz":
        return _open_npz(path)
    beside = path.with_name(f"{path.stem}.offsets.npy")
    if path.suffix != ".npy" or not beside.is_file():
        raise InvalidArgumentError(f"Token embeddings must be {WAYS}. Got {str(path)!r}.")
    values = open_embeddings(path)
    with readable(beside, ".npy"):
        offsets = np.load(beside, allow_pickle=False)
    return ReadyTokens(values, check_offsets(offsets, len(values), name=beside.name))


def _open_npz(path: Path) -> ReadyTokens:
    with readable(path, ".npz"):
        with np.load(path, allow_pickle=False) as archive:
            if not {"values", "offsets"} <= set(archive.files):
                raise InvalidArgumentError(f"{path} must be {WAYS}. It has {', '.join(archive.files)}.")
            offsets = archive["offsets"]
        stored = _NpzRows(path, "values.npy")
    if len(stored.shape) != 2 or stored.dtype.kind != "f" or stored.shape[0] < 0 or stored.shape[1] <= 0:
        raise InvalidArgumentError(
            f"'values' of {path} must be floats of shape (tokens, dim). Got {stored.dtype} {stored.shape}."
        )
    values = Embeddings(str(path), (stored.shape[0], stored.shape[1]), stored.dtype, stored)
    return ReadyTokens(values, check_offsets(offsets, len(values), name=f"offsets of {path.name}"))
