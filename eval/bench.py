"""`ragq bench`: the kernels side by side with other libraries, on the serving path, top-k included.

One process and one thread each (but for the suite ``threads``), the same vectors, queries and k. A case is timed in
rounds: every contender once a round, in turning order, so that what slows the machine for a while slows all of them.
A row reports medians over the rounds; its ratio is the median of the rounds' ratios.

Times are per vector and query. ``ours`` is `ragq.retrievers.kernels.topk` after `Compressor.scorer`: tables are built
inside the time, as they are inside the peers'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.scorers import Scorer
from ragq.errors import MissingExtraError
from ragq.eval.bench_data import Vectors
from ragq.eval.exact import Exact
from ragq.eval.peers import Peer
from ragq.layouts import Block
from ragq.retrievers import kernels

__all__ = ["Bench", "Contender", "Row", "fastest_read"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
BANDWIDTH_BYTES = 2**28
SHORTEST = 0.02  # seconds a measurement lasts at least; shorter runs are looped
PATIENCE = 8.0  # seconds after which a slow contender of a case gets no further rounds
SLOW = 3.0  # seconds of a first call that stands as the only round


@dataclass(frozen=True)
class Contender:
    """Something that answers queries: ``run(queries, k) -> rows``.

    Attributes
    ----------
    queries : array of floats or packed bits
        What it is asked; `timed` of them, or all, when its time is taken.
    """

    name: str
    run: Callable[[Any, int], Rows]
    queries: Any
    timed: int | None = None

    @property
    def asked(self) -> Any:
        """The queries of a timed run."""
        return self.queries[: self.timed]


@dataclass(frozen=True)
class Row:
    """One case against one peer.

    Attributes
    ----------
    ours_ns, peer_ns : float
        Nanoseconds per vector and query, medians; `peer_ns` is None when there is no peer.
    ratio : float
        Median over the rounds of the peer's time over ours: above 1, ours is faster.
    recall, peer_recall : float
        Tie-aware Recall@10 against exact float32 search.
    of_exhaustive : float
        Share of the top 10 of our own exhaustive scan that our answer reaches; 1 where nothing is ruled out early.
    gb_per_s : float
        Code bytes of a vector over the time for a vector and query: for one query, the rate at which codes are read.
    bandwidth_gb_per_s : float
        What the machine reads with one thread, in the same rounds; see `fastest_read`.
    of_bandwidth : float
        Median over the rounds of the one rate over the other.
    """

    suite: str
    case: str
    ours_ns: float
    peer: str | None
    peer_ns: float | None
    ratio: float | None
    recall: float | None
    peer_recall: float | None
    of_exhaustive: float | None
    gb_per_s: float
    bandwidth_gb_per_s: float
    of_bandwidth: float
    rows: int
    code_bytes: int
    queries: int
    k: int
    rounds: int
    kernel: str
    clock: str
    data: str


@dataclass
class Bench:
    """The settings of a run, and what its cases share.

    Parameters
    ----------
    vectors : callable
        ``vectors(rows) -> Vectors``.
    queries : int
        Queries of the batch cases.
    repeats : int
        Rounds.
    rows : int, optional
        Rows of every suite, instead of each suite's own.
    tick : callable
        Called with a line of progress.
    cpu_time : bool
        Count the process's processor time instead of the time on the wall: for a machine that others use too.
    """

    vectors: Callable[[int], Vectors]
    queries: int = 64
    repeats: int = 5
    rows: int | None = None
    tick: Callable[[str], None] = lambda line: None
    cpu_time: bool = False
    skipped: dict[str, str] = field(default_factory=dict)

    @cached_property
    def read(self) -> Callable[[], Any]:
        """Read `BANDWIDTH_BYTES` of memory in one thread as fast as the machine can."""
        self.tick("choosing how to read memory")
        return fastest_read(self.now)

    @property
    def now(self) -> Callable[[], float]:
        """The clock, in seconds."""
        return time.process_time if self.cpu_time else time.perf_counter

    def data(self, rows: int) -> Vectors:
        """Return the vectors of a suite that by itself takes `rows`."""
        return self.vectors(self.rows or rows)

    def peers(self, *builders: Callable[[], Peer]) -> list[Peer]:
        """Build the peers whose libraries are installed; the others are noted in `skipped`."""
        built = []
        for builder in builders:
            try:
                peer = builder()
            except MissingExtraError as error:
                self.skipped[str(error)] = str(error)
                self.tick(f"skipped: {error}")
                continue
            self.tick(f"built {peer.name}")
            built.append(peer)
        return built

    def compare(
        self,
        suite: str,
        case: str,
        ours: Contender,
        peers: Sequence[Contender],
        *,
        k: int,
        rows: int,
        code_bytes: int,
        exact: Exact | None = None,
        exhaustive: Contender | None = None,
        data: str = "",
        wall: bool = False,
        patience: float | None = None,
    ) -> Iterator[Row]:
        """Time a case, with `wall` always on the wall, and yield a row a peer, or one without."""
        self.tick(f"{suite}: {case}")
        contenders = [ours, *peers]
        now = time.perf_counter if wall else self.now
        runs: list[Callable[[], Any]] = [partial(c.run, c.asked, k) for c in contenders]
        *seconds, reading = rounds([*runs, self.read], self.repeats, now, patience)
        n = len(ours.asked)
        ns = [np.array(times) * 1e9 / rows / n for times in seconds]
        read = BANDWIDTH_BYTES / np.array(reading) / 1e9
        both = min(len(read), len(ns[0]))
        recalls = [recall(exact, c, k) for c in contenders]
        own = None if exhaustive is None else reached(exhaustive, ours, k)
        mine = float(np.median(ns[0]))
        for i in range(1, max(2, len(contenders))):
            peer = contenders[i] if i < len(contenders) else None
            shared = min(len(ns[0]), len(ns[i])) if peer else 0
            yield Row(
                suite=suite,
                case=case,
                ours_ns=mine,
                peer=peer.name if peer else None,
                peer_ns=float(np.median(ns[i])) if peer else None,
                ratio=float(np.median(ns[i][:shared] / ns[0][:shared])) if peer else None,
                recall=recalls[0],
                peer_recall=recalls[i] if peer else None,
                of_exhaustive=own,
                gb_per_s=code_bytes / mine,
                bandwidth_gb_per_s=float(np.median(read)),
                of_bandwidth=float(np.median(code_bytes / ns[0][:both] / read[:both])),
                rows=rows,
                code_bytes=code_bytes,
                queries=n,
                k=k,
                rounds=shared or len(ns[0]),
                kernel=kernels.implementation(),
                clock="cpu" if now is time.process_time else "wall",
                data=data,
            )


def scan(
    prepare: Callable[[Floats], Scorer],
    block: Block,
    queries: Floats,
    *,
    name: str = "ragq",
    threads: int = 1,
    exact: bool = False,
    mask: NDArray[np.uint8] | None = None,
) -> Contender:
    """Return our own contender: prepare the queries, scan the block, select."""

    def run(floats: Floats, k: int) -> Rows:
        return kernels.topk(prepare(floats), block, k, mask, threads=threads, exact=exact)[1]

    return Contender(name, run, queries)


def rounds(
    runs: Sequence[Callable[[], Any]],
    repeats: int,
    now: Callable[[], float] = time.perf_counter,
    patience: float | None = None,
) -> list[list[float]]:
    """Time every run `repeats` times by the clock `now`, interleaved, with `patience` seconds for each if given.

    Returns
    -------
    list of list of float
        For each run, seconds a call by round; fewer rounds where `PATIENCE` ran out.
    """
    most, slow = (PATIENCE, SLOW) if patience is None else (patience, patience)
    seconds: list[list[float]] = [[] for _ in runs]
    loops, spent = [], []
    for run, times in zip(runs, seconds, strict=True):
        first = clock(run, 1, now)  # warm-up
        if first > slow:
            times.append(first)
            loops.append(1)
            spent.append(most + first)
            continue
        again = clock(run, 1, now)
        loops.append(max(1, round(SHORTEST / max(again, 1e-9))))
        spent.append(first + again)
    for turn in range(repeats):
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for i in order:
            if seconds[i] and spent[i] > most:
                continue
            elapsed = clock(runs[i], loops[i], now)
            spent[i] += elapsed * loops[i]
            seconds[i].append(elapsed)
    return seconds


def clock(run: Callable[[], Any], loops: int, now: Callable[[], float]) -> float:
    """Return seconds a call."""
    start = now()
    for _ in range(loops):
        run()
    return (now() - start) / loops


def fastest_read(now: Callable[[], float] = time.perf_counter, repeats: int = 5) -> Callable[[], Any]:
    """Return the faster of two reductions over a buffer beyond the caches: a scan is to be held against the best."""
    words = np.zeros(BANDWIDTH_BYTES // 8, np.uint64)
    words[:] = 1  # touch the pages: untouched ones are all the same page of zeros
    reductions: list[Callable[[], Any]] = [words.sum, partial(np.bitwise_or.reduce, words)]
    seconds = [float(np.median(times)) for times in rounds(reductions, repeats, now)]
    return reductions[int(np.argmin(seconds))]


def recall(exact: Exact | None, contender: Contender, k: int) -> float | None:
    """Return the mean tie-aware Recall@10 of a contender, or None without a reference."""
    if exact is None or k < 10:
        return None
    found = contender.run(contender.asked, k)[:, :10]
    part = Exact(exact.documents, exact.queries[: len(found)], exact.metric, exact.scores[: len(found)], exact.rows)
    return float(part.agreement(found, 10).mean())


def reached(exhaustive: Contender, ours: Contender, k: int) -> float:
    """Return the share of the exhaustive scan's top 10 that `ours` returns."""
    top = min(k, 10)
    right = exhaustive.run(exhaustive.queries, k)[:, :top]
    found = ours.run(ours.queries, k)[:, :top]
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(right, found, strict=True)]))


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as JSON objects."""
    return [asdict(row) for row in rows]
