r"""The multi-vector table: nDCG of pooled and coded token embeddings against exact MaxSim, byte by byte.

::

    python -m ragq.eval.multivector shared/data/beir/scifact --tokens tokens/ \
        --point "POOL33.3%" --point "POOL33.3%,PQ64x8 after MUVERA(20,4,8),PQ320x8"

A point is a codec, or ``codec after first stage``. The tokens are encoded once, in pieces that an interrupted run
resumes, and kept as ``<tokens>/<data set>/documents.values.npy`` (float16, unit length) with ``documents.offsets.npy``,
the queries of a split likewise. Every point is compared with exact MaxSim by a paired bootstrap over queries.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.multivector import OFFSET_BYTES, MultiVectorCompressor
from ragq.errors import InvalidArgumentError
from ragq.eval.datasets import Dataset, load
from ragq.eval.metrics import evaluate
from ragq.eval.significance import bootstrap_means, compare
from ragq.retrievers.multivector import MultiVectorBlock, search
from ragq.retrievers.scan import scan
from ragq.tokens import TokenEmbeddings

__all__ = ["Measured", "Point", "cached_tokens", "main", "table"]

PIECE = 256  # texts that are encoded and written at a time
DEPTH = 100  # documents of a ranking that are kept
FLOAT_BYTES = 4
FIT_DOCUMENTS = 2000


@dataclass(frozen=True)
class Point:
    """One codec and first stage, measured on one data set.

    Attributes
    ----------
    codec : str
    first_stage : str or None
    vectors : float
        Vectors a document.
    document_bytes : float
        Vectors times their bytes, the first-stage code, and the offset.
    ratio : float
        How many times smaller that is than all tokens in float32.
    ndcg : float
        nDCG@10.
    kept : float
        Share of exact MaxSim's nDCG@10.
    low, high : float
        95 % interval of the difference to exact MaxSim.
    recall : float or None
        Share of the ten best documents of exact MaxSim that are among the candidates.
    seconds : float
        Of fitting and encoding.
    """

    codec: str
    first_stage: str | None
    vectors: float
    document_bytes: float
    ratio: float
    ndcg: float
    kept: float
    low: float
    high: float
    recall: float | None
    seconds: float


def cached_tokens(
    path: Path, texts: Sequence[str], encode: Callable[[Sequence[str]], TokenEmbeddings]
) -> TokenEmbeddings:
    """Return the token embeddings of `texts`, encoded once and kept beside `path`.

    Parameters
    ----------
    path : Path
        ``<path>.values.npy`` and ``<path>.offsets.npy`` hold the result, the folder `path` the pieces of a run that was
        interrupted.
    texts : sequence of str
    encode : callable
        Texts to `TokenEmbeddings`.
    """
    values, offsets = path.with_suffix(".values.npy"), path.with_suffix(".offsets.npy")
    if not offsets.exists():
        path.mkdir(parents=True, exist_ok=True)
        parts = []
        for start in range(0, len(texts), PIECE):
            piece = path / f"{start:06d}.npz"
            if not piece.exists():
                tokens = encode(texts[start : start + PIECE])
                unfinished = piece.with_name(f"{piece.stem}.unfinished.npz")
                np.savez(unfinished, values=tokens.values.astype(np.float16), lengths=tokens.counts)
                unfinished.rename(piece)
            with np.load(piece) as arrays:
                parts.append((arrays["values"], arrays["lengths"]))
        np.save(values, np.concatenate([part for part, _ in parts]))
        np.save(offsets, np.concatenate([[0], np.cumsum(np.concatenate([lengths for _, lengths in parts]))]))
    return TokenEmbeddings(np.load(values), np.load(offsets)).normalized()


def load_tokens(dataset: Dataset, folder: Path, model: str | None = None) -> tuple[TokenEmbeddings, TokenEmbeddings]:
    """Return the token embeddings of a data set's documents and of its judged queries, from the cache or a model."""

    def encode(method: str) -> Callable[[Sequence[str]], TokenEmbeddings]:
        def run(texts: Sequence[str]) -> TokenEmbeddings:
            from ragq.token_embedders import load_token_embedder

            tokens: TokenEmbeddings = getattr(load_token_embedder(model) if model else load_token_embedder(), method)(
                texts
            )
            return tokens

        return run

    documents = cached_tokens(folder / "documents", dataset.passages, encode("encode_documents"))
    queries = cached_tokens(folder / f"queries-{dataset.split}", dataset.queries, encode("encode_queries"))
    if (len(documents), len(queries)) != (len(dataset.ids), len(dataset.queries)):
        raise InvalidArgumentError(
            f"'{folder}' holds tokens of {len(documents)} documents and {len(queries)} queries; {dataset.name} has "
            f"{len(dataset.ids)} and {len(dataset.queries)}. Give --tokens another folder."
        )
    return documents, queries


