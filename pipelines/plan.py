"""What an index of a given size would take: measured on a small one made for the purpose, and scaled up.

The small index is built from made-up embeddings (a mixture of Gaussians) or from rows of real ones, in a temporary
folder, by the same code as any other. Everything that is said of the large one names where it comes from: measured
here, computed from the format, extrapolated from what was measured, or assumed.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors import from_spec
from ragq.compressors.suggest import candidates, suggest
from ragq.errors import InvalidArgumentError
from ragq.layouts import Block, padded
from ragq.pipelines.api import build
from ragq.pipelines.build import SAMPLE
from ragq.pipelines.fitting import full_shard
from ragq.pipelines.index import Index
from ragq.pipelines.progress import Progress, silent
from ragq.pipelines.readers import open_embeddings
from ragq.retrievers.scan import scan
from ragq.retrievers.structures.ivf import default_nlist

__all__ = ["Measured", "Plan", "plan"]

Floats = NDArray[np.float32]
FLOAT_BYTES = 96 << 20  # of embeddings that are made up
MOST_ROWS = 65_536
FIT_ROWS = 16_384
SCANNED_BYTES = 64 << 20  # of codes: more than a cache holds
CLUSTERS = 256
ID_BYTES = 12  # a document in an ids file
MANIFEST_BYTES = 700  # a shard in the manifest
FEW, MANY = 4, 32  # lists that are probed to tell the cost of a row from that of a search
ASKED = 16
PASSAGE_WORDS = 150
EMBEDDED = 64


@dataclass(frozen=True)
class Measured:
    """Costs on this machine, with all its processors unless a name says otherwise.

    Attributes
    ----------
    rows : int
        Of the index that they were measured on.
    fit_seconds : float
        Fitting the codec on `fit_rows` embeddings.
    index_us : float
        Microseconds a row: reading ready embeddings, encoding, writing; one process.
    query_ms : float
        Milliseconds that a query takes to prepare.
    scan_ns : float
        Nanoseconds a row of a scan for one query, over more codes than a cache holds.
    probed_ns : float
        Nanoseconds a row of the lists that a search of inverted lists probes.
    centroid_ns : float
        Nanoseconds a centroid that it compares.
    state_bytes : int
        Of the fitted codec.
    embed_ms : float or None
        Milliseconds a passage of the model, when one was named.
    """

    rows: int
    fit_rows: int
    fit_seconds: float
    index_us: float
    query_ms: float
    scan_ns: float
    probed_ns: float
    centroid_ns: float
    state_bytes: int
    embed_ms: float | None


@dataclass(frozen=True)
class Plan:
    """What an index would take. See `to_dict` for what comes from where."""

    spec: str
    docs: int
    dim: int
    workers: int
    probe: float
    text_bytes: int
    hours_wanted: float
    code_bytes: int
    chosen: str
    measured: Measured

    @property
    def shard_rows(self) -> int:
        """Rows of a full shard."""
        return full_shard(self.code_bytes)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.docs // self.shard_rows)

    def sizes(self) -> dict[str, int]:
        """Return bytes by part, computed from the format."""
        codes = (self.docs // self.shard_rows) * padded(self.shard_rows) + padded(self.docs % self.shard_rows)
        return {
            "codes": codes * self.code_bytes,
            "ids": self.docs * ID_BYTES,
            "compressor": self.measured.state_bytes,
            "manifest": self.shards * MANIFEST_BYTES,
            "text": self.docs * self.text_bytes,
        }

    def memory(self) -> dict[str, int]:
        """Return bytes of memory, computed: of a server that scans from memory, and of a worker beside its model."""
        shard = self.shard_rows * self.code_bytes
        lists = default_nlist(self.docs) * self.dim * 4
        return {"scan": self.sizes()["codes"], "centroids": lists, "worker": 3 * shard + 4 * 8192 * self.dim * 4}

    def latency(self) -> dict[str, float]:
        """Return milliseconds of one query on this machine, extrapolated."""
        m, lists = self.measured, default_nlist(self.docs)
        probed = m.query_ms + 1e-6 * (lists * m.centroid_ns + self.docs * self.probe * m.probed_ns)
        return {"scan_ms": m.query_ms + 1e-6 * self.docs * m.scan_ns, "ivf_ms": probed}

    def seconds_of_work(self) -> float:
        """Return the seconds that one worker would need for all rows, extrapolated; the fit apart."""
        each = self.measured.index_us * 1e-6 + (self.measured.embed_ms or 0) * 1e-3
        return self.docs * each

    def hours(self, workers: int) -> float:
        """Return the hours that some workers need, the fit included."""
        fit = self.measured.fit_seconds * max(1.0, min(SAMPLE, self.docs) / self.measured.fit_rows)
        return (fit + self.seconds_of_work() / workers) / 3600

    def workers_wanted(self) -> int | None:
        """Return how many workers are done within the wanted hours; None when no number of them is."""
        left = self.hours_wanted - self.hours(1) + self.seconds_of_work() / 3600
        return None if left <= 0 else max(1, int(np.ceil(self.seconds_of_work() / 3600 / left)))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, sorted by where they come from."""
        sizes = self.sizes()
        return {
            "spec": self.spec,
            "docs": self.docs,
            "dim": self.dim,
            "machine": {"processors": processors(), "system": platform.machine(), "memory": machine_memory()},
            "measured": asdict(self.measured),
            "computed": {
                "code_bytes": self.code_bytes,
                "bytes": sizes,
                "total_bytes": sum(sizes.values()),
                "shards": self.shards,
                "shard_rows": self.shard_rows,
                "memory": self.memory(),
                "nlist": default_nlist(self.docs),
            },
            "extrapolated": {
                **{name: round(value, 3) for name, value in self.latency().items()},
                "hours": round(self.hours(self.workers), 4),
                "workers_wanted": self.workers_wanted(),
            },
            "assumed": {
                "workers": self.workers,
                "hours_wanted": self.hours_wanted,
                "probe": self.probe,
                "text_bytes": self.text_bytes,
                "codec": self.chosen,
                "embedding": "ready embeddings" if self.measured.embed_ms is None else "each passage by the model",
            },
        }


