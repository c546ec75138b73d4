"""Codecs of ragq and of its neighbours at equal bytes: ``python -m ragq.eval.codec_table --data ../shared/data``.

On `scale` (100,000 embeddings of 384 dimensions, 1,000 queries) every codec and every peer is trained on the same first
rows and answers all queries; the score is the tie-aware Recall@10 against exact float32. A budget counts all bytes that
a vector adds, its floats included. ``--ndcg`` measures instead what share of the float32 nDCG@10 a codec keeps on
SciFact and Cranfield, fitted on the corpus alone.

``--json FILE`` keeps what was measured, so that a run that was stopped goes on where it stopped. ``--pair`` compares
instead a codec of ragq with one of faiss, query by query and both trained on ``--train-rows``: ``--pair VTQ24:RQ24x8``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ragq.checks import normalized
from ragq.compressors import from_spec
from ragq.errors import InvalidArgumentError, MissingExtraError
from ragq.eval.datasets import Dataset, read_folder
from ragq.eval.exact import Exact
from ragq.eval.metrics import evaluate
from ragq.eval.peers import load, rabitqlib_flat, turbovec_flat, usearch_hamming
from ragq.eval.significance import Comparison, bootstrap_means, compare
from ragq.select import topk

__all__ = ["Row", "Scale", "main"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
BUDGETS = (192, 96, 48, 32, 24)
QUERIES = 1000
K = 10
BATCH = 100  # queries whose scores of all rows are in memory at once

# faiss at each budget: scalar codes after PCA and rotations, product codes rotated and not, and its additive ones.
# "np" leaves out polysemous training, which permutes codewords for Hamming filtering: the same codes, 60 times sooner.
FAISS = {
    192: ("RR384,SQtqmse4", "SQ4", "PCA192,SQ8", "PCA256,SQ6", "RaBitQ3", "PQ192x8np", "OPQ192,PQ192x8np"),
    96: (
        "RR384,SQtqmse2",
        "PCA192,SQ4",
        "PCA128,SQ6",
        "PQ192x4fs",
        "RaBitQ",
        "PQ96x8np",
        "OPQ96,PQ96x8np",
        "PRQ16x6x8",
    ),
    48: ("RR384,SQtqmse1", "PCA96,SQ4", "PQ48x8np", "OPQ48,PQ48x8np", "OPQ48,PQ96x4fs", "PRQ8x6x8", "PRQ16x3x8"),
    32: ("PQ32x8np", "OPQ32,PQ32x8np", "RQ32x8", "PRQ4x8x8"),
    24: ("PQ24x8np", "OPQ24,PQ24x8np", "RQ24x8", "PRQ4x6x8"),
}
SLOW_ROWS = 16_384  # what faiss's product and additive codes are trained on, which takes up to ten minutes as it is
NDCG_BYTES = (96, 48, 24, 16)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    budget : int
        Bytes that a vector may take.
    library, codec : str
    code_bytes : float
        Bytes that it takes.
    train_rows : int
        What it was trained on: fewer than the others where training takes long.
    recall : float
        Tie-aware Recall@10.
    seconds : float
        To train, encode and search, with whatever else ran on the machine: an order of magnitude.
    """

    budget: int
    library: str
    codec: str
    code_bytes: float
    train_rows: int
    recall: float
    seconds: float


@dataclass(frozen=True)
class Scale:
    """The `scale` data and its exact answers."""

    documents: Floats
    sample: Floats
    exact: Exact

    @classmethod
    def read(cls, data: Path, train_rows: int) -> Scale:
        """Read the embeddings and search them exactly."""
        rows = normalized(np.load(data / "scale" / "minilm-101k.f16.npy").astype(np.float32))
        documents = np.ascontiguousarray(rows[:-QUERIES])
        exact = Exact.search(documents, np.ascontiguousarray(rows[-QUERIES:]), K, "ip")
        return cls(documents, documents[:train_rows], exact)

    def measure(
        self, budget: int, library: str, codec: str, size: float, rows: int, answer: Callable[[Scale], Rows]
    ) -> Row:
        """Time one contender, trained on the first `rows` rows of the sample, and score its answers."""
        scale = replace(self, sample=self.sample[:rows])
        start = time.perf_counter()
        recall = float(self.exact.agreement(answer(scale), K).mean())
        trained = len(scale.sample)
        return Row(budget, library, codec, size, trained, round(recall, 4), round(time.perf_counter() - start, 1))


