"""Compressors of an index: fitted state to a file and back, and embeddings to codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray

from ragq.checks import normalized
from ragq.compressors import Chain, Compressor, from_spec
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.manifest import MANIFEST, FileEntry, Manifest, ShardEntry
from ragq.storage import write_bytes
from ragq.tokens import TokenEmbeddings

__all__ = [
    "SHARD_BYTES",
    "SHARD_ROWS",
    "encode",
    "full_shard",
    "is_small",
    "learns",
    "load_compressor",
    "save_compressor",
]


SHARD_ROWS = 65_536
SHARD_BYTES = 24 << 20  # of codes, which a shard's writer holds in memory


def full_shard(code_size: int, rows: int | None = None) -> int:
    """Return the rows of a full shard: `rows` (65,536), but no more than its writer may hold in memory."""
    return max(1, min(rows or SHARD_ROWS, SHARD_BYTES // code_size))


def is_small(entry: ShardEntry, shard_rows: int) -> bool:
    """Tell whether a shard is less than half full, by its rows and by its bytes."""
    return entry.rows < shard_rows // 2 and entry.codes.size < SHARD_BYTES // 2


def encode(compressor: Any, x: Any, normalize: bool) -> Any:
    """Return the codes of checked embeddings, scaled to unit length first when the index does that."""
    if isinstance(x, TokenEmbeddings):
        return compressor.encode(x.normalized() if normalize else x)
    return compressor.encode(normalized(x) if normalize else x)


def load_compressor(folder: Path, manifest: Manifest, state: dict[str, NDArray[Any]]) -> Compressor:
    """Build the compressor of an index from its spec and its saved arrays.

    Raises
    ------
    CorruptIndexError
        The arrays do not belong to the spec, or the sizes differ from the manifest's.
    """
    path = folder / manifest.compressor.name
    try:
        compressor = from_spec(manifest.spec).load_state(state)
    except InvalidArgumentError as error:
        raise CorruptIndexError(f"{folder / MANIFEST} names a codec that this ragq does not know: {error}") from None
    except CorruptIndexError as error:
        raise CorruptIndexError(f"{path}: {error}") from None
    if compressor.dim != manifest.dim or str(compressor.layout) != manifest.layout:
        raise CorruptIndexError(
            f"{path} is the state of another compressor than {manifest.spec} of {manifest.dim} dimensions."
        )
    return compressor


def save_compressor(folder: Path, compressor: Any) -> FileEntry:
    """Write a compressor's state under a name made from its content."""
    arrays = {name: np.ascontiguousarray(array) for name, array in compressor.state.items()}
    data = safetensors.numpy.save(arrays, metadata={"spec": str(compressor)})
    digest = xxhash.xxh3_128_hexdigest(data)
    name = f"compressor-{digest[:16]}.safetensors"
    write_bytes(folder / name, data)
    return FileEntry(name, len(data), digest)


def learns(compressor: Compressor) -> bool:
    """Tell whether fitting looks at the data."""
    stages = compressor.stages if isinstance(compressor, Chain) else [compressor]
    return any(stage.state_names for stage in stages)
