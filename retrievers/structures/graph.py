"""Graphs: a walk on neighbours finds candidates, the codes of the index rank them."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from ragq.retrievers.scan import default_threads, scan
from ragq.retrievers.structures.base import Allowed, Coverage, Floats, Found, Prepared, Probe, Structure
from ragq.retrievers.structures.chosen import Ranker
from ragq.select import pack_mask

__all__ = ["SCAN_SHARE", "GraphStructure"]

SCAN_SHARE = 128  # a search for more candidates than this part of the rows is a scan: measured, that is faster


class GraphStructure(Structure):
    """What searches on graphs share.

    A filter makes a search look for more candidates, by the share of the rows that it lets through, and for still more
    while fewer than k of them pass; where that comes to too many rows, those that pass are scanned.

    Parameters
    ----------
    ranker : Ranker
    coverage : Coverage
    ef_search : int
        Candidates of searches that do not say.
    """

    def __init__(self, ranker: Ranker, coverage: Coverage, ef_search: int) -> None:
        self.ranker, self.coverage, self.ef_search = ranker, coverage, ef_search

    @abstractmethod
    def near(self, queries: Floats, ef: int, threads: int) -> NDArray[np.int64] | None:
        """Return `ef` rows near each query, (n_queries, ef), with -1 for missing ones; None when it cannot."""

    def pays(self, allowed: Allowed, probe: Probe) -> bool:
        rows = (self.coverage.rows + 2 * allowed.count) // 3  # a scan that passes over half of the rows costs 2/3
        return not allowed.count or self._needed(probe, allowed) <= rows // SCAN_SHARE

    def _needed(self, probe: Probe, allowed: Allowed) -> int:
        """Return how many candidates to look for so that as many as without a filter may be returned."""
        return math.ceil((probe.ef_search or self.ef_search) * self.coverage.rows / allowed.count)

    def search(self, prepared: Prepared, k: int, allowed: Allowed, probe: Probe, threads: int | None) -> Found:
        n_queries = len(prepared.queries)
        scores, rows = np.full((n_queries, k), -np.inf, np.float32), np.full((n_queries, k), -1, np.int64)
        if not allowed.count or not n_queries:
            return scores, rows
        threads = default_threads() if threads is None else threads
        ef = max(self._needed(probe, allowed), math.ceil(k * self.coverage.rows / allowed.count))
        wanted = min(k, allowed.count)
        left = np.arange(n_queries)
        while len(left):
            found = self._candidates(prepared.queries[left], ef, allowed, threads)
            if found is None:
                break
            enough = (found >= 0).sum(axis=1) >= wanted
            done = left[enough]
            if len(done):
                part = prepared if len(done) == n_queries else prepared.part(done)
                best = self.ranker.topk(part, self.coverage.current(found[enough]), k, threads)
                scores[done], rows[done] = best[0], self.coverage.own(best[1])
            left, ef = left[~enough], 4 * ef  # what is near those queries is filtered out
        if len(left):
            scores[left], rows[left] = self._scan(prepared, left, k, allowed, threads)
        return scores, rows

    def _candidates(self, queries: Floats, ef: int, allowed: Allowed, threads: int) -> NDArray[np.int64] | None:
        """Return the allowed rows among `ef` near ones, -1 for others; None when so many are a scan."""
        if ef > self.coverage.rows // SCAN_SHARE:
            return None
        found = self.near(queries, ef, threads)
        return None if found is None else np.where((found >= 0) & allowed.rows[found], found, -1)

    def _scan(self, prepared: Prepared, which: NDArray[np.int64], k: int, allowed: Allowed, threads: int) -> Found:
        """Scan all allowed rows for some queries."""
        sizes = np.diff(self.ranker.starts)
        masks = [pack_mask(np.zeros(size, bool)) for size in sizes]
        for i, start, size in zip(self.coverage.shards, self.coverage.starts, self.coverage.sizes, strict=False):
            if i is not None:
                masks[i] = pack_mask(allowed.rows[start : start + size])
        parts = [scan(prepared.one(i), self.ranker.blocks, k, masks, threads) for i in which]
        return np.concatenate([s for s, _ in parts]), self.coverage.own(np.concatenate([r for _, r in parts]))