def ours(dim: int, budget: int) -> list[str]:
    """Return the specs of ragq at a budget, the most promising first: of each family the largest code that fits."""
    bits = 8 * budget // dim
    specs = [f"VTQ{budget}", f"VPQ{budget}", f"VPQ{budget}(bits=4)"]
    specs += [next((s for q in range(32, 0, -1) if size_of(s := f"SAQ{q / 4:g}", dim) <= budget), "")]
    specs += [f"PQ{budget}x8", f"PQ{budget - 2}x8(length)", f"OPQ{budget - 2},PQ{budget - 2}x8(length)"]
    if budget <= 32:
        specs += [f"RQ{budget}x8", f"RQ{budget - 2}x8(length)"]
    specs += [f"PCA{budget},FP8", f"ITQ{8 * budget},BIN"]
    specs += [spec for b in (bits, bits - 1) if b > 0 for spec in (f"TQ{b}", f"RBQ{b}", f"RR,LVQ{b}")]
    return [spec for spec in dict.fromkeys(specs) if 0.5 * budget < size_of(spec, dim) <= budget]


def size_of(spec: str, dim: int) -> float:
    """Return the code bytes of a spec at `dim` dimensions; infinity where it cannot work."""
    try:
        return from_spec(spec).code_size_at(dim)
    except InvalidArgumentError:
        return float("inf")


def ragq_answer(spec: str, scale: Scale) -> Rows:
    """Fit, encode, decode and search: decoded inner products are what the scorer gives (the law of codecs)."""
    compressor = from_spec(spec).fit(scale.sample)
    return decoded_answer(compressor.decode(compressor.encode(scale.documents)), scale)


def decoded_answer(decoded: Floats, scale: Scale) -> Rows:
    """Search the documents as their codes decode."""
    queries = scale.exact.queries
    parts = [topk(queries[i : i + BATCH] @ decoded.T, K)[1] for i in range(0, len(queries), BATCH)]
    return np.concatenate(parts)


def faiss_answer(spec: str, scale: Scale) -> Rows:
    """Train, add and search an index of faiss's factory."""
    faiss = load("faiss")
    index = faiss.index_factory(scale.documents.shape[1], spec, faiss.METRIC_INNER_PRODUCT)
    index.train(scale.sample)
    if "RQ" in spec or "LSQ" in spec:  # additive codes, which its search decodes for every query, with the same answers
        return decoded_answer(index.sa_decode(index.sa_encode(scale.documents)), scale)
    index.add(scale.documents)
    return np.asarray(index.search(scale.exact.queries, K)[1])


def faiss_bytes(spec: str, dim: int) -> float:
    """Return the bytes of a vector in an index of faiss's factory."""
    faiss = load("faiss")
    return float(faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT).sa_code_size())


def other_peers(budget: int, dim: int) -> Iterator[tuple[str, str, float, Callable[[Scale], Rows]]]:
    """Yield the other libraries' codecs within a budget: library, codec, bytes, and what answers the queries."""
    for bits in (2, 4):
        if dim * bits / 8 + 4 <= budget:
            name = f"TurboQuantIndex, {bits} bits"
            yield "turbovec", name, dim * bits / 8 + 4, lambda s, b=bits: turbovec_rows(b, s)  # type: ignore[misc]
    for bits in range(1, 9):
        if 0.5 * budget < rabitqlib_bytes(bits, dim) <= budget:
            name = f"IvfIndex, 1 cluster, {bits} bits"
            yield "rabitqlib", name, rabitqlib_bytes(bits, dim), lambda s, b=bits: rabitqlib_rows(b, s)  # type: ignore[misc]
    if dim / 8 <= budget < dim:
        yield "usearch", "b1, Hamming", dim / 8, usearch_rows


def rabitqlib_bytes(bits: int, dim: int) -> float:
    """Return what RaBitQLib stores: a sign bit and three floats, and from 2 bits on the rest of the code and two."""
    return dim / 8 + 12 + ((bits - 1) * dim / 8 + 8 if bits > 1 else 0)


def turbovec_rows(bits: int, scale: Scale) -> Rows:
    """Answer the queries with turbovec."""
    return turbovec_flat(bits, scale.documents.shape[1], [scale.documents]).search(scale.exact.queries, K)


def rabitqlib_rows(bits: int, scale: Scale) -> Rows:
    """Answer the queries with rabitqlib."""
    return rabitqlib_flat(bits, scale.documents).search(scale.exact.queries, K)


def usearch_rows(scale: Scale) -> Rows:
    """Answer the queries with usearch, signs against signs."""
    signs = [np.packbits(x > 0, axis=1) for x in (scale.documents, scale.exact.queries)]
    return usearch_hamming(signs[0]).search(signs[1], K)


def contenders(
    budgets: list[int], dim: int, which: str, train_rows: int
) -> Iterator[tuple[int, str, str, float, int, Callable[[Scale], Rows]]]:
    """Yield everything to measure: budget, library, codec, bytes, most rows to train on, and what answers."""
    for budget in budgets:
        if which != "peers":
            for spec in ours(dim, budget):
                size = size_of(spec, dim)
                yield budget, "ragq", spec, size, train_rows, lambda s, c=spec: ragq_answer(c, s)  # type: ignore[misc]
        if which != "ragq":
            for spec in FAISS.get(budget, ()):
                rows = min(train_rows, SLOW_ROWS) if "Q" in spec and "SQ" not in spec else train_rows
                size = faiss_bytes(spec, dim)
                yield budget, "faiss", spec, size, rows, lambda s, c=spec: faiss_answer(c, s)  # type: ignore[misc]
            for library, codec, size, answer in other_peers(budget, dim):
                yield budget, library, codec, size, train_rows, answer