def plan(
    docs: float,
    dim: int | None = None,
    *,
    codec: str | None = None,
    budget: int | None = None,
    embeddings: Any = None,
    model: Any = None,
    workers: int = 1,
    hours: float = 24.0,
    probe: float = 0.01,
    text_bytes: int = 0,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress = silent,
) -> Plan:
    """Measure the costs of a row on this machine, and scale them to an index of some size.

    Parameters
    ----------
    docs : float
        Passages of the index, such as ``1e9``.
    dim : int, optional
        Dimensions; not needed with `embeddings`.
    codec : str, optional
        Compressor spec.
    budget : int, optional
        Code bytes a vector, instead of `codec`: with `embeddings` the best codec for them is chosen.
    embeddings : str, Path or ndarray, optional
        Real embeddings to measure with; made-up ones cost the same in most codecs, but tell nothing about quality.
    model : str, Path or Embedder, optional
        Measure what embedding costs, too.
    workers : int
        That index, each with the processors that this process has.
    hours : float
        Wanted; how many workers that takes is told.
    probe : float
        Share of the rows that a search of inverted lists looks at.
    text_bytes : int
        Of a passage, as stored.
    seed : int
    folder : str or Path, optional
        Where the temporary index goes; it is removed in any case.
    progress : callable
        ``progress(stage, done, total)``.

    Returns
    -------
    Plan
    """
    rows = check_int(int(docs), "docs", 1)
    if not 0 < probe <= 1:
        raise InvalidArgumentError(f"'probe' must be above 0 and at most 1. Got {probe!r}.")
    if not hours > 0:
        raise InvalidArgumentError(f"'hours' must be above 0. Got {hours!r}.")
    if (codec is None) == (budget is None):
        raise InvalidArgumentError("Give either 'codec' or 'budget'.")
    if embeddings is None and dim is None:
        raise InvalidArgumentError("Give 'dim', or embeddings to measure with.")
    progress("prepare", 0, 1)
    x = made_up(check_int(dim, "dim", 1), seed) if embeddings is None else real(embeddings, dim)
    progress("prepare", 1, 1)
    spec, chosen = choose(x, codec, budget, embeddings is not None, seed)
    with tempfile.TemporaryDirectory(prefix="ragq-plan-", dir=folder) as place:
        measured = measure(x, spec, Path(place), model, seed, progress)
    return Plan(
        spec=spec,
        docs=rows,
        dim=x.shape[1],
        workers=check_int(workers, "workers", 1),
        probe=probe,
        text_bytes=check_int(text_bytes, "text_bytes", 0),
        hours_wanted=hours,
        code_bytes=from_spec(spec).code_size_at(x.shape[1]),
        chosen=chosen,
        measured=measured,
    )


def choose(x: Floats, codec: str | None, budget: int | None, real: bool, seed: int) -> tuple[str, str]:
    """Return the spec, and why this one."""
    if codec is not None:
        return str(from_spec(codec)), "given"
    assert budget is not None
    if real:
        suggestion = suggest(x, check_int(budget, "budget", 1), seed=seed)
        return suggestion.spec, suggestion.reason
    fitting = list(candidates(x.shape[1], check_int(budget, "budget", 1), len(x)))
    spec = next((each for each in fitting if each.startswith("PQ")), fitting[0])
    return spec, f"stands for codecs within {budget} bytes; 'ragq index --budget {budget}' chooses one on your data"


