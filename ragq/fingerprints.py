"""Fingerprints of models: the SHA-256 of a folder's weights, and how two fingerprints differ in words."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["same_model", "weights_sha256"]

# One form of the weights is enough to identify a model: the first pattern that matches in a folder is taken.
_PATTERNS = ("model*.safetensors", "pytorch_model*.bin", "onnx/model.onnx", "model.onnx", "openvino/openvino_model.bin")

_SETTINGS = {
    "prompts": "prompts",
    "truncate_dim": "truncate_dim",
    "normalize": "normalisation",
    "skiplist": "skip-list",
    "query_length": "query_length",
    "query_expansion": "query expansion",
}


def weights_sha256(folder: str | Path) -> str | None:
    """Return the SHA-256 (hex) of the weights in a model folder; None when it holds no weights.

    One file gives its own digest. Several (parts, dense layers in subfolders) give the digest of the sorted lines
    ``<relative path> <digest>``. A file is read once per process as long as its size and time of change stay.
    """
    folder = Path(folder)
    modules = (
        sorted(path for path in folder.iterdir() if path.is_dir() and path.name[:1].isdigit())
        if folder.is_dir()
        else []
    )
    files = [file for place in (folder, *modules) for file in _weight_files(place)]
    if not files:
        return None
    digests = {file.relative_to(folder).as_posix(): _file_sha256(file) for file in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _weight_files(place: Path) -> list[Path]:
    for pattern in _PATTERNS:
        if files := sorted(place.glob(pattern)):
            return files
    return []


def _file_sha256(file: Path) -> str:
    stat = file.stat()
    return _cached_sha256(file.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _cached_sha256(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def same_model(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """Say how the model `b` differs from the model `a` as far as embeddings go; None when they agree.

    Models with the same weights are the same whatever their name or revision. Embeddings of which nobody knows the
    model (``kind`` ``"embeddings"``) and functions agree with anything of their dimension.

    Parameters
    ----------
    a, b : dict
        Fingerprints; `a` of the index, `b` of the model at hand.
    """
    if a.get("dim") != b.get("dim"):
        return f"{_named(a)} has {a.get('dim')} dimensions, {_named(b)} has {b.get('dim')}"
    unknown = ("callable", "embeddings")
    if a.get("kind") in unknown or b.get("kind") in unknown:
        return None
    tokens = [fingerprint.get("kind") == "multi-vector" for fingerprint in (a, b)]
    if tokens[0] != tokens[1]:
        return f"{_named(a)} gives {_kind(tokens[0])} in one, {_named(b)} gives {_kind(tokens[1])} in the other"
    known = a.get("weights_sha256") and b.get("weights_sha256")
    if known and a["weights_sha256"] != b["weights_sha256"]:
        return f"{_named(a)} and {_named(b)} have different weights"
    if not known and a.get("model") != b.get("model"):
        return f"the model is {_named(a)} in one and {_named(b)} in the other"
    for field, words in _SETTINGS.items():
        if field in a and field in b and a[field] != b[field]:
            return f"{_named(a)} has {words} {a[field]!r} in one and {b[field]!r} in the other"
    return None


def _kind(tokens: bool) -> str:
    return "one vector a token" if tokens else "one vector a text"


def _named(fingerprint: dict[str, Any]) -> str:
    name = str(fingerprint.get("model") or fingerprint.get("kind") or "an unknown model")
    revision, weights = fingerprint.get("revision"), fingerprint.get("weights_sha256")
    details = [f"revision {revision}"] if revision else []
    details += [f"sha256 {weights[:12]}"] if weights else []
    return f"{name} ({', '.join(details)})" if details else name
