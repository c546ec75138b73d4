"""The embeddings of a data set: read where they are ready, made once where they are not.

An embedding pass is kept under the cache folder (``$RAGQ_CACHE``, else ``$XDG_CACHE_HOME/ragq``, else
``~/.cache/ragq``) by the model's fingerprint and the hash of the texts, so that many specs share one pass.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ragq.checks import check_embeddings
from ragq.errors import InvalidArgumentError
from ragq.eval.datasets import Dataset
from ragq.storage import storage_errors, write_bytes

__all__ = ["Vectors", "cache_folder", "embed", "ready"]

Floats = NDArray[np.float32]
BATCH = 4096  # texts handed to the model at a time


@dataclass(frozen=True)
class Vectors:
    """Embeddings of a data set.

    Attributes
    ----------
    documents : ndarray of float32, shape (n, dim)
    queries : ndarray of float32, shape (q, dim)
    model : str
        What made them, for the report.
    fingerprint : str
        Hash that decides whether a finished run can be used again.
    """

    documents: Floats
    queries: Floats
    model: str
    fingerprint: str

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return int(self.documents.shape[1])


def ready(dataset: Dataset, name: str, queries: Path | None = None) -> Vectors:
    """Read ``corpus.NAME.npy`` and ``queries.NAME.npy``, rows in the order of the JSON lines.

    Parameters
    ----------
    dataset : Dataset
    name : str
        For example ``minilm``.
    queries : Path, optional
        The queries file in use; its embeddings lie beside it. By default those of the data set's folder.

    Raises
    ------
    InvalidArgumentError
        A file is missing, or its rows are not those of the JSON lines.
    """
    if dataset.folder is None:
        raise InvalidArgumentError(
            f"'{dataset.name}' is not a folder, so it has no ready embeddings. Leave out --embeddings."
        )
    asked = dataset.folder / "queries.jsonl" if queries is None else queries
    documents = _read(dataset.folder / f"corpus.{name}.npy", len(dataset.ids), dataset.folder / "corpus.jsonl")
    every = _read(asked.with_name(f"{asked.stem}.{name}.npy"), dataset.queries_in_file, asked)
    if every.shape[1] != documents.shape[1]:
        raise InvalidArgumentError(
            f"The '{name}' embeddings of '{dataset.name}' have {documents.shape[1]} dimensions for documents and "
            f"{every.shape[1]} for queries."
        )
    chosen = every[dataset.query_rows]
    digest = xxhash.xxh3_128(np.ascontiguousarray(documents).data)
    digest.update(np.ascontiguousarray(chosen).data)
    return Vectors(documents, chosen, name, digest.hexdigest())


def _read(path: Path, rows: int, records: Path) -> Floats:
    if not path.is_file():
        known = sorted(p.name for p in path.parent.glob("*.npy"))
        raise InvalidArgumentError(f"There is no file '{path}'. Arrays there: {', '.join(known) or 'none'}.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidArgumentError(f"'{path}' is not a .npy file of floats: {error}.") from None
    if array.ndim != 2 or len(array) != rows:
        raise InvalidArgumentError(f"'{path}' has shape {array.shape}, but '{records.name}' has {rows} records.")
    return check_embeddings(array, name=path.name)


def cache_folder() -> Path:
    """Return the folder that keeps embedding passes."""
    if own := os.environ.get("RAGQ_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ragq"


def embed(
    dataset: Dataset, embedder: Any, cache: Path | None = None, tick: Callable[[int], None] | None = None
) -> Vectors:
    """Embed documents and queries, or read the pass that did so before.

    Parameters
    ----------
    dataset : Dataset
    embedder : ragq.embedders.Embedder
    cache : Path, optional
        `cache_folder` by default.
    tick : callable, optional
        Called with the number of texts after each batch.
    """
    label = json.dumps(embedder.fingerprint, sort_keys=True, default=str)
    keys, arrays = [], []
    for kind, texts in (("documents", dataset.passages), ("queries", dataset.queries)):
        digest = xxhash.xxh3_128(f"{kind}\n{label}\n".encode())
        for text in texts:
            digest.update(json.dumps(text).encode())
        keys.append(digest.hexdigest())
        path = (cache or cache_folder()) / "embeddings" / f"{keys[-1]}.npy"
        if not path.is_file():
            encode = embedder.encode_documents if kind == "documents" else embedder.encode_queries
            _save(path, _encode(encode, texts, tick))
        arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
    return Vectors(arrays[0], arrays[1], str(embedder.fingerprint.get("model", "model")), "".join(keys))


def _encode(encode: Callable[[list[str]], Floats], texts: Sequence[str], tick: Callable[[int], None] | None) -> Floats:
    parts = []
    for start in range(0, len(texts), BATCH):
        batch = list(texts[start : start + BATCH])
        parts.append(check_embeddings(encode(batch), name="embeddings"))
        if tick is not None:
            tick(len(batch))
    return np.concatenate(parts)


def _save(path: Path, array: Floats) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
