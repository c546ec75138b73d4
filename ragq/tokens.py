"""Multi-vector embeddings and codes: every document is a run of rows, and offsets say where it begins and ends.

Row `offsets[i]` to `offsets[i + 1]` (exclusive) of the values are the token embeddings of document `i`; a document may
have none. This is the layout of Arrow's list arrays and of ragged tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragq.checks import check_embeddings
from ragq.errors import InvalidArgumentError

__all__ = ["MultiVectorCodes", "TokenEmbeddings", "check_offsets", "run_rows"]

Floats = NDArray[np.float32]
Offsets = NDArray[np.int64]


def check_offsets(offsets: ArrayLike, total: int, *, name: str = "offsets") -> Offsets:
    """Return offsets as int64, or say what is wrong with them.

    Parameters
    ----------
    offsets : array_like of int, shape (n + 1,)
        From 0, never falling, to `total`.
    total : int
        Rows that they share out.
    name : str
        For messages.

    Raises
    ------
    InvalidArgumentError
        Not one-dimensional integers, or not as described.
    """
    array = np.asarray(offsets)
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
        raise InvalidArgumentError(f"'{name}' must be integers of shape (n + 1,). Got {array.dtype} {array.shape}.")
    whole = array.astype(np.int64)
    if whole[0] != 0 or whole[-1] != total or (np.diff(whole) < 0).any():
        falls = ", falling between" if (np.diff(whole) < 0).any() else ""
        raise InvalidArgumentError(
            f"'{name}' must rise from 0 to the number of rows, {total}. Got {whole[0]} to {whole[-1]}{falls}."
        )
    return whole


def run_rows(offsets: Offsets, which: NDArray[np.int64]) -> tuple[NDArray[np.int64], Offsets]:
    """Return the rows of some documents, run after run in the order of `which`, and the offsets that they then have."""
    counts = offsets[which + 1] - offsets[which]
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = np.repeat(offsets[which] - ends[:-1], counts) + np.arange(ends[-1])
    return rows, ends


def chosen(key: Any, n: int) -> NDArray[np.int64]:
    """Return document numbers for an index array or a boolean mask."""
    array = np.asarray(key)
    if array.dtype == bool and array.shape == (n,):
        return np.flatnonzero(array)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise InvalidArgumentError(f"Documents are chosen by their numbers or by {n:,} booleans. Got {array.dtype}.")
    whole = array.astype(np.int64)
    if len(whole) and (whole.min() < -n or whole.max() >= n):
        raise InvalidArgumentError(f"There are {n:,} documents. Got the number {int(whole[np.abs(whole).argmax()])}.")
    return np.where(whole < 0, whole + n, whole)


@dataclass(frozen=True, eq=False)
class TokenEmbeddings:
    """The token embeddings of some documents or queries; checked when it is made, and never written to.

    Parameters
    ----------
    values : array_like of float, shape (total, dim)
        One row a token, a document's rows after each other; becomes C-contiguous float32.
    offsets : array_like of int, shape (n + 1,)
        Where each document begins in `values`, and the end of the last; becomes int64.

    Raises
    ------
    InvalidArgumentError
        Values that are not finite floats of shape (total, dim), or offsets that do not share them out.

    Examples
    --------
    >>> x = TokenEmbeddings.from_list([np.ones((3, 2), np.float32), np.ones((1, 2), np.float32)])
    >>> len(x), x.dim, x.counts.tolist(), x[0].shape
    (2, 2, [3, 1], (3, 2))
    """

    values: Floats
    offsets: Offsets

    def __post_init__(self) -> None:
        values = check_embeddings(self.values, name="values")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", check_offsets(self.offsets, len(values)))

    @classmethod
    def _of(cls, values: Floats, offsets: Offsets) -> Self:
        """Make one of arrays that are known to be right."""
        made = object.__new__(cls)
        object.__setattr__(made, "values", values)
        object.__setattr__(made, "offsets", offsets)
        return made

    @classmethod
    def from_list(cls, documents: Iterable[ArrayLike], dim: int | None = None) -> Self:
        """Join arrays of shape (tokens, dim), one a document.

        Parameters
        ----------
        documents : iterable of array_like of float
        dim : int, optional
            Dimensions; needed only when there are no documents.

        Raises
        ------
        InvalidArgumentError
            An array of another shape or dimension (its number is named), or no documents and no `dim`.
        """
        arrays = [np.asarray(tokens) for tokens in documents]
        for i, tokens in enumerate(arrays):
            dim = tokens.shape[1] if dim is None and tokens.ndim == 2 else dim
            if tokens.ndim != 2 or tokens.shape[1] != dim:
                wanted = f"(tokens, {dim})" if dim is not None else "(tokens, dim)"
                raise InvalidArgumentError(f"Document {i} must have shape {wanted}. Got {tokens.shape}.")
        if dim is None:
            raise InvalidArgumentError("Token embeddings of no documents need 'dim'.")
        offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in arrays])]).astype(np.int64)
        values = np.concatenate(arrays) if arrays else np.empty((0, dim), np.float32)
        return cls(values, offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenEmbeddings]) -> Self:
        """Join the documents of several, in order; at least one, all of one dimension."""
        if not parts:
            raise InvalidArgumentError("There is nothing to join. Give at least one TokenEmbeddings.")
        dims = sorted({part.dim for part in parts})
        if len(dims) > 1:
            raise InvalidArgumentError(f"Token embeddings must have one dimension. Got {', '.join(map(str, dims))}.")
        return cls._of(np.concatenate([part.values for part in parts]), joined_offsets([p.offsets for p in parts]))

    @property
    def dim(self) -> int:
        """Dimensions of a token embedding."""
        return int(self.values.shape[1])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens of each document, shape (n,)."""
        return np.diff(self.offsets)

    @property
    def total(self) -> int:
        """Tokens of all documents."""
        return len(self.values)

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[Floats]:
        """Yield the token embeddings of each document, views of shape (tokens, dim)."""
        for start, stop in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True):
            yield self.values[start:stop]

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> Floats: ...

    @overload
    def __getitem__(self, key: slice | ArrayLike) -> TokenEmbeddings: ...

    def __getitem__(self, key: Any) -> Floats | TokenEmbeddings:
        """Return one document's array, or the documents of a slice (a view), of an index array or of a mask."""
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            row = int(chosen([int(key)], len(self))[0])
            return self.values[self.offsets[row] : self.offsets[row + 1]]
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                return self.take(np.arange(start, stop, step))
            part = self.offsets[start : max(start, stop) + 1]
            return self._of(self.values[part[0] : part[-1]], part - part[0])
        return self.take(chosen(key, len(self)))

    def take(self, which: ArrayLike) -> TokenEmbeddings:
        """Return a copy of the documents with the numbers `which`, in that order."""
        rows, offsets = run_rows(self.offsets, chosen(which, len(self)))
        return self._of(self.values[rows], offsets)

    def means(self) -> Floats:
        """Return the mean vector of each document, shape (n, dim); zeros for one without tokens."""
        sums = np.zeros((len(self), self.dim), np.float32)
        np.add.at(sums, np.repeat(np.arange(len(self)), self.counts), self.values)
        return sums / np.maximum(self.counts, 1).astype(np.float32)[:, None]

    def normalized(self) -> TokenEmbeddings:
        """Return the same with every token embedding scaled to unit length; rows of zeros stay.

        A row that has it but for rounding stays as it is, so that what comes out of a row depends on that row alone.
        """
        norms = np.sqrt(np.einsum("ij,ij->i", self.values, self.values))
        off = (np.abs(norms - 1) > 1e-6) & (norms > 0)
        if not off.any():
            return self
        values = self.values.copy()
        values[off] /= norms[off, None]
        return self._of(values, self.offsets)


