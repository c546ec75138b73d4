"""The stored neighbour graph: what it holds, and that an expansion along it keeps the laws of a search."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import ragq
from ragq.checks import normalized
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.layouts import Layout
from ragq.pipelines import view
from ragq.retrievers.structures.neighbours import passing
from ragq.select import pack_mask
from ragq.shards import write_block

DIM, N, K = 12, 600, 6
RNG = np.random.default_rng(5)
X = normalized(np.cumsum(RNG.standard_normal((N, DIM)), axis=0).astype(np.float32))  # a path: chains of neighbours
RECORDS = [{"id": f"d{i}", "text": f"t{i}", "even": i % 2 == 0} for i in range(N)]


@pytest.fixture
def index(tmp_path: Path) -> ragq.Index:
    ragq.build(RECORDS, tmp_path / "n.ragq", embeddings=X, codec="F32", shard_rows=250).close()
    return ragq.open(tmp_path / "n.ragq", mode="w")


def stored(index: ragq.Index) -> np.ndarray:
    searcher = index._view.searcher
    assert searcher is not None and searcher.neighbours is not None
    starts = index._view.snapshot.starts
    return searcher.neighbours.of(np.arange(starts[-1]), starts)


def ids(hits: list[ragq.Hit]) -> list[str]:
    return [hit.document_id for hit in hits]


@pytest.mark.parametrize("kind", ["none", "ivf", "sm2graph"])
def test_neighbours_are_the_nearest_other_rows(index: ragq.Index, kind: str) -> None:
    with mock.patch("ragq.retrievers.structures.sm2graph.SM2.overlap", return_value=1.0):
        built = index.restructure(kind, neighbours=K, recall=1.0)
    assert built.kind == {"none": "flat"}.get(kind, kind)
    near = stored(index)
    similarity = X @ X.T
    np.fill_diagonal(similarity, -1)
    kth = -np.sort(-similarity, axis=1)[:, K - 1 : K]
    assert near.shape == (N, K) and (near != np.arange(N)[:, None]).all()
    right = np.take_along_axis(similarity, near, axis=1) >= kth - 1e-5
    assert right.mean() >= (1 if kind == "none" else 0.95)
    assert (np.diff(np.take_along_axis(similarity, near, axis=1), axis=1) <= 1e-5).mean() > 0.99  # nearest first


@pytest.mark.parametrize("expand", ["neighbours", "pagerank"])
def test_an_expansion_looks_its_neighbours_up(index: ragq.Index, expand: str) -> None:
    queries = X[[7, 300, 599]] + np.float32(0.05)
    before = [ids(hits) for hits in index.hits(queries, k=12, fetch_k=3, expand=expand)]
    index.restructure("none", neighbours=8)
    with mock.patch.object(view.View, "near", side_effect=AssertionError("a scan for what is stored")):
        after = [ids(hits) for hits in index.hits(queries, k=12, fetch_k=3, expand=expand)]
    for without, found in zip(before, after, strict=True):
        assert len(found) > 6
        if expand == "pagerank":  # the walk goes along more links than those of the best
            assert set(found) & set(without[:3])
        else:  # a search for a seed finds the seed too, so that it may miss a last neighbour
            assert found[0] == without[0] and len(set(found) & set(without)) >= len(without) - 2
    plain = [ids(hits) for hits in index.hits(queries, k=12, fetch_k=3, select="unique")]
    assert all(len(found) <= 3 for found in plain)


@pytest.mark.parametrize("expand", ["neighbours", "pagerank"])
def test_filters_deletes_and_later_documents_hold_in_an_expansion(index: ragq.Index, expand: str) -> None:
    index.restructure("none", neighbours=8)
    index.delete([f"d{i}" for i in range(0, N, 5)])
    new = [{"id": f"n{i}", "text": "new", "even": True} for i in range(20)]
    index.add(new, embeddings=normalized(X[100:120] + np.float32(0.001)))
    index.delete([f"d{i}" for i in range(250)])  # a whole shard: the rows behind it move
    assert len(stored(index)) == sum(shard.rows for shard in index.manifest.shards)
    hits = index.hits(X[[105, 400]], k=15, fetch_k=4, expand=expand, where={"even": True})
    for found in hits:
        assert len(found) > 4 and len(set(ids(found))) == len(found)
        assert all(hit.metadata["even"] and hit.document_id in index for hit in found)
    assert any(name.startswith("n") for name in ids(hits[0])[:4])
    assert index.compact()
    assert (stored(index) >= 0).all()
    found = index.hits(X[[400]], k=15, fetch_k=4, expand=expand)[0]
    assert len(found) > 6 and all(hit.document_id in index for hit in found)


def test_masks_are_read_row_by_row() -> None:
    keep = [RNG.random(13) < 0.5, RNG.random(29) < 0.5]
    starts = np.asarray([0, 13, 42, 50])
    rows = np.append(RNG.permutation(50), -1)
    expected = np.append(np.concatenate([*keep, np.ones(8, bool)])[rows[:-1]], False)
    assert passing(rows, [*map(pack_mask, keep), None], starts).tolist() == expected.tolist()


def test_a_damaged_graph_and_bad_arguments_are_told(index: ragq.Index) -> None:
    with pytest.raises(InvalidArgumentError, match="neighbours"):
        index.restructure("none", neighbours=-1)
    index.restructure("none", neighbours=4)
    links = np.full((N, 4), N, "<u4").view(np.uint8)  # one row too far

    def beyond(folder: Path, name: str, layout: Layout, codes: np.ndarray) -> object:
        return write_block(folder, name, layout, links)

    with mock.patch("ragq.retrievers.structures.neighbours.write_block", side_effect=beyond):
        index.restructure("none", neighbours=4)
    with pytest.raises(CorruptIndexError, match="names rows"):
        index.hits(X[:1], expand="neighbours")
