"""The sweep: every spec over every data set, measured the same way, resumable.

One run is one spec on one data set: build the index, answer every query, compare with the judgements and with exact
float32 search. A run that fails is kept with its error and the rest goes on. With a folder, each finished run is a JSON
file under ``runs/``; an interrupted sweep reads those whose inputs are the same and measures the others.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

import ragq
from ragq.eval.datasets import Dataset
from ragq.eval.exact import Exact
from ragq.eval.metrics import MEASURES, evaluate
from ragq.eval.systems import System
from ragq.eval.vectors import Vectors
from ragq.storage import storage_errors, write_bytes

__all__ = ["AGREEMENT", "DEPTH", "Result", "Settings", "sweep"]

DEPTH = 100  # documents asked for each query
SHOWN = 10  # documents kept for the report
LATENCY_QUERIES = 200  # searched one at a time,
LATENCY_SECONDS = 2.0  # or fewer, when they take longer than this
AGREEMENT = ("agreement@10", "agreement@100", "rbo")  # with exact float32 search; always measured


@dataclass(frozen=True)
class Settings:
    """What all runs of a sweep share; part of the key of a finished run.

    Attributes
    ----------
    metric : str
        Of the embeddings: ``cosine``, ``ip`` or ``l2``.
    seed : int
        For fitting and for the bootstrap.
    measures : tuple of str
        See `ragq.eval.metrics`.
    """

    metric: str = "cosine"
    seed: int = 0
    measures: tuple[str, ...] = MEASURES


@dataclass
class Result:
    """One run.

    Attributes
    ----------
    dataset, spec, family : str
    queries : list of str
        Query ids, in the order of `by_query`.
    by_query : dict of str to list of float
        Measure name to its value for each query.
    top : list of list of int
        Rows of the best documents of each query, for the report.
    numbers : dict of str to float
        ``code_bytes``, ``index_bytes_per_vector``, rates, latencies and memory.
    unanswered : int
        Judged queries without an answer; they score 0.
    error : str, optional
        Why the run failed; everything else is empty then.
    """

    dataset: str
    spec: str
    family: str
    queries: list[str] = field(default_factory=list)
    by_query: dict[str, list[float]] = field(default_factory=dict)
    top: list[list[int]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    unanswered: int = 0
    error: str | None = None

    def mean(self, measure: str) -> float:
        """Return the mean of a measure over the queries."""
        return float(np.mean(self.by_query[measure]))


def sweep(
    systems: Sequence[System],
    data: Sequence[tuple[Dataset, Vectors]],
    settings: Settings | None = None,
    *,
    out: Path | None = None,
    tick: Callable[[Result, bool], None] | None = None,
) -> list[Result]:
    """Measure every system on every data set.

    Parameters
    ----------
    systems : sequence of System
    data : sequence of (Dataset, Vectors)
    settings : Settings, optional
    out : Path, optional
        Folder that keeps finished runs; a sweep into the same folder measures only what is missing.
    tick : callable, optional
        Called with each result, and whether it was read from `out`.

    Returns
    -------
    list of Result
        Data set by data set, in the order of `systems`.
    """
    settings = settings or Settings()
    results = []
    for dataset, vectors in data:
        exact: Exact | None = None
        for system in systems:
            path = None if out is None else _path(out, system, dataset, vectors, settings)
            result = None if path is None else _read(path)
            kept = result is not None
            if result is None:
                exact = exact or Exact.search(vectors.documents, vectors.queries, DEPTH, settings.metric)
                result = measure(system, dataset, vectors, exact, settings)
                if path is not None and result.error is None:
                    _write(path, result)
            if tick is not None:
                tick(result, kept)
            results.append(result)
    return results


def measure(system: System, dataset: Dataset, vectors: Vectors, exact: Exact, settings: Settings) -> Result:
    """Run one system on one data set; a failure becomes `Result.error`."""
    result = Result(dataset.name, system.name, system.family)
    folder = Path(tempfile.mkdtemp(prefix="ragq-eval-"))
    try:
        _measure(result, system, dataset, vectors, exact, settings, folder / "index")
    except Exception as error:  # whatever a codec does wrong, the other specs are still measured
        return Result(dataset.name, system.name, system.family, error=f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _measure(
    result: Result,
    system: System,
    dataset: Dataset,
    vectors: Vectors,
    exact: Exact,
    settings: Settings,
    folder: Path,
) -> None:
    with peak_memory() as peak:
        built = system.build(vectors.documents, folder, metric=settings.metric, seed=settings.seed)
        start = time.perf_counter()
        rows = built.search(vectors.queries, min(DEPTH, len(vectors.documents)))
        seconds = time.perf_counter() - start
        latencies = _latencies(built.search, vectors.queries)
    result.queries = list(dataset.query_ids)
    result.top = [[int(row) for row in found[:SHOWN] if row >= 0] for found in rows]
    result.by_query = {
        "agreement@10": exact.agreement(rows, 10).tolist(),
        "agreement@100": exact.agreement(rows, 100).tolist(),
        "rbo": exact.rank_biased_overlap(rows).tolist(),
    }
    if dataset.qrels is not None:
        run = {
            query: [dataset.ids[row] for row in found if row >= 0]
            for query, found in zip(dataset.query_ids, rows, strict=True)
        }
        qrels = {query: dataset.qrels[query] for query in dataset.query_ids}
        scores = evaluate(run, qrels, settings.measures)
        result.by_query |= {name: values.tolist() for name, values in scores.values.items()}
        result.unanswered = scores.unanswered
    result.numbers = {
        "code_bytes": built.code_bytes,
        "index_bytes_per_vector": built.index_bytes / len(vectors.documents),
        "build_seconds": built.build_seconds,
        "encode_per_second": built.encode_rate,
        "queries_per_second": len(rows) / max(seconds, 1e-9),
        "p50_ms": float(np.percentile(latencies, 50) * 1e3),
        "p95_ms": float(np.percentile(latencies, 95) * 1e3),
        "peak_memory_mb": peak[0] / 2**20,
    }


def _latencies(search: Callable[[NDArray[np.float32], int], Any], queries: NDArray[np.float32]) -> list[float]:
    """Return the seconds of single searches of k = 10."""
    seconds: list[float] = []
    for query in queries[:LATENCY_QUERIES]:
        start = time.perf_counter()
        search(query[None, :], 10)
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > LATENCY_SECONDS:
            break
    return seconds


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Measure by how many bytes resident memory rose at its highest inside the block (Linux; elsewhere 0)."""
    peak = [0]
    start = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # makes VmHWM start again from now
    except OSError:
        start = 0
    yield peak
    peak[0] = max(0, _resident("VmHWM") - start) if start else 0


def _resident(name: str) -> int:
    """Return a line of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _path(out: Path, system: System, dataset: Dataset, vectors: Vectors, settings: Settings) -> Path:
    """Return where a run is kept: the name is the hash of everything it depends on."""
    key = [
        dataset.name,
        dataset.fingerprint,
        vectors.fingerprint,
        system.name,
        asdict(settings),
        DEPTH,
        ragq.__version__,
    ]
    digest = xxhash.xxh3_128(json.dumps(key).encode()).hexdigest()
    return out / "runs" / f"{digest}.json"


def _read(path: Path) -> Result | None:
    """Return a kept run; None when there is none or the file is damaged."""
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, result: Result) -> None:
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(asdict(result)).encode())
