"""What `Index.info` tells: what an index is and what its parts weigh."""

from __future__ import annotations

from typing import Any

from ragq.compressors import Compressor
from ragq.manifest import FORMAT, MANIFEST
from ragq.snapshot import Snapshot
from ragq.storage import storage_errors

__all__ = ["describe"]


def describe(snapshot: Snapshot, compressor: Compressor, *, compact_due: bool) -> dict[str, Any]:
    """Return JSON values; every size is measured with `stat`."""
    manifest, folder = snapshot.manifest, snapshot.folder

    def measured(names: list[str]) -> int:
        with storage_errors(folder, "measure the files of"):
            return sum((folder / name).stat().st_size for name in names)

    parts = {
        "codes": measured([s.codes.name for s in manifest.shards]),
        "ids": measured([s.ids.name for s in manifest.shards]),
        "deletes": measured([s.deletes.file.name for s in manifest.shards if s.deletes]),
        "compressor": measured([manifest.compressor.name]),
        "manifest": measured([MANIFEST]),
        "documents": measured([s.docs.name for s in manifest.shards]),
    }
    without_text = sum(parts.values()) - parts["documents"]
    rows = manifest.rows
    stored = sum(shard.rows for shard in manifest.shards)
    return {
        "path": str(folder),
        "format": FORMAT,
        "generation": manifest.generation,
        "documents": manifest.documents,
        "passages": rows,
        "deleted_passages": stored - rows,
        "shards": len(manifest.shards),
        "spec": manifest.spec,
        "layout": manifest.layout,
        "dim": manifest.dim,
        "metric": manifest.metric,
        "normalize": manifest.normalize,
        "model": (manifest.embedder or {}).get("model"),
        "embedder": manifest.embedder,
        "code_bytes": compressor.code_size,
        "index_bytes_per_vector": round(without_text / rows, 3) if rows else None,
        "compression_ratio": round(4 * manifest.dim / compressor.code_size, 2),
        "bytes": parts,
        "total_bytes": sum(parts.values()),
        "compact_due": compact_due,
    }
