"""What `Index.info` tells: what an index is and what its parts weigh."""

from __future__ import annotations

from typing import Any

import numpy as np

from ragq.compressors.usage import codebook_use
from ragq.manifest import MANIFEST, Manifest
from ragq.pipelines.fitting import is_small
from ragq.remote import address, measure
from ragq.snapshot import Snapshot

__all__ = ["compact_due", "describe"]

DELETED = 0.25  # share of deleted rows from which `compact` is due
SMALL_SHARDS = 16  # and number of small shards
LACKING = 0.02  # and share of rows that are scanned beside a structure, which may be a hundred times faster


def describe(snapshot: Snapshot, compressor: Any, shard_rows: int) -> dict[str, Any]:
    """Return JSON values; every size is measured on the disk, or in the object store."""
    manifest, folder = snapshot.manifest, snapshot.folder
    structure = manifest.structure

    parts = {
        "codes": measure(folder, [s.codes.name for s in manifest.shards]),
        "ids": measure(folder, [s.ids.name for s in manifest.shards]),
        "deletes": measure(folder, [s.deletes.file.name for s in manifest.shards if s.deletes]),
        "structure": measure(folder, [file.name for file in structure.files.values()] if structure else []),
        "compressor": measure(folder, [manifest.compressor.name]),
        "manifest": measure(folder, [MANIFEST]),
        "documents": measure(folder, [s.docs.name for s in manifest.shards]),
    }
    tokens = [s.tokens for s in manifest.shards if s.tokens]
    if manifest.multi_vector is not None:
        parts |= {
            "offsets": measure(folder, [t.offsets.name for t in tokens]),
            "first_stage": measure(folder, [t.first.name for t in tokens if t.first]),
        }
    without_text = sum(parts.values()) - parts["documents"]
    rows = manifest.rows
    stored = sum(shard.rows for shard in manifest.shards)
    vectors = sum(t.rows for t in tokens) if manifest.multi_vector else rows
    facts = {
        "path": address(folder),
        "format": manifest.format,
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
        "index_bytes_per_vector": round(without_text / vectors, 3) if vectors else None,
        "compression_ratio": round(4 * manifest.dim / compressor.code_size, 2),
        "bytes": parts,
        "total_bytes": sum(parts.values()),
        "structure": describe_structure(manifest) if structure else None,
        "codebook_use": codebook_use(snapshot.shards[0].block) if snapshot.shards else None,
        "compact_due": compact_due(manifest, shard_rows),
    }
    return facts | ({"multi_vector": describe_tokens(snapshot, compressor, parts)} if manifest.multi_vector else {})


def describe_tokens(snapshot: Snapshot, compressor: Any, parts: dict[str, int]) -> dict[str, Any]:
    """Return what a multi-vector index keeps of a document: vectors times bytes, the first stage, and offsets.

    Sizes are those of the files, deleted documents included, over all documents that the files hold.
    """
    manifest = snapshot.manifest
    documents = max(1, sum(shard.documents for shard in manifest.shards))
    passages = max(1, sum(shard.rows for shard in manifest.shards))
    vectors = sum(shard.tokens.rows for shard in manifest.shards if shard.tokens)
    names = {"vectors": "codes", "first_stage": "first_stage", "offsets": "offsets"}
    each = {name: round(parts[part] / documents, 2) for name, part in names.items()}
    counts = np.concatenate([np.zeros(0, np.int64), *(np.diff(getattr(s, "offsets")) for s in snapshot.shards)])  # noqa: B009
    return {
        "first_stage": compressor.first_stage,
        "vectors": vectors,
        "vectors_per_passage": round(vectors / passages, 2),
        "passages_without_vectors": int((counts == 0).sum()),
        "first_stage_code_bytes": compressor.first_code_size,
        "bytes_per_document": each | {"total": round(sum(each.values()), 2)},
    }


def describe_structure(manifest: Manifest) -> dict[str, Any]:
    """Return what the structure of an index is and how many rows it covers."""
    structure = manifest.structure
    assert structure is not None
    covered = sum(shard.rows for shard in manifest.shards if shard.id in structure.shards)
    total = sum(shard.rows for shard in manifest.shards)
    parameters = {name: value for name, value in structure.parameters.items() if name != "asked"}
    return {"kind": structure.kind} | parameters | {"covered_rows": covered, "scanned_rows": total - covered}


def compact_due(manifest: Manifest, shard_rows: int) -> bool:
    """Tell whether `compact` would pay: many deleted rows, many small shards, or many that the structure lacks."""
    shards, structure = manifest.shards, manifest.structure
    rows = sum(shard.rows for shard in shards)
    small = sum(is_small(shard, shard_rows) for shard in shards)
    lacking = sum(shard.rows for shard in shards if structure and shard.id not in structure.shards)
    return rows > 0 and (rows - manifest.rows > DELETED * rows or small > SMALL_SHARDS or lacking > LACKING * rows)
