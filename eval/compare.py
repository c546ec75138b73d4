"""The codecs of other libraries in the same sweep: faiss, turbovec, rabitqlib and usearch over the same embeddings.

A peer is named by its library, or library and codec (``faiss:PQ48x8``). Its index bytes are those of the file that the
library saves; its code bytes are the library's own number, or what a vector adds to that file. All of them search by
inner product, over unit vectors for the cosine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import normalized
from ragq.errors import InvalidArgumentError
from ragq.eval.peers import load, ordered
from ragq.eval.systems import Built, System, rate
from ragq.storage import storage_errors

__all__ = ["PeerSystem", "peer_systems"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Search = Callable[[Floats, int], Rows]
# what a library is asked to make: `(documents, codec, file) -> (search, code bytes, encode or None)`
Maker = Callable[[Floats, str, Path], tuple[Search, float, Callable[[Floats], Any] | None]]


def faiss_index(documents: Floats, codec: str, file: Path) -> tuple[Search, float, Callable[[Floats], Any] | None]:
    """Make an index by faiss's factory string."""
    faiss = load("faiss")
    index = faiss.index_factory(documents.shape[1], codec, faiss.METRIC_INNER_PRODUCT)
    index.train(documents)
    index.add(documents)
    faiss.write_index(index, str(file))
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    fast = isinstance(inner, faiss.IndexFastScan)  # its sa_code_size is not the size of what it stores
    code_bytes = inner.M2 * inner.nbits / 8 if fast else index.sa_code_size()
    return lambda queries, k: index.search(queries, k)[1], code_bytes, None if fast else index.sa_encode


def turbovec_index(documents: Floats, codec: str, file: Path) -> tuple[Search, float, Callable[[Floats], Any] | None]:
    """Make turbovec's flat index of ``2bit`` or ``4bit`` codes, each with a float32 norm."""
    turbovec = load("turbovec")
    bits, dim = int(codec.removesuffix("bit")), documents.shape[1]
    index = turbovec.TurboQuantIndex(dim, bits)
    index.add(documents)
    index.write(str(file))
    return lambda queries, k: np.asarray(index.search(queries, k)[1], np.int64), dim * bits / 8 + 4, None


def rabitqlib_index(documents: Floats, codec: str, file: Path) -> tuple[Search, float, Callable[[Floats], Any] | None]:
    """Make RaBitQLib's IVF with one cluster, centred on the mean: a scan."""
    bits = int(codec.removesuffix("bit"))
    sizes = []
    for part in (documents[: len(documents) // 2], documents):
        index = load("rabitqlib").IvfIndex(documents.shape[1], len(part), 1, bits, metric="ip")
        index.build(part, part.mean(axis=0, keepdims=True), np.zeros(len(part), np.uint32), num_threads=1)
        index.save(str(file))
        sizes.append(file.stat().st_size)
    added = (sizes[1] - sizes[0]) / (len(documents) - len(documents) // 2)
    return lambda queries, k: ordered(index.search(queries, k, nprobe=1, num_threads=1)), round(added, 1), None


def usearch_index(documents: Floats, codec: str, file: Path) -> tuple[Search, float, Callable[[Floats], Any] | None]:
    """Make usearch's graph over ``f16``, ``bf16`` or ``i8`` rows, searched exactly."""
    usearch = load("usearch.index")
    index = usearch.Index(ndim=documents.shape[1], metric="ip", dtype=codec)
    index.add(np.arange(len(documents)), documents)
    index.save(str(file))
    width = {"f16": 2, "bf16": 2, "i8": 1}[codec]

    def search(queries: Floats, k: int) -> Rows:
        return np.asarray(index.search(queries, k, exact=True).keys, np.int64).reshape(len(queries), k)

    return search, documents.shape[1] * width, None


def faiss_codecs(dim: int) -> list[str]:
    """Return factory strings that train in seconds; slower ones (``faiss:OPQ48,PQ48x8``) are there by name."""
    scalar = ["SQ8", "SQ4", f"RR{dim},SQtqmse4", f"RR{dim},SQtqmse2", f"RR{dim},SQtqmse1", "RaBitQ"]
    return [*scalar, *(f"PQ{m}x4fs" for m in (192, 96, 64, 48, 32) if dim % m == 0 and m < dim)]


LIBRARIES: dict[str, tuple[Maker, Callable[[int], Sequence[str]]]] = {
    "faiss": (faiss_index, faiss_codecs),
    "turbovec": (turbovec_index, lambda dim: ["4bit", "2bit"]),
    "rabitqlib": (rabitqlib_index, lambda dim: ["4bit", "2bit", "1bit"]),
    "usearch": (usearch_index, lambda dim: ["f16", "i8"]),
}


class PeerSystem:
    """One codec of another library.

    Parameters
    ----------
    library : str
    codec : str
        In the library's own words.
    """

    def __init__(self, library: str, codec: str) -> None:
        self.library, self.codec = library, codec
        self.name = f"{library}:{codec}"
        self.family = library

    def build(self, documents: Floats, folder: Path, *, metric: str, seed: int) -> Built:
        """Build, save and weigh the library's index."""
        if metric == "l2":
            raise InvalidArgumentError("The peers are compared by inner product or cosine, not by l2.")
        start = time.perf_counter()
        x = np.ascontiguousarray(normalized(documents) if metric == "cosine" else documents, np.float32)
        with storage_errors(folder, "write"):
            folder.mkdir(parents=True)
        search, code_bytes, encode = LIBRARIES[self.library][0](x, self.codec, folder / "index")
        seconds = time.perf_counter() - start

        def rows(queries: Floats, k: int) -> Rows:
            return search(np.ascontiguousarray(normalized(queries) if metric == "cosine" else queries), k)

        speed = len(x) / seconds if encode is None else rate(encode, x)
        size = sum(path.stat().st_size for path in folder.iterdir())
        return Built(code_bytes, size, seconds, speed, rows)


def peer_systems(names: Sequence[str], dim: int) -> list[System]:
    """Return the systems of libraries (``faiss``) or of single codecs (``faiss:PQ48x8``).

    Raises
    ------
    InvalidArgumentError
        An unknown library.
    MissingExtraError
        It is not installed.
    """
    systems: list[System] = []
    for name in names:
        library, colon, codec = name.partition(":")
        if library not in LIBRARIES:
            raise InvalidArgumentError(f"There is no peer '{library}'. There: {', '.join(LIBRARIES)}.")
        load(library)
        systems += [PeerSystem(library, part) for part in ([codec] if colon else LIBRARIES[library][1](dim))]
    return systems
