"""Targets: files of embeddings that were computed elsewhere, of their ids, and of trained codecs."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from ragq.compressors import from_spec
from ragq.errors import RagqError
from ragq.pipelines.codecs import CODEC, load_codec
from ragq.pipelines.readers import open_embeddings
from ragq.pipelines.readers.tokens import open_tokens
from tests.fuzz.mutate import mutated

Check = Callable[[random.Random], None]
X = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
OFFSETS = np.array([0, 3, 3, 10, 40])


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def ready(folder: Path) -> Check:
    """Arrays of embeddings."""
    samples = [npy(X), npy(X.astype(np.float16))]

    def check(rng: random.Random) -> None:
        path = folder / "x.npy"
        path.write_bytes(mutated(rng, rng.choice(samples), samples[0]))
        with contextlib.suppress(RagqError):
            opened = open_embeddings(path)
            rows = opened.rows(0, min(10, len(opened)))
            assert rows.dtype == np.float32 and rows.ndim == 2

    return check


def token_files(folder: Path) -> Check:
    """Archives of token embeddings, and pairs of arrays."""
    archives = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, values=X, offsets=OFFSETS)
        archives.append(buffer.getvalue())
    pair = {"v.npy": npy(X), "v.offsets.npy": npy(OFFSETS)}

    def check(rng: random.Random) -> None:
        if rng.random() < 0.7:
            path = folder / "x.npz"
            path.write_bytes(mutated(rng, rng.choice(archives), archives[0]))
        else:
            path, changed = folder / "v.npy", rng.choice(sorted(pair))
            for name, data in pair.items():
                (folder / name).write_bytes(mutated(rng, data, data) if name == changed else data)
        with contextlib.suppress(RagqError):
            opened = open_tokens(path)
            some = opened.tokens(0, min(3, len(opened)))
            again = opened.take_tokens(np.arange(min(2, len(opened))))
            assert some.values.dtype == np.float32 and len(again) <= len(some)
            assert again.values.tobytes() == some.values[: again.total].tobytes(), (
                "another reading gives something else"
            )

    return check


def columns(folder: Path) -> Check:
    """Embeddings and ids as columns of tables, and ids in files of their own."""
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 8)
    table = pa.table({"id": [f"d{i}" for i in range(40)], "x": fixed, "y": fixed.cast(pa.list_(pa.float32()))})
    parquet, arrow = pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.write_table(table, parquet, row_group_size=15)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table, max_chunksize=15)
    tables = {"x.parquet": parquet.getvalue().to_pybytes(), "x.arrow": arrow.getvalue().to_pybytes()}
    names = [f"d{i}" for i in range(40)]
    lists = {
        "ids.txt": "\n".join(names).encode(),
        "ids.jsonl": "\n".join(json.dumps({"_id": name}) for name in names).encode(),
        "ids.npy": npy(np.array(names)),
        **tables,
    }
    np.save(folder / "x.npy", X)

    def check(rng: random.Random) -> None:
        apart = rng.random() < 0.5
        known = lists if apart else tables
        name = rng.choice(sorted(known))
        (folder / name).write_bytes(mutated(rng, known[name], tables["x.arrow"]))
        ids: Any = f"{folder / name}:id" if name in tables else folder / name
        with contextlib.suppress(RagqError):
            opened = open_embeddings(folder / "x.npy" if apart else f"{folder / name}:{rng.choice('xy')}", ids)
            rows = opened.rows(0, min(20, len(opened)))
            assert rows.dtype == np.float32 and rows.shape == (min(20, len(opened)), opened.dim)
            assert all(isinstance(each, str) for each in opened.ids())

    return check


def codec_folders(folder: Path) -> Check:
    """Folders of trained codecs."""
    samples = []
    for spec in ("FP8", "PCA4,PQ2x4", "DistillVQ6(bits=4)"):
        codec = from_spec(spec).fit(np.tile(X, (4, 2)))
        arrays = {name: np.ascontiguousarray(array) for name, array in codec.state.items()}
        samples.append(safetensors.numpy.save(arrays, {"spec": spec}))

    def check(rng: random.Random) -> None:
        (folder / CODEC).write_bytes(mutated(rng, rng.choice(samples), samples[0]))
        with contextlib.suppress(RagqError), np.errstate(all="ignore"):
            codec = load_codec(folder)
            x = np.tile(X, (1, 2))[:, : codec.dim]
            assert codec.encode(x).shape == (len(x), codec.code_size)

    return check
