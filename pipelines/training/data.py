"""The queries of a training run: which train, which validate, what is relevant, and the pools that steps score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import xxhash
from numpy.typing import NDArray

from ragq.checks import normalized
from ragq.errors import InvalidArgumentError
from ragq.pipelines.training.settings import Settings
from ragq.pipelines.training.vectors import Vectors

__all__ = ["Margins", "Pools", "TrainingQueries", "split", "twins"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Labels = Mapping[int, Mapping[int, int]]  # query -> document row -> grade
ALIKE = 0.85  # cosine from which two queries are twins
MOST_COMPARED = 10_000


@dataclass(frozen=True)
class Margins:
    """What a cross encoder gives some documents of each training query.

    Attributes
    ----------
    rows : ndarray of int64, shape (n_queries, m)
        Documents, padded with -1.
    scores : ndarray of float32, shape (n_queries, m)
        In the units of the dense scores.
    """

    rows: Rows
    scores: Floats


@dataclass(frozen=True)
class TrainingQueries:
    """Queries that train, and queries that do not.

    Attributes
    ----------
    queries : ndarray of float32, shape (n, dim)
        The user's own first.
    own : int
        How many are the user's own.
    labels : mapping of int to mapping of int to int
        Relevant document rows of training queries, with grades.
    validation : ndarray of float32, shape (v, dim)
    validation_labels : mapping
        As `labels`.
    margins : Margins, optional
        Of the training queries.
    rows : ndarray of int64, shape (n,)
        Where `split` found each training query: in the user's own, then in the made ones.
    """

    queries: Floats
    own: int
    validation: Floats
    labels: Labels = field(default_factory=dict)
    validation_labels: Labels = field(default_factory=dict)
    margins: Margins | None = None
    rows: Rows = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def unlabelled(self) -> TrainingQueries:
        """The same queries without their labels."""
        return replace(self, labels={}, validation_labels={})

    @property
    def fingerprint(self) -> str:
        """Hash of the queries, for resuming."""
        digest = xxhash.xxh3_128(np.ascontiguousarray(self.queries).data)
        digest.update(np.ascontiguousarray(self.validation).data)
        digest.update(repr((sorted((q, sorted(r.items())) for q, r in self.labels.items()), self.own)).encode())
        return digest.hexdigest()


def split(
    own: Floats, made: Floats, labels: Labels | None, held_out: float, seed: int, validation: Floats | None = None
) -> TrainingQueries:
    """Hold out a share of the user's own queries; of the made ones only when there are no others.

    Twins, queries that ask almost the same or have the same relevant documents, stay on one side: the gate would take
    what was learned by heart for progress.

    Parameters
    ----------
    own : ndarray of float32, shape (n, dim)
        The user's queries, with `labels` by row.
    made : ndarray of float32, shape (m, dim)
        Queries made from the documents.
    labels : mapping, optional
    held_out : float
        Share.
    seed : int
    validation : ndarray of float32, shape (v, dim), optional
        Queries that validate instead of a share of the others.

    Raises
    ------
    InvalidArgumentError
        Fewer than two queries.
    """
    if validation is not None:
        every = np.arange(len(own) + len(made))
        return TrainingQueries(np.concatenate([own, made]), len(own), validation, labels or {}, rows=every)
    source = own if len(own) else made
    if len(source) < 2:
        raise InvalidArgumentError(f"Training needs at least 2 queries, of which one validates. Got {len(source)}.")
    labels = (labels or {}) if len(own) else {}
    group = twins(source, labels)
    order = np.random.default_rng([seed, 0xA11]).permutation(group.max() + 1)
    sizes, count = np.bincount(group), max(1, round(held_out * len(source)))
    small = order[sizes[order] <= count]
    held = np.isin(group, small[: np.searchsorted(sizes[small].cumsum(), count, "right")])
    if not held.any():  # they are all twins of each other
        held = np.arange(len(source)) < count
    out, kept = np.flatnonzero(held), np.flatnonzero(~held)
    if not len(own):
        return TrainingQueries(made[kept], 0, made[out], rows=kept)
    return TrainingQueries(
        np.concatenate([own[kept], made]),
        len(kept),
        own[out],
        {new: labels[old] for new, old in enumerate(kept.tolist()) if old in labels},
        {new: labels[old] for new, old in enumerate(out.tolist()) if old in labels},
        rows=np.concatenate([kept, len(own) + np.arange(len(made))]),
    )


def twins(queries: Floats, labels: Labels) -> Rows:
    """Return the group of each query, (n,): one number for all that are alike or have the same relevant documents.

    Beyond `MOST_COMPARED` queries only the first of them are compared.
    """
    parent = np.arange(len(queries))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        a, b = sorted((root(i), root(j)))
        parent[b] = a

    compared = normalized(queries[:MOST_COMPARED])
    for start in range(0, len(compared), 512):
        close = np.argwhere(compared[start : start + 512] @ compared.T > ALIKE)
        for i, j in close[close[:, 0] + start < close[:, 1]]:
            join(start + int(i), int(j))
    first: dict[frozenset[int], int] = {}
    for query, grades in labels.items():
        relevant = frozenset(row for row, grade in grades.items() if grade > 0)
        if relevant:
            join(first.setdefault(relevant, query), query)
    roots = np.array([root(i) for i in range(len(queries))])
    return np.unique(roots, return_inverse=True)[1]


class Pools:
    """What each step scores: queries, and documents that they share.

    Parameters
    ----------
    vectors : Vectors
    data : TrainingQueries
    settings : Settings

    Attributes
    ----------
    whole : bool
        Whether every step scores all documents.
    """

    def __init__(self, vectors: Vectors, data: TrainingQueries, settings: Settings) -> None:
        self.data, self.settings, self.n = data, settings, len(vectors)
        scores, self.teacher = vectors.search(data.queries, settings.depth)
        self.whole = self.n <= settings.whole
        self.near = scores >= scores[:, : settings.positives].min(axis=1, keepdims=True) - 1e-6

    def batches(self, epoch: int) -> list[Rows]:
        """Return the queries of each step of an epoch: the user's own and as many others as it may have."""
        rng = np.random.default_rng([self.settings.seed, epoch, 1])
        own, total = self.data.own, len(self.data.queries)
        room = max(0, self.settings.queries_per_epoch - own)
        others = own + rng.permutation(total - own)[:room]
        order = rng.permutation(np.concatenate([np.arange(own), others]))
        return np.array_split(order, max(1, -(-len(order) // self.settings.batch)))

    def pool(self, queries: Rows, hard: Rows, epoch: int, step: int) -> Rows:
        """Return the sorted document rows that the queries of a step share: all, or those that were drawn.

        Parameters
        ----------
        queries : ndarray of int64, shape (B,)
        hard : ndarray of int64, shape (n_queries, depth)
            What the current index returns for all queries; -1 where nothing.
        """
        if self.whole:
            return np.arange(self.n)
        s, rng = self.settings, np.random.default_rng([self.settings.seed, epoch, step, 2])
        picks = [rng.integers(0, self.n, s.random), self.teacher[queries, : max(2, s.positives)].ravel()]
        for rows, count in ((self.teacher, s.top), (hard, s.hard)):
            places = rng.integers(0, rows.shape[1], (len(queries), count))
            picks.append(rows[queries[:, None], places].ravel())
        picks += [np.fromiter(self.data.labels[q], np.int64) for q in queries.tolist() if q in self.data.labels]
        if self.data.margins is not None:
            picks.append(self.data.margins.rows[queries].ravel())
        rows = np.unique(np.concatenate(picks))
        return rows[rows >= 0]

    def labelled(self, queries: Rows, pool: Rows) -> NDArray[np.bool_]:
        """Mark the relevant documents of each query by its labels, (B, P)."""
        found = np.zeros((len(queries), len(pool)), bool)
        for i, query in enumerate(queries.tolist()):
            if query in self.data.labels:
                found[i] = np.isin(pool, [row for row, grade in self.data.labels[query].items() if grade > 0])
        return found

    def positive(self, queries: Rows, pool: Rows) -> NDArray[np.bool_]:
        """Mark the relevant documents: by label, or else the teacher's first, (B, P)."""
        found = self.labelled(queries, pool)
        for i in np.flatnonzero(~found.any(axis=1)):
            query = queries[i]
            found[i] = np.isin(pool, self.teacher[query][self.near[query]])
        return found