def ndcg_shares(data: Path, specs: list[str]) -> list[dict[str, Any]]:
    """Return, for each spec, the nDCG@10 on SciFact and Cranfield as shares of float32's, and their mean."""
    table: dict[str, dict[str, Any]] = {}
    for name in ("scifact", "cranfield"):
        folder = data / "beir" / name
        dataset = read_folder(folder)
        x = normalized(np.load(folder / "corpus.minilm.npy"))
        q = normalized(np.load(folder / "queries.minilm.npy")[dataset.query_rows])

        def ndcg(decoded: Floats, q: Floats = q, dataset: Dataset = dataset) -> float:
            rows = topk(q @ decoded.T, K)[1]
            run = {
                query: [dataset.ids[row] for row in found] for query, found in zip(dataset.query_ids, rows, strict=True)
            }
            return evaluate(run, dataset.qrels or {}, ("ndcg@10",)).mean("ndcg@10")

        full = ndcg(x)
        for spec in specs:
            compressor = from_spec(spec).fit(x)
            row = table.setdefault(spec, {"spec": spec, "code_bytes": compressor.code_size})
            row[name] = ndcg(compressor.decode(compressor.encode(x))) / full
    for row in table.values():
        row["mean"] = (row["scifact"] + row["cranfield"]) / 2
    return list(table.values())


def paired(scale: Scale, own: str, theirs: str) -> tuple[list[float], Comparison]:
    """Return the Recall@10 of a codec of ragq and of one of faiss, and their difference by a paired bootstrap."""
    answers = ragq_answer(own, scale), faiss_answer(theirs, scale)
    hits = np.stack([scale.exact.agreement(found, K) for found in answers])
    means = hits.mean(axis=1)
    return means.tolist(), compare(bootstrap_means([hits]), means, 0, 1)


def markdown(rows: list[Row]) -> str:
    """Return the table, the best first within each budget."""
    lines = ["| budget | library | codec | bytes | trained on | Recall@10 |", "|---|---|---|--:|--:|--:|"]
    for row in sorted(rows, key=lambda r: (-r.budget, -r.recall)):
        cells = (f"{row.budget} B", row.library, f"`{row.codec}`", f"{row.code_bytes:g}", f"{row.train_rows:,}")
        lines.append(f"| {' | '.join(cells)} | {row.recall:.3f} |")
    return "\n".join(lines)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the shared data.")
@click.option("--budget", default=",".join(map(str, BUDGETS)), help="Bytes a vector, separated by commas.")
@click.option("--which", type=click.Choice(["all", "ragq", "peers"]), default="all")
@click.option("--train-rows", default=65_536, show_default=True, help="Rows that everybody is trained on.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Keep results here and reuse them.")
@click.option("--ndcg", is_flag=True, help="Measure nDCG@10 on SciFact and Cranfield instead.")
@click.option("--pair", multiple=True, metavar="RAGQ:FAISS", help="Compare two codecs by a paired bootstrap instead.")
def main(
    data: Path, budget: str, which: str, train_rows: int, file: Path | None, ndcg: bool, pair: tuple[str, ...]
) -> None:
    """Print the table of codecs and peers at equal bytes."""
    for each in pair:
        spec, _, other = each.partition(":")
        (own, theirs), found = paired(Scale.read(data, train_rows), spec, other)
        interval = f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        click.echo(f"{spec} {own:.4f}, {other} {theirs:.4f}: {interval}")
    if pair:
        return
    if ndcg:
        for line in ndcg_shares(data, [f"{name}{size}" for size in NDCG_BYTES for name in ("VTQ", "VPQ")]):
            shares = " ".join(f"{name} {line[name]:.1%}" for name in ("scifact", "cranfield", "mean"))
            click.echo(f"{line['spec']} {line['code_bytes']} B: {shares}")
        return
    rows = [Row(**row) for row in json.loads(file.read_text())] if file and file.exists() else []
    known = {(row.budget, row.library, row.codec) for row in rows}
    scale = Scale.read(data, train_rows)
    budgets = [int(part) for part in budget.split(",")]
    for size, library, codec, code_bytes, most, answer in contenders(
        budgets, scale.documents.shape[1], which, train_rows
    ):
        if (size, library, codec) in known:
            continue
        try:
            row = scale.measure(size, library, codec, code_bytes, most, answer)
        except MissingExtraError as error:
            click.echo(str(error), err=True)
            continue
        rows.append(row)
        click.echo(f"{row.budget} B {library} {codec}: {row.recall:.4f} ({row.seconds:.0f} s)", err=True)
        if file:
            file.write_text(json.dumps([asdict(each) for each in rows], indent=1))
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
