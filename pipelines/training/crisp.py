"""Training multi-vector models for their clusters, and a map of tokens that needs no training of a model.

CRISP (arXiv 2505.11471) clusters the tokens of every query and document inside the forward pass and scores the
clusters' means, so that the model learns tokens whose clusters lose little: `ClusterPooling` is that step, for the end
of a sentence-transformers `MultiVectorEncoder`, and `train_crisp` its trainer with the in-batch contrastive loss.
Gradients flow through the means; which token belongs where is decided anew at every step and has none.

`train_token_map` leaves the model alone: from cached tokens it learns the square matrix `T` that brings MaxSim over the
clusters of ``T x`` nearest to MaxSim over all ``x``, by the divergence ``KL(softmax(full / t) | softmax(pooled / t))``
over each query's candidates. It needs queries and no labels, and becomes the stage ``MAP`` before ``POOL``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.multi_vector_encoder.modules.token_pooling import BaseTokenPooling
from torch import Tensor
from torch.nn import functional

from ragq.checks import check_int
from ragq.compressors import _cpu
from ragq.compressors.pooling import MAP, POOL, check_size, sizes
from ragq.compressors.tokens import check_tokens
from ragq.errors import InvalidArgumentError
from ragq.pipelines.training.settings import trainer_options
from ragq.tokens import TokenEmbeddings

__all__ = ["ClusterPooling", "train_crisp", "train_token_map"]

REFRESH = 50  # steps after which documents are clustered anew


def cluster_means(tokens: Tensor, size: int | str) -> Tensor:
    """Return the unit means of Ward's clusters of one text's tokens, differentiable in the tokens.

    Parameters
    ----------
    tokens : Tensor of float, shape (n, dim)
    size : int or str
        Clusters: a number, or a share of the tokens such as ``'33%'``.
    """
    return means(tokens, clusters(tokens, size)) if len(tokens) else tokens


def clusters(tokens: Tensor, size: int | str) -> Tensor:
    """Return the cluster of each token, `(n,)`."""
    n = len(tokens)
    rows = np.ascontiguousarray(tokens.detach().cpu().float().numpy())
    labels = _cpu.cluster_runs(rows, np.array([0, n]), sizes(size, np.array([n])), 0, 1)
    return torch.from_numpy(labels.astype(np.int64)).to(tokens.device)


def means(tokens: Tensor, labels: Tensor) -> Tensor:
    """Return the unit means of clusters, `(clusters, dim)`."""
    sums = tokens.new_zeros((int(labels.max()) + 1, tokens.shape[1])).index_add(0, labels, tokens)
    return functional.normalize(sums, dim=-1)


class ClusterPooling(BaseTokenPooling):
    """Replace tokens by the means of their clusters, in training as in encoding.

    Parameters
    ----------
    size : int or str
        Clusters a document: a number, or a share of its tokens.
    query_size : int or str, optional
        Clusters a query; queries keep their tokens when None.
    """

    config_keys: list[str] = ["size", "query_size"]  # noqa: RUF012

    def __init__(self, size: int | str, query_size: int | str | None = None) -> None:
        super().__init__(tasks=["document"] if query_size is None else ["query", "document"])
        self.size = check_size(size, "ClusterPooling")
        self.query_size = None if query_size is None else check_size(query_size, "ClusterPooling")
        self._now = self.size

    def forward(self, features: dict[str, Tensor], task: str | None = None) -> dict[str, Tensor]:
        """Pool one batch; `task` says whether it holds queries or documents."""
        self._now = self.query_size if task == "query" and self.query_size is not None else self.size
        return super().forward(features, task=task)

    def pool_one(self, embedding: Tensor, **_: Any) -> Tensor:
        """Return the means of one text's clusters."""
        return cluster_means(embedding, self._now)


def train_crisp(
    model: Any,
    pairs: Sequence[tuple[str, str]],
    output: str | Path,
    *,
    size: int | str = 32,
    query_size: int | str | None = None,
    epochs: int = 1,
    batch: int = 16,
    rate: float = 2e-5,
    scale: float = 1.0,
    seed: int = 0,
) -> Any:
    """Train a multi-vector model with its clusters in the forward pass, and save it.

    The pooling is there for the training only: what is saved is the model itself, which any version of
    sentence-transformers loads, and the index clusters its tokens by ``POOL`` with the same size.

    Parameters
    ----------
    model : MultiVectorEncoder
        Trained in place.
    pairs : sequence of (str, str)
        Queries, each with a document that answers it; the other documents of a batch count as wrong answers.
    output : path-like
        Folder for the trained model.
    size, query_size
        See `ClusterPooling`.
    epochs, batch, rate
        Of the trainer.
    scale : float
        MaxSim is multiplied by it before the softmax.
    seed : int

    Returns
    -------
    MultiVectorEncoder

    Raises
    ------
    InvalidArgumentError
        Fewer than two pairs: a batch needs a wrong answer.
    """
    options = trainer_options(Path(output), epochs, batch, len(pairs), rate, seed)
    from datasets import Dataset
    from sentence_transformers.multi_vector_encoder import (
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
    )
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss

    check_int(len(pairs), "pairs", 2)
    model.append(ClusterPooling(size, query_size))
    data = Dataset.from_dict({"query": [query for query, _ in pairs], "document": [text for _, text in pairs]})
    arguments = MultiVectorEncoderTrainingArguments(**options, dataloader_drop_last=True)
    loss = MultiVectorMultipleNegativesRankingLoss(model, scale=scale)
    try:
        MultiVectorEncoderTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    finally:
        del model[-1]
    model.save_pretrained(str(output))
    return model


