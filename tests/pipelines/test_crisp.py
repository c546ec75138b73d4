"""Training for clusters: the pooling in the forward pass, the trainer, and the token map that needs no labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ragq.compressors.multivector import MultiVectorCompressor
from ragq.compressors.pooling import MAP, POOL
from ragq.errors import InvalidArgumentError
from ragq.pipelines.training.crisp import ClusterPooling, cluster_means, train_crisp, train_token_map
from tests.compressors.test_multivector import maxsim, tokens


def test_the_forward_pass_pools_as_the_codec_does() -> None:
    documents = tokens(longest=20)
    pooled = POOL(4).fit(documents).apply(documents)
    for document, expected in zip(documents, pooled, strict=True):
        np.testing.assert_allclose(cluster_means(torch.from_numpy(document), 4).numpy(), expected, atol=1e-6)


def test_gradients_flow_through_the_means_to_every_token() -> None:
    x = torch.from_numpy(tokens(longest=20).values[:12].copy()).requires_grad_()
    (cluster_means(x, 3) @ torch.arange(16, dtype=torch.float32)).sum().backward()
    assert x.grad is not None and (x.grad.abs().sum(dim=1) > 0).all()


def test_queries_are_pooled_only_when_asked() -> None:
    x = torch.from_numpy(tokens(longest=20).values[:24].reshape(2, 12, 16).copy())
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 5:] = 0

    def shape(pooling: ClusterPooling, task: str) -> list[int]:
        features = pooling({"token_embeddings": x, "attention_mask": mask}, task=task)
        return [int(row.sum()) for row in features["attention_mask"]]

    assert shape(ClusterPooling("50%"), "document") == [6, 3]
    assert shape(ClusterPooling("50%"), "query") == [12, 5]
    assert shape(ClusterPooling(8, 2), "query") == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [False, True])
def test_a_token_map_lowers_the_loss_that_it_is_trained_for(labelled: bool) -> None:
    documents, queries = tokens(30, longest=16, seed=1), tokens(20, seed=2)
    truth = maxsim(queries, documents)
    positives = {int(a): int(truth[a].argmax()) for a in np.flatnonzero(queries.counts)} if labelled else None
    stage = train_token_map(
        documents, queries, size=2, positives=positives, steps=30, batch=4, candidates=30, rate=0.01
    )

    def loss(before: MAP) -> float:
        pooled = maxsim(queries, POOL(2).fit(documents).apply(before.fit(documents).apply(documents)))
        total = 0.0
        for a in np.flatnonzero(queries.counts):
            some = np.isfinite(truth[a])
            got, wanted = (x[a, some] - np.logaddexp.reduce(x[a, some]) for x in (pooled, truth))
            best = truth[a, some].argmax()
            total += float(-got[best] if labelled else np.exp(wanted) @ (wanted - got))
        return total

    assert loss(stage) < 0.95 * loss(MAP())


def test_a_trained_map_is_part_of_the_codec_and_its_state() -> None:
    documents = tokens()
    stage = MAP.of(np.diag(np.arange(1, 17)).astype(np.float32))
    compressor = MultiVectorCompressor([stage, POOL(3)], MultiVectorCompressor.from_spec("F32").token_codec)
    codes = compressor.fit(documents).encode(documents)
    again = MultiVectorCompressor.from_spec(compressor.codec).load_state(compressor.state)
    assert compressor.codec == "MAP,POOL3,F32"
    np.testing.assert_array_equal(again.encode(documents).codes, codes.codes)


def test_a_token_map_needs_queries_and_documents() -> None:
    with pytest.raises(InvalidArgumentError, match="needs queries and two documents"):
        train_token_map(tokens(), tokens()[1:2])
    with pytest.raises(InvalidArgumentError, match="Got 3 and 1"):
        train_token_map(tokens()[:1], tokens()[2:5].take([0, 0, 0]))


@pytest.mark.slow
def test_crisp_trains_a_model_for_its_clusters(tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    from ragq.token_embedders import load_token_embedder

    model = load_token_embedder().model
    pairs = [(f"what is number {i}?", f"The number {i} comes after {i - 1} and before {i + 1}.") for i in range(16)]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train_crisp(model, pairs, tmp_path / "crisp", size=4, query_size=3, batch=8)
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert np.mean(changed) > 0.9
    saved = MultiVectorEncoder(str(tmp_path / "crisp"))
    texts = [text for _, text in pairs[:3]]
    for ours, theirs in zip(model.encode_document(texts), saved.encode_document(texts), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert len(ours) > 8  # the index pools, not the saved model
    with pytest.raises(InvalidArgumentError, match="'pairs'"):
        train_crisp(model, pairs[:1], tmp_path / "one")
