"""The storage study of Huerga-Pérez et al. (arXiv 2505.00105) as a preset.

Float8, int8, binary; PCA, kernel PCA, UMAP, random projection and autoencoder at 25 to 90 % of the dimensions. Where
ragq has a method it comes twice: as a ragq spec (queries stay float32, scores are those of the decoded vectors, a real
index is built), and as the study does it (``study:...``): documents *and* queries are reduced, cast, and compared by
cosine in the reduced space. ``study:INT8raw`` compares the codes of int8 with offset and step left in, which is the
study's int8; ``study:INT8`` takes them out. The study fits PCA and the ranges of int8 on another data set; here they
are fitted on the documents themselves, for every method alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import normalized
from ragq.errors import missing_extra
from ragq.eval.systems import Built, System, rate, spec_systems
from ragq.select import topk
from ragq.storage import storage_errors

__all__ = ["CLAIM", "PRESETS", "StudySystem", "rag_storage"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Codes = NDArray[np.uint8]
Map = Callable[[Floats], Floats]

FIT_ROWS = 5000  # kernel PCA holds a matrix of this squared
SHARES = (0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Fitted:
    """A fitted map and the arrays that a reader of the index needs for it."""

    apply: Map
    state: dict[str, NDArray[Any]]


Fit = Callable[[Floats, int, int], Fitted]


def no_reduction(x: Floats, dim: int, seed: int) -> Fitted:
    """Keep all dimensions."""
    return Fitted(lambda y: y, {})


def pca(x: Floats, dim: int, seed: int) -> Fitted:
    """Centre and project on the leading principal components (scikit-learn's, as in the study)."""
    from sklearn.decomposition import PCA

    model = PCA(n_components=min(dim, len(x)), random_state=seed).fit(x)
    return Fitted(model.transform, {"mean": model.mean_, "components": model.components_})


def kernel_pca(x: Floats, dim: int, seed: int) -> Fitted:
    """Project on the leading components of an RBF kernel; keeps the documents that it was fitted on."""
    from sklearn.decomposition import KernelPCA

    model = KernelPCA(n_components=min(dim, len(x) - 1), kernel="rbf", random_state=seed).fit(x)
    return Fitted(model.transform, {"rows": model.X_fit_, "vectors": model.eigenvectors_, "values": model.eigenvalues_})


def umap(x: Floats, dim: int, seed: int) -> Fitted:
    """Lay the documents out by UMAP; keeps the documents that it was fitted on, and their layout."""
    try:
        from umap import UMAP
    except ImportError:
        raise missing_extra("umap-learn", "eval") from None
    model = UMAP(n_components=dim, metric="cosine", init="pca", random_state=seed, n_jobs=1).fit(x)
    return Fitted(lambda y: np.asarray(model.transform(y)), {"rows": x, "layout": model.embedding_})


REDUCERS: dict[str, Fit] = {"": no_reduction, "PCA": pca, "KPCA": kernel_pca, "UMAP": umap}


@dataclass(frozen=True)
class Cast:
    """A number type: floats to bytes, bytes to what the cosine sees, and the arrays that a reader needs."""

    encode: Callable[[Floats], Codes]
    decode: Callable[[Codes], Floats]
    state: dict[str, NDArray[Any]]


def float8(x: Floats) -> Cast:
    """Round to E4M3 without any scale, as the study does."""
    import torch

    def encode(y: Floats) -> Codes:
        return torch.from_numpy(np.ascontiguousarray(y)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    def decode(codes: Codes) -> Floats:
        return torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()

    return Cast(encode, decode, {})


def int8_raw(x: Floats) -> Cast:
    """Give each dimension's range 256 steps, and compare the codes as they are."""
    low = x.min(axis=0)
    step = (x.max(axis=0) - low) / 255
    step = np.where(step > 0, step, 1).astype(np.float32)

    def encode(y: Floats) -> Codes:
        return np.clip(np.round((y - low) / step), 0, 255).astype(np.uint8)

    return Cast(encode, lambda codes: codes.astype(np.float32), {"low": low, "step": step})


def int8(x: Floats) -> Cast:
    """The same codes, put back in their units."""
    raw = int8_raw(x)
    return Cast(raw.encode, lambda codes: codes * raw.state["step"] + raw.state["low"], raw.state)


def binary(x: Floats) -> Cast:
    """Keep 1 where a coordinate is above 0, else 0."""
    dim = x.shape[1]
    return Cast(
        lambda y: np.packbits(y > 0, axis=1),
        lambda codes: np.unpackbits(codes, axis=1, count=dim).astype(np.float32),
        {},
    )


CASTS: dict[str, Callable[[Floats], Cast]] = {"FP8": float8, "INT8raw": int8_raw, "INT8": int8, "BIN": binary}


class StudySystem:
    """One method of the study: reduce both sides, cast both sides, cosine.

    Parameters
    ----------
    reducer : str
        ``PCA``, ``KPCA``, ``UMAP``, or empty.
    share : float
        Of the dimensions that is kept; 1 without a reducer.
    cast : str
        ``FP8``, ``INT8raw``, ``INT8`` or ``BIN``.
    """

    def __init__(self, reducer: str, share: float, cast: str) -> None:
        self.reducer, self.share, self.cast = reducer, share, cast
        head = f"{reducer}{100 * share:g}%," if reducer else ""
        self.name = f"study:{head}{cast}"
        self.family = f"study {reducer or cast}"

    def build(self, documents: Floats, folder: Path, *, metric: str, seed: int) -> Built:
        """Fit, reduce and cast; codes and fitted arrays are written to `folder` to be weighed."""
        start = time.perf_counter()
        x = normalized(documents) if metric == "cosine" else np.asarray(documents, np.float32)
        rows = np.sort(np.random.default_rng(seed).choice(len(x), min(FIT_ROWS, len(x)), replace=False))
        dim = max(1, round(self.share * x.shape[1]))
        reduced = REDUCERS[self.reducer](x[rows], dim, seed)
        z = np.asarray(reduced.apply(x), np.float32)
        cast = CASTS[self.cast](z)
        codes = cast.encode(z)
        seconds = time.perf_counter() - start
        with storage_errors(folder, "write"):
            folder.mkdir(parents=True)
            np.save(folder / "codes.npy", codes)
            for name, array in {**reduced.state, **cast.state}.items():
                np.save(folder / f"{name}.npy", array)
        size = sum(path.stat().st_size for path in folder.iterdir())
        compared = normalized(cast.decode(codes))

        def encode(y: Floats) -> Codes:
            return cast.encode(np.asarray(reduced.apply(y), np.float32))

        def search(queries: Floats, k: int) -> Rows:
            y = normalized(queries) if metric == "cosine" else np.asarray(queries, np.float32)
            return topk(normalized(cast.decode(encode(y))) @ compared.T, k)[1]

        return Built(codes.shape[1], size, seconds, rate(encode, x, 512), search)


def rag_storage(dim: int) -> list[System]:
    """Return the systems of the study: its number types, its reductions at its compression points, and ragq's own."""
    halves = ("F16", "BF16", "FP8", "FP8e5m2", "FP4", "INT8", "INT4", "BIN")
    specs = [*halves, *(f"PCA{100 * share:g}%,FP8" for share in SHARES), "PCA50%,INT8", "PCA50%,BIN"]
    specs += [f"{method}{round(share * dim)},FP8" for method in ("RP", "AE") for share in (0.25, 0.5)]
    study = [StudySystem("", 1, cast) for cast in CASTS]
    study += [StudySystem("PCA", share, "FP8") for share in SHARES]
    study += [StudySystem("PCA", 0.5, cast) for cast in ("INT8raw", "INT8", "BIN")]
    study += [StudySystem(reducer, share, "FP8") for reducer in ("KPCA", "UMAP") for share in (0.25, 0.5)]
    return [*spec_systems(specs), *study]


# the study's claim: half the dimensions in float8 lose less than int8 does at four bytes to one
CLAIM = [("study:PCA50%,FP8", "study:INT8raw"), ("study:PCA50%,FP8", "study:INT8"), ("PCA50%,FP8", "study:INT8raw")]
CLAIM += [("PCA50%,FP8", "INT8"), ("study:FP8", "study:INT8raw"), ("study:FP8", "study:INT8"), ("FP8", "INT8")]

PRESETS: dict[str, Callable[[int], list[System]]] = {"rag-storage": rag_storage}
