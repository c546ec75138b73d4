"""Flat: no lists and no graph, every search is a scan. What a neighbour graph belongs to when there is nothing else."""

from __future__ import annotations

import numpy as np

from ragq.retrievers.structures.base import Allowed, Found, Prepared, Probe, Structure

__all__ = ["Flat"]


class Flat(Structure):
    """A structure that leaves every search to the scan."""

    kind = "flat"

    def pays(self, allowed: Allowed, probe: Probe) -> bool:
        return False

    def search(self, prepared: Prepared, k: int, allowed: Allowed, probe: Probe, threads: int | None) -> Found:
        shape = len(prepared.queries), k
        return np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
