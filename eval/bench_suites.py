"""The suites of `ragq bench`: which cases are timed, over which codes, against whom."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import from_spec
from ragq.compressors.base import Compressor
from ragq.compressors.scorers import HammingScorer, LookupScorer
from ragq.eval import peers
from ragq.eval.bench import Bench, Contender, Row, scan
from ragq.eval.bench_codecs import encoding, training
from ragq.eval.bench_data import Vectors
from ragq.eval.exact import Exact
from ragq.layouts import Block, Layout
from ragq.select import pack_mask

__all__ = ["SUITES", "run"]

Floats = NDArray[np.float32]
ONE = 5  # queries that the one-query cases ask, one after the other
FILTERED = 0.01  # share of the rows that the filter keeps
ITERATIONS = 8  # of k-means: codebooks for timing
THREADED = {
    "hamming": "BIN(symmetric)",
    "lut4": f"PQ96x4(iterations={ITERATIONS})",
    "lut8": f"PQ48x8(iterations={ITERATIONS})",
    "planes": "INT4",
    "dense_i8": "INT8",
    "dense_f8": "FP8",
}
SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)


def encode(codec: Compressor, data: Vectors) -> Block:
    """Fit a codec on a sample and pack the codes of all rows."""
    codec.fit(data.sample)
    return Block.from_codes(codec.layout, np.concatenate([codec.encode(chunk) for chunk in data.chunks()]))


def packed(vectors: Floats) -> NDArray[np.uint8]:
    return np.packbits(vectors > 0, axis=1, bitorder="little")


def one_by_one(contender: Contender, count: int = ONE) -> Contender:
    """Return the contender asked for one query a call, and timed on a few."""

    def run(queries: Any, k: int) -> NDArray[np.int64]:
        return np.concatenate([contender.run(queries[i : i + 1], k) for i in range(len(queries))])

    return Contender(contender.name, run, contender.queries, timed=count)


def cases(
    bench: Bench,
    suite: str,
    name: str,
    ours: Contender,
    against: Sequence[Contender],
    *,
    ks: Sequence[int] = (10,),
    exhaustive: Contender | None = None,
    **facts: Any,
) -> Iterator[Row]:
    """Yield the one-query case, for every k, and the batch case."""
    for k in ks:
        single = None if exhaustive is None else one_by_one(exhaustive)
        label = f"{name}, 1 query, k={k}"
        yield from bench.compare(
            suite, label, one_by_one(ours), [one_by_one(c) for c in against], k=k, exhaustive=single, **facts
        )
    label = f"{name}, {len(ours.queries)} queries, k={ks[0]}"
    yield from bench.compare(suite, label, ours, against, k=ks[0], exhaustive=exhaustive, **facts)


def asked(built: Sequence[peers.Peer], queries: Any) -> list[Contender]:
    return [Contender(peer.name, peer.search, queries) for peer in built]


def reference(bench: Bench, data: Vectors) -> Exact:
    bench.tick(f"exact search over {len(data):,} rows")
    queries = data.source.queries[: bench.queries]
    return Exact.search(data, queries, 10, "ip")  # type: ignore[arg-type]


def hamming(bench: Bench) -> Iterator[Row]:
    """Sign bits of 384 dimensions, 48 bytes, symmetric."""
    data = bench.data(2_000_000)
    queries = data.source.queries[: bench.queries]
    bits = np.concatenate([packed(chunk) for chunk in data.chunks()])
    block = Block.from_codes(Layout("rows", bits.shape[1]), bits)
    against = bench.peers(
        partial(peers.faiss_binary, bits), partial(peers.usearch_hamming, bits), partial(peers.numkong_hamming, bits)
    )
    facts: dict[str, Any] = {"rows": len(data), "code_bytes": 48, "exact": reference(bench, data), "data": data.name}
    dim = queries.shape[1]

    def prepare(floats: Floats) -> HammingScorer:
        n = len(floats)
        return HammingScorer(np.zeros(n, np.float32), packed(floats), np.ones(n, np.float32), dim)

    ours = scan(prepare, block, queries)
    yield from cases(bench, "hamming", "48 B", ours, asked(against, packed(queries)), ks=(10, 100), **facts)


def product(bench: Bench, suite: str, m: int, bits: int, rows: int) -> Iterator[Row]:
    """Product quantizer codes, the same codebooks and codes on both sides."""
    data = bench.data(rows)
    queries = data.source.queries[: bench.queries]
    codec = from_spec(f"PQ{m}x{bits}(iterations={ITERATIONS})")
    bench.tick(f"{suite}: training and encoding {codec}")
    block = encode(codec, data)
    books = np.stack(np.split(codec.state["codebook_"], m, axis=1))
    build = peers.faiss_fast_scan if bits == 4 else peers.faiss_pq
    against = asked(bench.peers(partial(build, books, block.codes())), queries)
    facts: dict[str, Any] = {
        "rows": len(data),
        "code_bytes": codec.code_size,
        "exact": reference(bench, data),
        "data": data.name,
    }
    yield from pruned(bench, suite, f"{m}x{bits}, {codec.code_size} B", codec, block, against, queries, facts)


def pruned(
    bench: Bench,
    suite: str,
    name: str,
    codec: Compressor,
    block: Block,
    against: Sequence[Contender],
    queries: Floats,
    facts: dict[str, Any],
) -> Iterator[Row]:
    """Yield the cases of a kernel that rules rows out by a part of their codes, with and without doing so."""
    exhaustive = scan(codec.scorer, block, queries, name="ragq, exact", exact=True)
    fast = scan(codec.scorer, block, queries)
    yield from cases(bench, suite, name, fast, against, exhaustive=exhaustive, **facts)
    if suite != "lut4":
        yield from cases(bench, suite, f"{name}, exact", exhaustive, against, exhaustive=exhaustive, **facts)


def planes(bench: Bench) -> Iterator[Row]:
    """4 bits a dimension as bit planes, 192 bytes."""
    data = bench.data(1_000_000)
    queries = data.source.queries[: bench.queries]
    against = asked(
        bench.peers(
            partial(peers.faiss_scalar, "SQ4", data.sample, data.chunks()),
            partial(peers.turbovec_flat, 4, queries.shape[1], data.chunks()),
            partial(peers.rabitqlib_flat, 4, data[:]),
        ),
        queries,
    )
    exact = reference(bench, data)
    for spec in ("INT4", "TQ4"):
        codec = from_spec(spec)
        block = encode(codec, data)
        facts: dict[str, Any] = {"rows": len(data), "code_bytes": codec.code_size, "exact": exact, "data": data.name}
        yield from pruned(bench, "planes", f"{spec}, {codec.code_size} B", codec, block, against, queries, facts)


def dense(bench: Bench) -> Iterator[Row]:
    """A byte or a half a dimension."""
    data = bench.data(250_000)
    queries = data.source.queries[: bench.queries]
    exact = reference(bench, data)
    wide = asked(bench.peers(partial(peers.faiss_scalar, "SQ8", data.sample, data.chunks())), queries)
    for spec, name in (("INT8", "dense_i8"), ("FP8", "dense_f8"), ("F16", "dense_f16")):
        codec = from_spec(spec)
        block = encode(codec, data)
        against = wide
        if spec == "INT8":
            step = np.abs(data.sample).max() / 127
            bytes_of = partial(as_bytes, step=step)
            codes = np.concatenate([bytes_of(chunk) for chunk in data.chunks()])
            against = [*wide, *asked(bench.peers(partial(peers.numkong_dense, codes, bytes_of)), queries)]
        elif spec == "F16":
            against = asked(bench.peers(partial(peers.faiss_scalar, "SQfp16", data.sample, data.chunks())), queries)
        facts: dict[str, Any] = {"rows": len(data), "code_bytes": codec.code_size, "exact": exact, "data": data.name}
        yield from cases(bench, "dense", name, scan(codec.scorer, block, queries), against, **facts)


def as_bytes(vectors: Floats, step: float) -> NDArray[np.int8]:
    return np.clip(np.rint(vectors / step), -127, 127).astype(np.int8)


def threads(bench: Bench) -> Iterator[Row]:
    """Two threads against one, batches."""
    data = bench.data(400_000)
    queries = data.source.queries[: bench.queries]
    for name, spec in THREADED.items():
        codec = from_spec(spec)
        bench.tick(f"threads: encoding {spec}")
        block = encode(codec, data)
        one, two = (
            scan(codec.scorer, block, queries, name=f"ragq, {n} thread{'s' * (n > 1)}", threads=n) for n in (1, 2)
        )
        label = f"{name}, {len(queries)} queries, 2 threads"
        facts: dict[str, Any] = {"rows": len(data), "code_bytes": codec.code_size, "data": data.name}
        yield from bench.compare("threads", label, two, [one], k=10, wall=True, **facts)


def filtered(bench: Bench) -> Iterator[Row]:
    """A mask that keeps one row in a hundred, against no mask."""
    data = bench.data(400_000)
    queries = data.source.queries[: bench.queries]
    mask = pack_mask(np.random.default_rng(0).random(len(data)) < FILTERED)
    for spec in ("INT4", "PCA192,FP8"):
        codec = from_spec(spec)
        bench.tick(f"filter: encoding {spec}")
        block = encode(codec, data)
        ours = scan(codec.scorer, block, queries, mask=mask)
        whole = scan(codec.scorer, block, queries, name="ragq, no filter")
        facts: dict[str, Any] = {"rows": len(data), "code_bytes": codec.code_size, "data": data.name}
        yield from cases(bench, "filter", f"{spec}, {codec.code_size} B, 1 % kept", ours, [whole], **facts)


def sizes(bench: Bench) -> Iterator[Row]:
    """Memory-mapped codes of 48 bytes, from 100,000 rows to 10 million, each against the smallest."""
    m = 96
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((bench.queries, 1), np.float32)  # tables take their place
    tables = rng.standard_normal((bench.queries, m, 16), np.float32)
    layout = Layout("blocks", m, 4)

    def prepare(floats: Floats) -> LookupScorer:
        return LookupScorer(np.zeros(len(floats), np.float32), tables[: len(floats)])

    most = bench.rows or SIZES[-1]
    chosen = [size for size in SIZES if size <= most] or [most]
    with tempfile.TemporaryDirectory(prefix="ragq-bench-") as folder:
        path = Path(folder) / "codes"
        with path.open("wb") as file:
            for _ in range(0, chosen[-1] + 64, 2**16):
                file.write(rng.bytes(2**16 * layout.width))
        mapped = np.memmap(path, np.uint8, "r").reshape(-1, layout.width)
        blocks = {size: Block(layout, {"codes": mapped}, size) for size in chosen}
        for batch in (False, True):
            small = scan(prepare, blocks[chosen[0]], queries)
            for size in chosen[1:] or chosen:
                large = scan(prepare, blocks[size], queries)
                yield from flat(bench, small, large, blocks[chosen[0]], blocks[size], batch)
        del mapped, blocks


def flat(bench: Bench, small: Contender, large: Contender, few: Block, many: Block, batch: bool) -> Iterator[Row]:
    """Time a large block against a small one that is scanned as often as it takes to read as many rows."""
    turns = many.rows // few.rows

    def often(queries: Any, k: int) -> NDArray[np.int64]:
        for _ in range(turns):
            rows = small.run(queries, k)
        return rows

    again = Contender(f"ragq, {few.rows:,} rows", often, small.queries)
    ours, peer = (c if batch else one_by_one(c) for c in (large, again))
    label = f"lut4 48 B, {many.rows:,} rows mapped, {len(ours.queries) if batch else 1} queries"
    yield from bench.compare("scale", label, ours, [peer], k=10, rows=many.rows, code_bytes=48, data="random codes")


SUITES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "hamming": hamming,
    "lut4": lambda bench: product(bench, "lut4", 96, 4, 1_000_000),
    "lut8": lambda bench: product(bench, "lut8", 48, 8, 100_000),
    "planes": planes,
    "dense": dense,
    "threads": threads,
    "filter": filtered,
    "scale": sizes,
    "encode": encoding,
    "train": training,
}


def run(bench: Bench, suites: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of the named suites, all by default."""
    for name in suites or tuple(SUITES):
        yield from SUITES[name](bench)
