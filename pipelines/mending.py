"""Bytes of a damaged file as they were, where its checksum proves it: a bit turned back, a manifest put right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from ragq.errors import CorruptIndexError, IncompatibleIndexError, RagqError
from ragq.manifest import MANIFEST, Manifest, checksum
from ragq.pipelines.checkup import canonical
from ragq.storage import file_digest, inside, storage_errors

__all__ = ["MENDABLE", "mend_bit", "mend_manifest"]

MENDABLE = 64 << 10  # bytes of a file whose bits are tried one after the other
MENDABLE_MANIFEST = 16 << 10


def mend_bit(data: bytes, digest: str) -> bytes | None:
    """Return `data` with the one bit turned back that gives it its checksum; None when no bit does."""
    if len(data) > MENDABLE:
        return None
    tried = bytearray(data)
    for i in range(len(tried)):
        for bit in range(8):
            tried[i] ^= 1 << bit
            if xxhash.xxh3_128_hexdigest(tried) == digest:
                return bytes(tried)
            tried[i] ^= 1 << bit
    return None


def mend_manifest(folder: Path) -> bytes | None:
    """Return the bytes of a manifest as they were, when its checksum proves it; None when nothing does."""
    path = folder / MANIFEST
    with storage_errors(path, "read"):
        data = path.read_bytes()
    try:
        body = json.loads(data)
        claimed = body.pop("checksum", None)
    except (ValueError, RecursionError, AttributeError):
        body, claimed = None, None
    if isinstance(body, dict):
        actual = checksum(body)
        same = sum(a == b for a, b in zip(str(claimed), actual, strict=False))
        if same >= len(actual) - 2:  # 30 digits of 32 do not agree by chance: it is the checksum that was altered
            return written(path, body)
        if isinstance(claimed, str) and (found := measured(folder, body, claimed)) is not None:
            return written(path, found)
    if len(data) > MENDABLE_MANIFEST:
        return None
    tried = bytearray(data)
    for i in range(len(tried)):
        for bit in range(8):
            tried[i] ^= 1 << bit
            try:
                Manifest.load(path, bytes(tried))
            except (CorruptIndexError, IncompatibleIndexError):
                tried[i] ^= 1 << bit
            else:
                return bytes(tried) if canonical(bytes(tried)) else None
    return None


def written(path: Path, body: dict[str, Any]) -> bytes | None:
    """Return a manifest's JSON as it is written, when it is one."""
    body = {name: value for name, value in body.items() if name != "checksum"}
    data = (json.dumps(body | {"checksum": checksum(body)}, indent=1, ensure_ascii=False) + "\n").encode()
    try:
        Manifest.load(path, data)
    except RagqError:
        return None
    return data


def measured(folder: Path, body: dict[str, Any], claimed: str) -> dict[str, Any] | None:
    """Put what the files on the disk measure into a manifest; return it when its checksum is then right."""

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            if set(value) == {"name", "size", "xxh3"} and isinstance(value["name"], str):
                try:
                    path = inside(folder, value["name"])
                    value["size"], value["xxh3"] = path.stat().st_size, file_digest(path)
                except (RagqError, OSError):
                    return
            for part in value.values():
                visit(part)
        elif isinstance(value, list):
            for part in value:
                visit(part)

    visit(body)
    return body if checksum(body) == claimed else None
