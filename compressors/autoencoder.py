"""AE: a learned reduction with a non-linear encoder and a linear decoder.

::

    z = W' c + V' relu(U' c + u) + v        c = x - mean                     encoder
    x ~ mean + D z                                                           decoder
    <q, x> ~ <q, mean> + <D' q, z>                                           so scores need no decoding

`W` and `D` start as the leading principal components and `V` as zero, so training starts from PCA and can only leave it
for a lower loss. With a linear decoder PCA already has the least squared error; what is left to gain is the ranking.
The loss is therefore the Kullback-Leibler divergence between the softmax of true and of reconstructed similarities
within a batch (the embeddings to each other, and to the queries where `fit` gets some), plus the squared error.

Bytes per vector are those of the quantizer that follows, at the smaller dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragq.checks import check_int
from ragq.compressors.base import Floats
from ragq.compressors.exact import exact_matmul
from ragq.compressors.reduction import PCA, Reduction

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AE"]

BATCH = 512
LEARNING_RATE = 1e-3
TEMPERATURE = 0.05  # of similarities between unit vectors
FAR = -1e4  # added to an embedding's likeness to itself, which would drown the others


class AE(Reduction):
    """Autoencoder trained on similarities, from PCA.

    Parameters
    ----------
    n_components : int or str
        A count, or a share such as ``'50%'``.
    hidden : int
        Units of the encoder's hidden layer.
    steps : int
        Training steps of 512 embeddings each.
    """

    forms = ("AE{n_components}",)
    examples = ("AE8(hidden=16,steps=20),F32", "AE16(hidden=32,steps=20),FP8")
    menu = ("AE{4},FP8", "AE{8},FP8")
    state_names = ("mean_", "linear_", "hidden_weight_", "hidden_bias_", "output_weight_", "output_bias_", "decoder_")

    mean_: Floats  # (dim,)
    linear_: Floats  # (dim, m), W
    hidden_weight_: Floats  # (dim, hidden), U
    hidden_bias_: Floats  # (hidden,), u
    output_weight_: Floats  # (hidden, m), V
    output_bias_: Floats  # (m,), v
    decoder_: Floats  # (dim, m), D

    def __init__(self, n_components: int | str, hidden: int = 512, steps: int = 500) -> None:
        super().__init__(n_components)
        self.hidden = check_int(hidden, "hidden", 1, 65536)
        self.steps = check_int(steps, "steps", 0, 1_000_000)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        dim, m, hidden = self.dim, self.dim_out, self.hidden
        shapes = ((dim,), (dim, m), (dim, hidden), (hidden,), (hidden, m), (m,), (dim, m))
        return dict(zip(self.state_names, shapes, strict=True))

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        import torch

        pca = PCA(self.dim_out).fit(x)
        self.mean_ = pca.mean_
        trained = {
            "linear_": pca.matrix_,
            "hidden_weight_": rng.normal(size=(self.dim, self.hidden), scale=self.dim**-0.5).astype(np.float32),
            "hidden_bias_": np.zeros(self.hidden, np.float32),
            "output_weight_": np.zeros((self.hidden, self.dim_out), np.float32),
            "output_bias_": np.zeros(self.dim_out, np.float32),
            "decoder_": pca.matrix_,
        }
        # The loss sees unit-sized embeddings, whatever their unit is; the biases are in that unit.
        unit = np.float32(np.sqrt(np.square(x).sum(axis=1, dtype=np.float64).mean()) or 1.0)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the same sums on any number of cores, and the matrices are small
        try:
            self._train(trained, unit, x, queries, rng)
        finally:
            torch.set_num_threads(threads)

    def _train(
        self, start: dict[str, Floats], unit: np.float32, x: Floats, queries: Floats | None, rng: np.random.Generator
    ) -> None:
        """Set the arrays of `start` to their trained values."""
        import torch

        weights = {name: torch.tensor(array, requires_grad=True) for name, array in start.items()}
        optimizer = torch.optim.Adam(list(weights.values()), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self.steps))
        mean = torch.from_numpy(self.mean_ / unit)
        for _ in range(self.steps):
            batch = torch.from_numpy(x[rng.integers(len(x), size=BATCH)] / unit)
            anchors = batch
            if queries is not None:
                anchors = torch.cat([batch, torch.from_numpy(queries[rng.integers(len(queries), size=BATCH)])])
            loss = reconstruction_loss(weights, mean, batch, anchors)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        for name, tensor in weights.items():
            scale = unit if name.endswith("_bias_") else np.float32(1)
            setattr(self, name, tensor.detach().numpy() * scale)

    def apply(self, x: Floats) -> Floats:
        c = x - self.mean_
        hidden = np.maximum(exact_matmul(c, self.hidden_weight_) + self.hidden_bias_, 0)
        return exact_matmul(c, self.linear_) + exact_matmul(hidden, self.output_weight_) + self.output_bias_

    def inverse(self, z: Floats) -> Floats:
        return z @ self.decoder_.T + self.mean_

    def fold(self, queries: Floats) -> tuple[Floats, Floats]:
        return queries @ self.decoder_, queries @ self.mean_


def reconstruction_loss(weights: dict[str, Tensor], mean: Tensor, batch: Tensor, anchors: Tensor) -> Tensor:
    """Return the divergence of the anchors' `(a, dim)` similarities plus the squared error of the batch `(n, dim)`."""
    import torch
    from torch.nn.functional import kl_div, log_softmax

    c = batch - mean
    hidden = torch.relu(c @ weights["hidden_weight_"] + weights["hidden_bias_"])
    z = c @ weights["linear_"] + hidden @ weights["output_weight_"] + weights["output_bias_"]
    decoded = mean + z @ weights["decoder_"].T
    itself = torch.zeros(len(anchors), len(batch)).fill_diagonal_(FAR)
    wanted = log_softmax(anchors @ batch.T / TEMPERATURE + itself, dim=1)
    found = log_softmax(anchors @ decoded.T / TEMPERATURE + itself, dim=1)
    divergence = kl_div(found, wanted, reduction="batchmean", log_target=True)
    return divergence + (decoded - batch).square().sum(dim=1).mean()
