"""Fewer vectors a document: clusters keep sums, prunings keep tokens, and carving keeps what MaxSim adds up."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from ragq.compressors import _cpu
from ragq.compressors.pooling import CARVE, POOL, PRUNE
from ragq.tokens import TokenEmbeddings
from tests.compressors.conftest import embeddings
from tests.compressors.test_multivector import DIM, maxsim, tokens


def labels(x: NDArray[np.float32], k: int, iterations: int = 0) -> NDArray[np.uint32]:
    return _cpu.cluster_runs(x, np.array([0, len(x)]), np.array([k]), iterations, 1)


@pytest.mark.parametrize("n", [2, 7, 40, 150])
@pytest.mark.parametrize("k", [1, 2, 5, 33])
def test_ward_is_that_of_scipy(n: int, k: int) -> None:
    x = embeddings(n, 24, seed=n)
    ours, theirs = labels(x, k), fcluster(linkage(x, "ward"), min(k, n), "maxclust")
    assert len(set(ours)) == min(k, n) == len(set(zip(ours.tolist(), theirs.tolist(), strict=True)))


def test_clusters_are_numbered_by_their_first_tokens() -> None:
    for iterations in (0, 10):
        found = labels(embeddings(50, DIM, seed=1), 9, iterations)
        _, first = np.unique(found, return_index=True)
        assert (np.diff(first) > 0).all()


def test_duplicates_and_zeros_are_clustered_too() -> None:
    x = np.zeros((20, DIM), np.float32)
    assert len(set(labels(x, 4))) == 4
    x[10:, 0] = 1
    for iterations in (0, 10):
        found = labels(x, 2, iterations)
        assert len(set(found[:10])) == len(set(found[10:])) == 1 and found[0] != found[10]


def test_a_long_document_is_clustered_whole() -> None:
    x = embeddings(2500, 8, seed=2)
    pooled = POOL(7).fit(TokenEmbeddings.from_list([x])).apply(TokenEmbeddings.from_list([x, x[:3]]))
    assert pooled.counts.tolist() == [7, 3]


@pytest.mark.parametrize("method", ["ward", "kmeans"])
def test_means_times_members_are_the_sum_of_the_tokens(method: str) -> None:
    documents = tokens(longest=30)
    stage = POOL(5, method, unit=False).fit(documents)
    pooled = stage.apply(documents)
    for document, means in zip(documents, pooled, strict=True):
        found = labels(document, 5, 10 if method == "kmeans" else 0)
        members = np.bincount(found, minlength=len(means))[:, None]
        np.testing.assert_allclose((members * means).sum(axis=0), document.sum(axis=0), atol=1e-5)
        assert len(means) == min(5, len(document))


def test_unit_means_are_the_directions_of_the_means() -> None:
    documents = tokens(longest=30)
    means, unit = (POOL(5, unit=unit).fit(documents).apply(documents).values for unit in (False, True))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(means / np.linalg.norm(means, axis=1, keepdims=True), unit, atol=1e-6)


@pytest.mark.parametrize("stage", [POOL(12), POOL(12, "kmeans"), PRUNE(12, "first"), PRUNE(12, "norm")], ids=str)
def test_documents_of_fewer_tokens_stay_as_they_are(stage: POOL | PRUNE) -> None:
    documents = tokens(longest=9)
    kept = stage.fit(documents).apply(documents)
    np.testing.assert_array_equal(kept.values, documents.values)
    np.testing.assert_array_equal(kept.offsets, documents.offsets)


@pytest.mark.parametrize("name", [POOL, PRUNE])
def test_a_share_is_rounded_up(name: type) -> None:
    x = embeddings(100, DIM, seed=1)
    documents = TokenEmbeddings.from_list([x[:n] for n in (0, 1, 3, 4, 100)])
    stage = name("33.3%", "ward" if name is POOL else "first").fit(documents)
    assert stage.apply(documents).counts.tolist() == [0, 1, 1, 2, 34]


def test_clusters_lose_less_of_maxsim_than_pruning() -> None:
    documents, queries = tokens(n=120, longest=40, seed=3), tokens(n=20, seed=4)
    truth = maxsim(queries, documents)
    some = np.isfinite(truth)

    def error(stage: POOL | PRUNE) -> float:
        kept = maxsim(queries, stage.fit(documents).apply(documents))
        return float(np.square(kept[some] - truth[some]).mean())

    pruned = [error(PRUNE(6, by, 16)) for by in ("first", "spread", "norm", "idf")]
    assert max(error(POOL(6)), error(POOL(6, "kmeans"))) < min(pruned)


def test_first_and_spread_keep_positions() -> None:
    x = np.arange(10, dtype=np.float32)[:, None] * np.ones((1, DIM), np.float32)
    documents = TokenEmbeddings.from_list([x, x[:4]])
    kept = {by: PRUNE(5, by).fit(documents).apply(documents).values[:, 0].tolist() for by in ("first", "spread")}
    assert kept["first"] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert kept["spread"] == [0, 2, 4, 6, 8, 0, 1, 2, 3]


def test_norm_keeps_what_lies_far_from_the_mean() -> None:
    documents = tokens(longest=30)
    stage = PRUNE(3, "norm").fit(documents)
    for document, kept in zip(documents, stage.apply(documents), strict=True):
        far = np.square(document - stage.mean_).sum(axis=1)
        np.testing.assert_array_equal(kept, document[np.sort(np.argsort(-far, kind="stable")[:3])])


def test_idf_keeps_the_tokens_that_few_documents_have() -> None:
    topics = np.eye(DIM, dtype=np.float32)
    documents = TokenEmbeddings.from_list([topics[[0, 1, 2 + d % 14]] for d in range(28)])  # two topics are everywhere
    kept = PRUNE(1, "idf", 16).fit(documents).apply(documents)
    np.testing.assert_array_equal(kept.values, documents.values[2::3])


def test_carving_adds_up_near_tokens_and_leaves_documents() -> None:
    x = np.eye(3, DIM, dtype=np.float32)
    near = (0.9 * x[0] + np.sqrt(np.float32(0.19)) * x[1])[None]
    queries = TokenEmbeddings.from_list([np.concatenate([x[:1], near, x[2:]]), x[:0], x[:1]])
    stage = CARVE(0.7).fit(queries)
    carved = stage.apply_queries(queries)
    assert carved.counts.tolist() == [2, 0, 1]
    np.testing.assert_allclose(carved.values[0], x[0] + near[0])
    np.testing.assert_array_equal(stage.apply(queries).values, queries.values)


def test_carving_equal_tokens_changes_no_score() -> None:
    documents = tokens(seed=3)
    query = TokenEmbeddings.from_list([np.repeat(tokens(seed=4).values[:3], 4, axis=0)])
    carved = CARVE(0.9999).fit(query).apply_queries(query)
    assert len(carved.values) == 3
    np.testing.assert_allclose(maxsim(carved, documents), maxsim(query, documents), rtol=1e-5)
