"""Learned lists: which part of an inverted file to look at, taught by the scan of all of it.

An inverted file puts rows into lists around k-means centroids and looks at the lists whose centroids are nearest to the
query. Where the best rows lie is another question, and queries answer it: with ``t`` the softmax of a query's best
scores by the scan, a list's share is ``t_l = sum of t over the rows that lie in it``, and trained are the centroids,
their radii and the projection of queries, so that

    loss = - sum_l t_l log softmax(r(q, l) / tau),    r(q, l) = <P q, c_l> + SPREAD |q| r_l.

A list has `KEYS` centroids, k-means of its rows, and the largest r counts: one centroid cannot tell in which directions
a list reaches far. That is the loss of Distill-VQ's inverted file (SIGIR 2022, section 3.3), summed exactly over all
lists instead of sampled documents. As in that paper the assignment of rows to lists stays fixed while it trains. The
codes here are not those of residuals, so that lists and codebooks have no parameter in common: training both at once is
training each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragq.checks import check_embeddings, normalized
from ragq.compressors import _cpu
from ragq.compressors.codebooks import cpu_threads, kmeans
from ragq.errors import InvalidArgumentError
from ragq.pipelines.progress import Progress, silent
from ragq.pipelines.restructure import Builder, commit
from ragq.retrievers.scan import scan
from ragq.retrievers.structures import hnsw
from ragq.retrievers.structures.base import Coverage, Prepared, load_arrays, save_arrays
from ragq.retrievers.structures.chosen import Ranker
from ragq.retrievers.structures.ivf import IVF, SPREAD, keys_of
from ragq.retrievers.structures.searcher import load_structure
from ragq.retrievers.structures.source import Source
from ragq.snapshot import Snapshot

if TYPE_CHECKING:
    import torch

    from ragq.pipelines.index import Index

__all__ = ["LearnedLists", "learn_lists"]

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
DEPTH = 100  # rows of a query that say where to look
K = 10  # of which these decide
TEMPERATURE = 0.05
RATE = 0.003  # of Adam, relative to the mean size of what it moves
BATCH = 64
EPOCHS = 40
PATIENCE = 8
HELD_OUT = 0.2
KEYS = 4  # centroids of a list
KEY_ROWS = 64  # of a sample, for each of them
KEY_ITERATIONS = 10
SHAPES = {"projection": ("f4", 2), "centroids": ("f4", 2), "radii": ("f4", 1), "offsets": ("i8", 1)}


@dataclass(frozen=True)
class LearnedLists:
    """What came of it.

    Attributes
    ----------
    nlist, nprobe : int
        Lists, and those that `start` and `value` look at: a tenth.
    start, value : float
        Share of the held-out queries' ten best rows that the first `nprobe` lists hold, before and after.
    epoch : int
        The epoch that was kept; 0 when training did not help, and the index is as it was.
    """

    nlist: int
    nprobe: int
    start: float
    value: float
    epoch: int

    @property
    def verdict(self) -> str:
        """What came of it, as a sentence."""
        found = f"{self.nprobe} of {self.nlist} lists hold {self.start:.1%} of the ten best rows"
        if not self.epoch:
            return f"Learning did not help: {found} before, and no epoch is above. The lists are as they were."
        return f"Learning helped: {found} before, {self.value:.1%} after epoch {self.epoch}, on held-out queries."


def learn_lists(
    index: Index, queries: ArrayLike, *, epochs: int = EPOCHS, seed: int = 0, progress: Progress = silent
) -> LearnedLists:
    """Train the lists of an index that has an inverted file, and keep them if held-out queries find more.

    Parameters
    ----------
    index : Index
        Opened with ``mode="w"``, with ``restructure("ivf")`` done.
    queries : array_like of float, shape (n, dim)
        Real or made ones; a fifth of them validates.
    epochs : int
    seed : int
    progress : callable

    Raises
    ------
    InvalidArgumentError
        No inverted file, an l2 index, or fewer than five queries.
    """
    described = index.manifest.structure
    if described is None or described.kind != "ivf" or index.manifest.metric == "l2":
        raise InvalidArgumentError(
            f"{index.path} has no inverted file by inner products. Build one first: ragq structure {index.path} ivf."
        )
    x = check_embeddings(queries, index.manifest.dim, name="queries")
    if len(x) < 5:
        raise InvalidArgumentError(f"Lists are learned from 5 queries or more, better 1,000. Got {len(x)}.")
    x = normalized(x) if index.manifest.normalize else x
    with index._writing() as transaction, Snapshot(index.path) as snapshot:
        builder = Builder(snapshot, index, transaction.prefix, seed, progress)
        coverage = Coverage(snapshot, described)
        ivf = load_structure(snapshot, described, coverage, Ranker(snapshot.shards), "ip")
        assert isinstance(ivf, IVF)
        blocks = [shard.block for shard in snapshot.shards]
        scores, rows = scan(Prepared(index.compressor, x, "ip").all, blocks, DEPTH, builder.masks)
        lists = ivf.lists.lists_of(np.maximum(coverage.own(rows), 0))
        arrays = load_arrays(snapshot.folder, described.files["lists"], SHAPES)
        several = arrays if len(arrays["centroids"]) > ivf.nlist else divided(arrays, builder.source, seed)
        scores = np.where(rows >= 0, scores, -np.inf)
        found, best = fit(arrays, several, x, scores, lists, epochs, seed, progress)
        if best is not None:
            name = f"structures/{transaction.prefix}"
            saved = save_arrays(snapshot.folder, f"{name}.lists.safetensors", arrays | best)
            files = dict(described.files) | {"lists": saved}
            if "graph" in files:
                graph = hnsw.new_graph(keys_of(best["centroids"], best["radii"], "ip"), "ip")
                files["graph"] = hnsw.save_graph(snapshot.folder, f"{name}.graph.hnsw", graph)
            described = replace(described, files=files)
            recall = described.parameters.get("asked", {}).get("recall", 0.95)
            tuned = builder.tune(described, x, recall)
            described = replace(described, parameters=described.parameters | tuned)
            commit(index, transaction, described)
    return found


def divided(known: Arrays, source: Source, seed: int) -> Arrays:
    """Return the arrays with `KEYS` centroids a list, in a sample of the rows, in place of one."""
    centroids, projection = known["centroids"], known["projection"]

    def needed(x: Floats) -> Floats:  # no more: whole rows of a large sample would fill the memory
        return np.column_stack([x @ projection.T, np.einsum("ij,ij->i", x, x)])

    sample = source.sample(KEY_ROWS * KEYS * len(centroids), seed, needed)
    reduced, squares = np.ascontiguousarray(sample[:, :-1]), sample[:, -1]
    lists, _ = _cpu.assign(reduced, centroids, cpu_threads())
    keys, radii = np.repeat(centroids, KEYS, axis=0), np.repeat(known["radii"], KEYS)
    for number in range(len(centroids)):
        rows = np.flatnonzero(lists == number)
        if len(rows) < KEYS:
            continue  # as they are: the best of equals
        part = np.ascontiguousarray(reduced[rows])
        words = kmeans(part, KEYS, iterations=KEY_ITERATIONS, seed=seed)
        nearest, _ = _cpu.assign(part, words, cpu_threads())
        used = np.bincount(nearest, minlength=KEYS)
        means = np.bincount(nearest, squares[rows], minlength=KEYS) / np.maximum(used, 1)
        own = slice(number * KEYS, (number + 1) * KEYS)
        keys[own][used > 0] = words[used > 0]
        radii[own][used > 0] = np.sqrt(np.maximum(means - (words**2).sum(axis=1), 0))[used > 0]
    return known | {"centroids": keys, "radii": radii}


def fit(
    known: Arrays,
    first: Arrays,
    queries: Floats,
    scores: Floats,
    lists: NDArray[np.int64],
    epochs: int,
    seed: int,
    progress: Progress,
) -> tuple[LearnedLists, Arrays | None]:
    """Train; return what came of it, and the arrays when they are better than the known ones.

    Parameters
    ----------
    known : dict
        What there is: ``projection`` (d, dim), ``centroids`` (keys * nlist, d) and ``radii`` (keys * nlist,).
    first : dict
        What training begins with, as `known`.
    queries : ndarray of float32, shape (n, dim)
    scores : ndarray of float32, shape (n, depth)
        Of the best rows by the scan, descending; -inf where there is none.
    lists : ndarray of int64, shape (n, depth)
        Where these rows lie.
    """
    import torch

    rng = np.random.default_rng([seed, 0x1F])
    order = rng.permutation(len(queries))
    held = max(1, round(HELD_OUT * len(queries)))
    out, kept = order[:held], order[held:]
    nlist = len(known["offsets"]) - 1
    nprobe = max(1, nlist // 10)
    parameters = trainable(first)
    groups = [{"params": [p], "lr": RATE * p.detach().abs().mean().item()} for p in parameters]
    optimizer = torch.optim.Adam(groups)
    rates = [group["lr"] for group in groups]
    wanted = torch.tensor(shares(scores, lists, nlist))
    asked = torch.tensor(queries)
    lengths = asked.norm(dim=1, keepdim=True)

    def closeness(parts: list[torch.nn.Parameter], which: NDArray[np.int64]) -> torch.Tensor:
        projection, centroids, widths = parts
        keys = asked[which] @ projection.T @ centroids.T + lengths[which] * widths
        return keys.unflatten(1, (nlist, -1)).amax(dim=2)

    def reached(parts: list[torch.nn.Parameter]) -> float:
        with torch.no_grad():
            probed = closeness(parts, out).topk(nprobe, dim=1).indices.numpy()
        real = np.isfinite(scores[out, :K])
        inside = (lists[out, :K, None] == probed[:, None, :]).any(axis=2)
        return float(inside[real].mean()) if real.any() else 1.0

    start, best, epoch = reached(trainable(known)), None, 0
    value, total, step = start, epochs * -(-len(kept) // BATCH), 0
    for number in range(1, epochs + 1):
        for batch in np.array_split(rng.permutation(kept), -(-len(kept) // BATCH)):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / total)
            logs = torch.log_softmax(closeness(parameters, batch) / TEMPERATURE, dim=1)
            loss = -(wanted[batch] * logs).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        now = reached(parameters)
        progress("lists", number, epochs)
        if now > value:
            value, epoch = now, number
            arrays = [p.detach().numpy().copy() for p in parameters]
            best = dict(zip(("projection", "centroids", "radii"), arrays, strict=True))
            best["radii"] /= np.float32(SPREAD)
        elif number - epoch >= PATIENCE:
            break
    return LearnedLists(nlist, nprobe, start, value, epoch), best


def trainable(arrays: Arrays) -> list[torch.nn.Parameter]:
    """Return projection, centroids and widths as parameters."""
    import torch

    first = (arrays["projection"], arrays["centroids"], SPREAD * arrays["radii"])
    return [torch.nn.Parameter(torch.tensor(array)) for array in first]


def shares(scores: Floats, lists: NDArray[np.int64], nlist: int) -> Floats:
    """Return how much of the softmax of a query's best scores lies in each list, (n, nlist)."""
    weights = np.exp((scores - scores[:, :1]) / TEMPERATURE)
    weights /= weights.sum(axis=1, keepdims=True)
    found = np.zeros((len(scores), nlist), np.float32)
    np.add.at(found, (np.arange(len(scores))[:, None], lists), weights)
    return found