def maxsim(query: Tensor, documents: Sequence[Tensor]) -> Tensor:
    """Return the MaxSim of one query with some documents, `(len(documents),)`."""
    scores = query @ torch.cat(list(documents)).T
    return torch.stack([part.max(dim=1).values.sum() for part in scores.split([len(d) for d in documents], dim=1)])


def train_token_map(
    tokens: TokenEmbeddings,
    queries: TokenEmbeddings,
    *,
    size: int | str = "9%",
    positives: Mapping[int, int] | None = None,
    steps: int = 300,
    batch: int = 8,
    candidates: int = 24,
    rate: float = 1e-3,
    temperature: float = 1.0,
    seed: int = 0,
) -> MAP:
    """Learn the token map that loses least when the mapped tokens are clustered.

    Parameters
    ----------
    tokens : TokenEmbeddings
        Of documents.
    queries : TokenEmbeddings
        Any queries that are like those to come.
    size : int or str
        Clusters a document, as of the POOL that will follow.
    positives : mapping of int to int, optional
        Query to a document that answers it. With them the loss is CRISP's, the cross entropy of the right document
        among the candidates; without, the divergence from MaxSim over all tokens, which needs no labels.
    steps, batch, candidates : int
        Steps, queries of a step, and documents that each query scores: its best by MaxSim, and as many at random.
    rate : float
        Of Adam, falling to 0.
    temperature : float
        Of the softmax over MaxSim.
    seed : int

    Returns
    -------
    MAP
        Fitted, to be put before ``POOL``.

    Raises
    ------
    InvalidArgumentError
        No queries, other dimensions, or fewer than two documents.
    """
    check_tokens(tokens)
    check_tokens(queries, tokens.dim, name="queries")
    check_size(size, "train_token_map")
    asked = np.flatnonzero(queries.counts) if positives is None else np.array(sorted(positives), np.int64)
    whole = np.flatnonzero(tokens.counts)
    if len(asked) == 0 or len(whole) < 2:
        raise InvalidArgumentError(
            f"A token map needs queries and two documents with tokens. Got {len(asked)} and {len(whole)}."
        )
    rng = np.random.default_rng(seed)
    near = nearest_documents(tokens, queries, whole, candidates // 2)
    matrix = torch.eye(tokens.dim, requires_grad=True)
    optimizer = torch.optim.Adam([matrix], lr=rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    labels: dict[int, Tensor] = {}
    for step in range(steps):
        if step % REFRESH == 0:
            labels.clear()
        loss = torch.zeros(())
        for query in rng.choice(asked, min(batch, len(asked)), replace=False):
            others = rng.choice(whole, min(candidates - candidates // 2, len(whole)), replace=False)
            right = [] if positives is None else [positives[int(query)]]
            chosen = list(dict.fromkeys([*right, *near[query].tolist(), *others.tolist()]))
            documents = [torch.from_numpy(tokens[int(d)]) for d in chosen]
            moved = [mapped(document, matrix) for document in documents]
            for d, document in zip(chosen, moved, strict=True):
                if d not in labels:
                    labels[d] = clusters(document, size)
            asking = torch.from_numpy(queries[int(query)])
            pooled = maxsim(asking, [means(x, labels[d]) for d, x in zip(chosen, moved, strict=True)])
            got = functional.log_softmax(pooled / temperature, dim=0)
            if positives is None:
                wanted = functional.log_softmax(maxsim(asking, documents) / temperature, dim=0)
                loss = loss + functional.kl_div(got, wanted, reduction="sum", log_target=True)
            else:
                loss = loss - got[0]
        optimizer.zero_grad()
        (loss / batch).backward()
        optimizer.step()
        falling.step()
    return MAP.of(matrix.detach().numpy())


def mapped(tokens: Tensor, matrix: Tensor) -> Tensor:
    """Return unit tokens after the map."""
    return functional.normalize(tokens @ matrix, dim=-1)


def nearest_documents(
    tokens: TokenEmbeddings, queries: TokenEmbeddings, whole: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """Return the documents that pooled MaxSim puts first for each query, `(n_queries, k)`: the hard candidates."""
    from ragq.compressors.multivector import MultiVectorCompressor
    from ragq.retrievers.multivector import MultiVectorBlock, search

    some = tokens.take(whole)
    compressor = MultiVectorCompressor([POOL(8)], MultiVectorCompressor.from_spec("F32").token_codec).fit(some)
    block = MultiVectorBlock.from_codes(compressor, compressor.encode(some))
    _, rows = search(compressor, queries, [block], min(k, len(whole)), threads=1)
    return whole[np.maximum(rows, 0)]
