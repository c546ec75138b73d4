"""What a sweep measures: anything that is built from embeddings and answers queries with rows.

`SpecSystem` is a ragq spec: a real index on disk with its shards, codes and kernels. The reducers of `ragq.eval.study`
and the peers of `ragq.eval.compare` are systems too, so that all share the measures, the table and the plot.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import ragq
from ragq.compressors import Chain
from ragq.errors import InvalidArgumentError
from ragq.pipelines.codecs import codec_digest, is_codec_folder, open_codec

__all__ = ["Built", "SpecSystem", "System", "Unbuildable", "index_bytes", "spec_systems"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Built:
    """A system over the documents of one data set.

    Attributes
    ----------
    code_bytes : float
        What one more vector adds.
    index_bytes : int
        Everything that search needs, on disk, measured with `stat`; text excluded.
    build_seconds : float
        Fit, encode and write.
    encode_rate : float
        Vectors a second through the fitted encoder alone.
    search : callable
        ``(queries (q, dim), k) -> rows (q, k)`` int64, best first, padded with -1.
    """

    code_bytes: float
    index_bytes: int
    build_seconds: float
    encode_rate: float
    search: Callable[[Floats, int], Rows]


class System(Protocol):
    """Something to measure.

    Attributes
    ----------
    name : str
        The spec, or what stands for it; unique in a sweep.
    family : str
        What the report toggles together.
    """

    name: str
    family: str

    def build(self, documents: Floats, folder: Path, *, metric: str, seed: int) -> Built:
        """Build over `documents` `(n, dim)`, writing to the empty `folder`."""


def index_bytes(folder: Path) -> int:
    """Return the bytes of an index on disk, without the documents' text: `stat` of every file but ``*.docs.arrow``."""
    return sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".docs.arrow")
    )


def rate(encode: Callable[[Floats], Any], documents: Floats, rows: int = 8192) -> float:
    """Return the vectors a second of `encode` over the first `rows` documents."""
    sample = np.ascontiguousarray(documents[:rows])
    start = time.perf_counter()
    encode(sample)
    return len(sample) / max(time.perf_counter() - start, 1e-9)


class SpecSystem:
    """A ragq spec, measured as users get it: a built index, opened and searched through its shards and kernels.

    Parameters
    ----------
    spec : str
        Or the folder of a trained codec, whose name is then its spec and the beginning of its hash.
    """

    def __init__(self, spec: str) -> None:
        compressor = open_codec(spec)
        self.codec = self.name = str(compressor)
        if is_codec_folder(spec):
            self.codec, self.name = spec, f"{compressor}@{codec_digest(spec)[:8]}"
        quantizer = compressor.quantizer if isinstance(compressor, Chain) else compressor
        letters = re.sub(r"[^A-Za-z].*", "", type(quantizer).__name__)
        self.family = "float" if letters in ("F", "BF") else letters

    def build(self, documents: Floats, folder: Path, *, metric: str, seed: int) -> Built:
        """Build an index of the documents alone, so that no text is in it."""
        ids = np.arange(len(documents)).astype(str)
        start = time.perf_counter()
        index = ragq.build(
            out=folder, codec=self.codec, embeddings=documents, ids=ids.tolist(), metric=metric, seed=seed
        )
        seconds = time.perf_counter() - start

        def search(queries: Floats, k: int) -> Rows:
            found = index.search_embeddings(queries, k).ids
            return np.where(found == None, "-1", found).astype(np.int64)  # noqa: E711

        compressor = index.compressor
        return Built(compressor.code_size, index_bytes(folder), seconds, rate(compressor.encode, documents), search)


class Unbuildable:
    """A spec that cannot be read: it fails in every run, so that the sweep reports it and goes on.

    Parameters
    ----------
    spec : str
    error : Exception
        What each run raises.
    """

    family = "failed"

    def __init__(self, spec: str, error: Exception) -> None:
        self.name = spec
        self.error = error

    def build(self, documents: Floats, folder: Path, *, metric: str, seed: int) -> Built:
        """Raise the error."""
        raise self.error


def spec_systems(specs: Iterable[str]) -> list[System]:
    """Return a system for each spec, each canonical spelling once."""
    systems: dict[str, System] = {}
    for spec in specs:
        try:
            system: System = SpecSystem(spec)
        except InvalidArgumentError as error:
            system = Unbuildable(spec, error)
        systems.setdefault(system.name, system)
    return list(systems.values())
