"""The query encoder itself, trained together with the query side of a codec (JPQ's and Distill-VQ's largest gain).

The documents stay as they are: the same embeddings, the same codes. What moves is the model that embeds queries, by
the sentence-transformers trainer, and with it the codec's query mean, map and codewords. The teacher is the model as it
was: its dense scores of the queries against the documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ragq.checks import check_int
from ragq.compressors import Compressor, from_spec
from ragq.errors import InvalidArgumentError
from ragq.pipelines.codecs import save_codec
from ragq.pipelines.training import losses
from ragq.pipelines.training.data import Pools, TrainingQueries
from ragq.pipelines.training.settings import settings_for, trainer_options
from ragq.pipelines.training.students import make_student
from ragq.pipelines.training.validation import Encoded, Validation
from ragq.pipelines.training.vectors import Vectors

__all__ = ["IndexLoss", "train_query_encoder"]

ENCODER = "encoder"
ENCODER_RATE = 1e-5
CODEC_RATE = 1e-4  # ten times the encoder's, as in JPQ and RepCONC


class IndexLoss(nn.Module):
    """The listwise loss of encoded queries against coded documents, for a sentence-transformers trainer.

    Parameters
    ----------
    model : SentenceTransformer
    codec : Compressor
        A learned codec; its query side trains along.
    vectors : Vectors
        Document embeddings.
    queries : ndarray of float32, shape (n, dim)
        What the untrained model makes of the queries; the labels of a batch are their numbers.
    seed : int
    """

    def __init__(
        self, model: Any, codec: Compressor, vectors: Vectors, queries: NDArray[np.float32], seed: int
    ) -> None:
        super().__init__()
        self.model, self.vectors, self.queries = model, vectors, queries
        self.settings = settings_for("distill-vq", seed=seed, reassign=False)
        self.student = make_student(codec, self.settings)
        self.encoded = Encoded.of(codec, vectors)
        data = TrainingQueries(queries, len(queries), queries[:1])
        self.pools = Pools(vectors, data, self.settings)
        self.hard = self.encoded.search(codec, queries, self.settings.depth)
        self.step = 0

    def forward(self, sentence_features: Sequence[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        asked = self.model(sentence_features[0])["sentence_embedding"]
        if self.vectors.normalize:
            asked = nn.functional.normalize(asked, dim=1)
        numbers = labels.cpu().numpy().reshape(-1)
        self.step += 1
        rows = self.pools.pool(numbers, self.hard, 0, self.step)
        documents = torch.tensor(self.vectors.take(rows), device=asked.device)
        scores, _ = self.student.score(asked, documents, self.encoded.codes[rows])
        teacher = torch.tensor(self.queries[numbers], device=asked.device) @ documents.T
        return losses.listwise(scores, teacher, self.settings.temperature)


def train_query_encoder(
    model: Any,
    texts: Sequence[str],
    codec: Compressor,
    vectors: Vectors,
    out: str | Path,
    *,
    epochs: int = 1,
    batch: int = 32,
    seed: int = 0,
) -> tuple[Any, Compressor]:
    """Train a model to embed queries for a codec, and the codec's query side with it.

    A fifth of the queries validates; when they do not find more than before, the model and the codec come back as they
    were. Search with ``index.search_embeddings(model.encode_query(texts))``: the documents are those of the old model.

    Parameters
    ----------
    model : SentenceTransformer
        Trained in place.
    texts : sequence of str
        Queries, ten at least.
    codec : Compressor
        Fitted or trained, with fixed codes: `DistillVQ` or `JPQ`.
    vectors : Vectors
        Document embeddings by the same model.
    out : path
        Folder for ``encoder/`` and the codec.
    epochs, batch, seed : int

    Returns
    -------
    model : SentenceTransformer
    codec : Compressor

    Raises
    ------
    InvalidArgumentError
        Fewer than ten queries.
    """
    check_int(len(texts), "texts", 10)
    if not hasattr(codec, "query_codebook_"):
        raise InvalidArgumentError(f"{codec} has no codes that stay fixed. Train the encoder for DistillVQ or JPQ.")
    folder = Path(out)
    held = max(2, len(texts) // 5)
    out_texts, kept_texts = list(texts[:held]), list(texts[held:])
    teacher = encode(model, kept_texts, vectors)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    validation = Validation(vectors, encode(model, out_texts, vectors), {})
    loss = IndexLoss(model, codec, vectors, teacher, seed)
    before = validation.measure(codec, loss.encoded).mean
    fit(model, loss, kept_texts, folder, epochs, batch, seed)
    trained = from_spec(codec.spec).load_state({name: array.copy() for name, array in codec.state.items()})
    loss.student.write(trained)
    validation.queries = encode(model, out_texts, vectors)  # what is to be found stays that of the old model
    after = validation.measure(trained, loss.encoded).mean
    if after <= before:
        model.load_state_dict(first)
        trained = codec
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder / ENCODER))
    save_codec(folder, trained)
    return model, trained


def encode(model: Any, texts: Sequence[str], vectors: Vectors) -> NDArray[np.float32]:
    """Return query embeddings, scaled as the documents' are."""
    x = np.asarray(model.encode_query(list(texts), show_progress_bar=False), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True) if vectors.normalize else x


def fit(model: Any, loss: IndexLoss, texts: list[str], folder: Path, epochs: int, batch: int, seed: int) -> None:
    """Run the sentence-transformers trainer."""
    options = trainer_options(folder, epochs, batch, len(texts), ENCODER_RATE, seed)
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    data = Dataset.from_dict({"query": texts, "label": list(range(len(texts)))})
    arguments = SentenceTransformerTrainingArguments(
        **options, learning_rate_mapping={r"^student\.": CODEC_RATE}, warmup_steps=0.1
    )
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
