"""Counters, gauges and histograms in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

__all__ = ["Metrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
QUERIES = (1, 2, 4, 8, 16, 32, 64)
HELP = {
    "ragq_requests_total": ("counter", "Requests by path and status."),
    "ragq_request_seconds": ("histogram", "Time from the headers of a request to its answer, by path."),
    "ragq_batch_queries": ("histogram", "Queries that were scanned together."),
    "ragq_scan_seconds": ("histogram", "Time of a scan of all shards for one batch."),
    "ragq_waiting_queries": ("gauge", "Queries that wait for their turn."),
    "ragq_generation": ("gauge", "Generation of the index that is served."),
    "ragq_documents": ("gauge", "Documents of that generation."),
    "ragq_index_bytes": ("gauge", "Bytes of that generation on the disk."),
    "ragq_replicas": ("gauge", "Replicas that answer."),
    "ragq_replica_restarts_total": ("counter", "Replicas that had to be started again."),
    "ragq_reloads_total": ("counter", "Generations that were taken up."),
    "ragq_reload_failures_total": ("counter", "Generations that could not be taken up."),
}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What a server counts; used from one thread."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._buckets: dict[str, dict[Labels, list[int]]] = defaultdict(dict)

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._values[name][tuple(labels.items())] += value

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._values[name][()] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count a value in a histogram."""
        key, bounds = tuple(labels.items()), QUERIES if name.endswith("_queries") else SECONDS
        counts = self._buckets[name].setdefault(key, [0] * (len(bounds) + 1))
        counts[bisect_left(bounds, value)] += 1
        self._values[name][key] += value

    def text(self) -> str:
        """Return everything, in the order of `HELP`."""
        lines = []
        for name, (kind, about) in HELP.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
            if kind == "histogram":
                for labels, counts in self._buckets[name].items():
                    lines += histogram(name, labels, counts, self._values[name][labels])
            else:
                lines += [f"{name}{braced(labels)} {value:g}" for labels, value in self._values[name].items()]
        return "\n".join(lines) + "\n"


def histogram(name: str, labels: Labels, counts: list[int], total: float) -> list[str]:
    """Return the lines of one histogram, its buckets cumulative."""
    bounds = QUERIES if name.endswith("_queries") else SECONDS
    lines, below = [], 0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        below += count
        lines.append(f"{name}_bucket{braced((*labels, ('le', bound)))} {below}")
    return [*lines, f"{name}_sum{braced(labels)} {total:.6f}", f"{name}_count{braced(labels)} {below}"]


def braced(labels: Labels) -> str:
    """Return labels as Prometheus writes them; their values are the server's own words."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""