class Measured:
    """A data set with its tokens, and what exact MaxSim finds in it.

    Parameters
    ----------
    dataset : Dataset
        With judgements.
    folder : Path
        Where tokens and the exact ranking are kept.
    model : str, optional
        Of the tokens; the default model when None.
    """

    def __init__(self, dataset: Dataset, folder: Path, model: str | None = None) -> None:
        self.dataset = dataset
        self.documents, self.queries = load_tokens(dataset, folder, model)
        rng = np.random.default_rng(0)
        order = np.sort(rng.permutation(len(self.documents))[:FIT_DOCUMENTS])
        self.sample = self.documents.take(order)
        file = folder / f"exact-{dataset.split}.npy"
        if not file.exists():
            np.save(file, self.search("F32", None)[0])
        self.exact = np.load(file)
        self.reference = self.ndcg(self.exact)

    def ndcg(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return nDCG@10 of each query for ranked document numbers, `(n_queries, k)`."""
        ids = self.dataset.ids
        run = {
            query: [ids[row] for row in found if row >= 0]
            for query, found in zip(self.dataset.query_ids, rows.tolist(), strict=True)
        }
        return evaluate(run, self.dataset.qrels or {}, ["ndcg@10"]).values["ndcg@10"]

    def search(
        self, codec: str, first_stage: str | None, candidates: int = DEPTH
    ) -> tuple[NDArray[np.int64], MultiVectorCompressor, MultiVectorBlock]:
        """Fit, encode and search; return the rankings, the compressor and the coded documents."""
        compressor = MultiVectorCompressor.from_spec(codec, first_stage).fit(self.sample)
        block = MultiVectorBlock.from_codes(compressor, compressor.encode(self.documents))
        _, rows = search(compressor, self.queries, [block], DEPTH, candidates=candidates)
        return rows, compressor, block

    def point(self, text: str, candidates: int = DEPTH) -> Point:
        """Measure one point, ``codec`` or ``codec after first stage``."""
        codec, _, first = text.partition(" after ")
        start = time.perf_counter()
        rows, compressor, block = self.search(codec.strip(), first.strip() or None, candidates)
        seconds = time.perf_counter() - start
        values = np.stack([self.ndcg(rows), self.reference])
        difference = compare(bootstrap_means([values]), values.mean(axis=1), 0, 1)
        vectors = float(np.diff(block.offsets).mean())
        size = vectors * compressor.code_size + compressor.first_code_size + OFFSET_BYTES
        whole = self.documents.counts.mean() * self.documents.dim * FLOAT_BYTES
        return Point(
            compressor.codec,
            compressor.first_stage,
            vectors,
            size,
            float(whole / size),
            float(values[0].mean()),
            float(values[0].mean() / values[1].mean()),
            difference.low,
            difference.high,
            self.recall(compressor, block, candidates),
            seconds,
        )

    def recall(self, compressor: MultiVectorCompressor, block: MultiVectorBlock, candidates: int) -> float | None:
        """Return the share of exact MaxSim's ten best that are among the candidates of the first stage."""
        if compressor.first is None or block.first is None:
            return None
        _, found = scan(compressor.first.scorer(self.queries), [block.first], candidates)
        return float(np.mean([np.isin(best[:10], row).mean() for best, row in zip(self.exact, found, strict=True)]))


def table(points: Sequence[Point]) -> str:
    """Return points as a Markdown table."""
    head = "| codec | first stage | vectors | bytes | smaller | nDCG@10 | of exact | 95 % of difference | recall@10 |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---|---:|"]
    for p in points:
        first = f"`{p.first_stage}`" if p.first_stage else ""
        recall = "" if p.recall is None else f"{p.recall:.3f}"
        lines.append(
            f"| `{p.codec}` | {first} | {p.vectors:.1f} | {p.document_bytes:.0f} | {p.ratio:.0f}x | {p.ndcg:.4f} "
            f"| {100 * p.kept:.1f} % | {p.low:+.4f} .. {p.high:+.4f} | {recall} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the points that the command line names, and print them as a table."""
    import click

    parser = argparse.ArgumentParser(prog="python -m ragq.eval.multivector", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset", help="a data set with judgements, as `ragq eval` takes it")
    parser.add_argument("--tokens", type=Path, required=True, help="folder that keeps the token embeddings")
    parser.add_argument("--model", help="model of the tokens; the default model without")
    parser.add_argument("--split", default="test")
    parser.add_argument("--point", action="append", default=[], help="'codec' or 'codec after first stage'")
    parser.add_argument("--candidates", type=int, default=DEPTH)
    parser.add_argument("--json", type=Path, help="file that keeps the points; those in it are not measured again")
    given = parser.parse_args(arguments)
    dataset = load(given.dataset, split=given.split)[0]
    measured = Measured(dataset, given.tokens / dataset.name, given.model)
    click.echo(
        f"{dataset.name}: exact MaxSim nDCG@10 {measured.reference.mean():.4f}, "
        f"{measured.documents.counts.mean():.1f} vectors a document"
    )
    known = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    for text in given.point:
        if text not in known:
            known[text] = asdict(measured.point(text, given.candidates))
            if given.json:
                given.json.write_text(json.dumps(known, indent=1))
    click.echo(table([Point(**known[text]) for text in given.point]))


if __name__ == "__main__":
    main()