def made_up(dim: int, seed: int) -> Floats:
    """Return unit vectors of a mixture of Gaussians, as many as there is room for."""
    rng = np.random.default_rng(seed)
    rows = max(2 * CLUSTERS, min(MOST_ROWS, FLOAT_BYTES // (4 * dim)))
    x = rng.standard_normal((rows, dim), np.float32)
    x += 1.5 * rng.standard_normal((CLUSTERS, dim), np.float32)[rng.integers(0, CLUSTERS, rows)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def real(embeddings: Any, dim: int | None) -> Floats:
    """Return rows of real embeddings, as many as there is room for."""
    opened = open_embeddings(embeddings, dim=dim)
    return opened.rows(0, max(1, min(len(opened), MOST_ROWS, FLOAT_BYTES // (4 * opened.dim))))


def measure(x: Floats, spec: str, place: Path, model: Any, seed: int, progress: Progress) -> Measured:
    """Build a small index and time its parts."""
    seconds: dict[str, float] = {}
    last: list[Any] = ["", time.perf_counter()]

    def told(stage: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        seconds[last[0]] = seconds.get(last[0], 0.0) + now - last[1]
        last[:] = stage, now
        progress(stage, done, total)

    ids = [str(i) for i in range(len(x))]
    sample = min(FIT_ROWS, len(x))
    with build(
        None, place / "plan.ragq", embeddings=x, ids=ids, codec=spec, sample=sample, seed=seed, progress=told
    ) as index:
        told("", 0, None)
        queries = x[:: max(1, len(x) // ASKED)][:ASKED]
        progress("scan", 0, 1)
        query_ms, scan_ns = time_scan(index, queries)
        progress("scan", 1, 1)
        probed_ns, centroid_ns = time_lists(index, queries, progress)
        state = index.manifest.compressor.size
    embed_ms = None if model is None else time_model(model)
    return Measured(
        rows=len(x),
        fit_rows=sample,
        fit_seconds=round(seconds.get("fit", 0.0), 3),
        index_us=round(1e6 * seconds.get("index", 0.0) / len(x), 3),
        query_ms=round(query_ms, 4),
        scan_ns=round(scan_ns, 4),
        probed_ns=round(max(probed_ns, scan_ns), 4),  # no row of a list costs less than one of a scan
        centroid_ns=round(centroid_ns, 4),
        state_bytes=state,
        embed_ms=None if embed_ms is None else round(embed_ms, 4),
    )


def best_of(call: Callable[[], Any], times: int = 5) -> float:
    """Return the seconds of the quickest of some calls, after one that does not count."""
    call()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def time_scan(index: Index, queries: Floats) -> tuple[float, float]:
    """Return milliseconds a query, and nanoseconds a row, of a scan over codes that are repeated beyond the caches."""
    shard, compressor = index._view.snapshot.shards[0], index.compressor
    codes = shard.block.codes(0, shard.rows)
    times = max(1, SCANNED_BYTES // max(1, codes.nbytes))
    layout = compressor.layout
    block = Block(layout, layout.pack(np.tile(codes, (times, 1))), times * len(codes))
    metric = index._view.score_metric
    prepare = best_of(lambda: compressor.scorer(queries[:1], metric)) * 1e3
    scorer = compressor.scorer(queries[:1], metric)
    return prepare, best_of(lambda: scan(scorer, [block], 10)) * 1e9 / block.rows


def time_lists(index: Index, queries: Floats, progress: Progress) -> tuple[float, float]:
    """Return nanoseconds a probed row and a centroid of a search of inverted lists."""
    rows = len(index)
    nlist = max(1, min(2 * MANY, rows // 64))
    if nlist < 2:
        return 0.0, 0.0
    index.restructure("ivf", nlist=nlist, progress=progress)
    few, many = min(FEW, nlist - 1), min(MANY, nlist)
    search = lambda nprobe: best_of(lambda: [index.search_embeddings(q, 10, nprobe=nprobe) for q in queries], 3)  # noqa: E731
    spent = (search(many) - search(few)) / len(queries)
    probed = max(0.0, spent) * 1e9 / (rows * (many - few) / nlist)
    centroids = np.ascontiguousarray(np.resize(queries, (8192, queries.shape[1])))
    return probed, best_of(lambda: centroids @ queries[0]) * 1e9 / len(centroids)


def time_model(model: Any) -> float:
    """Return the milliseconds that a model takes for a passage of 150 words."""
    from ragq.embedders import load_embedder

    embedder = load_embedder(model)
    words = ["index", "shard", "manifest", "code", "query", "passage", "document", "vector", "budget", "scan"]
    texts = [" ".join(words[(i * 7 + j * 3) % len(words)] for j in range(PASSAGE_WORDS)) for i in range(EMBEDDED)]
    return best_of(lambda: embedder.encode_documents(texts), 1) * 1e3 / len(texts)


def processors() -> int:
    """Return the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