@dataclass(frozen=True, eq=False)
class MultiVectorCodes:
    """The codes of some documents: what `MultiVectorCompressor.encode` gives and a shard holds.

    Attributes
    ----------
    codes : ndarray of uint8, shape (total, code_size)
        Row codes of the vectors that are kept of each document, a document's after each other.
    offsets : ndarray of int64, shape (n + 1,)
        Where each document begins in `codes`, and the end of the last.
    first : ndarray of uint8, shape (n, first_code_size), or None
        Row codes of the first stage, one a document; None without one.
    """

    codes: NDArray[np.uint8]
    offsets: Offsets
    first: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", check_offsets(self.offsets, len(self.codes)))
        if self.first is not None and len(self.first) != len(self):
            raise InvalidArgumentError(
                f"The first stage must have one code a document, {len(self)}. Got {len(self.first)}."
            )

    @classmethod
    def concatenate(cls, parts: Sequence[MultiVectorCodes]) -> Self:
        """Join the documents of several, in order; at least one, all with a first stage or all without."""
        first = [part.first for part in parts if part.first is not None]
        if not parts or len(first) not in (0, len(parts)):
            raise InvalidArgumentError("Codes to join must be there, and all with a first stage or all without.")
        return cls(
            np.concatenate([part.codes for part in parts]),
            joined_offsets([part.offsets for part in parts]),
            np.concatenate(first) if first else None,
        )

    @property
    def counts(self) -> NDArray[np.int64]:
        """Vectors of each document, shape (n,)."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, the first stage included, the offsets not."""
        return self.codes.nbytes + (0 if self.first is None else self.first.nbytes)

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.offsets) - 1

    def __getitem__(self, key: slice | ArrayLike) -> MultiVectorCodes:
        """Return the documents of a slice (a view), of an index array or of a mask."""
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            part = self.offsets[start : max(start, stop) + 1]
            first = None if self.first is None else self.first[start:stop]
            return type(self)(self.codes[part[0] : part[-1]], part - part[0], first)
        which = np.arange(len(self))[key] if isinstance(key, slice) else chosen(key, len(self))
        rows, offsets = run_rows(self.offsets, which)
        return type(self)(self.codes[rows], offsets, None if self.first is None else self.first[which])


def joined_offsets(parts: Sequence[Offsets]) -> Offsets:
    """Return the offsets of runs that are laid behind each other."""
    bases = np.concatenate([[0], np.cumsum([part[-1] for part in parts])]).astype(np.int64)
    return np.concatenate([np.zeros(1, np.int64), *(p[1:] + b for p, b in zip(parts, bases, strict=False))])
