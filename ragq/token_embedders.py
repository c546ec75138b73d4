"""Token embedders: late-interaction models, the token embeddings of any sentence model, and functions, as one protocol.

`load_token_embedder` takes any of them. A checkpoint that was trained for late interaction (of sentence-transformers,
PyLate or Stanford's ColBERT) keeps its projection, prompts, skip-list and query expansion. Any other model gives its
own token embeddings, scaled to unit length: `MultiVectorEncoder` by itself would put a projection of random weights
behind it.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ragq.checks import check_int
from ragq.embedders import DEFAULT_MODEL, FunctionModel, LoadedModel, locate, no_progress_bar, not_loaded
from ragq.errors import InvalidArgumentError
from ragq.fingerprints import weights_sha256
from ragq.tokens import TokenEmbeddings

__all__ = [
    "FunctionTokenEmbedder",
    "MultiVectorEmbedder",
    "TokenEmbedder",
    "load_token_embedder",
    "untrained_projection",
]


@runtime_checkable
class TokenEmbedder(Protocol):
    """What the pipeline and a multi-vector index ask of a model; `ragq.embedders.Embedder` for runs of vectors.

    Attributes
    ----------
    dim : int
        Dimensions of a token embedding.
    max_tokens : int or None
        Tokens the model reads of a document, special tokens included; None where nobody knows.
    tokenizer : object or None
        The model's Hugging Face tokenizer, for chunking; None where there is none.
    fingerprint : dict
        JSON: what the model is; compare two with `ragq.embedders.same_model`.
    """

    @property
    def dim(self) -> int: ...
    @property
    def max_tokens(self) -> int | None: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def fingerprint(self) -> dict[str, Any]: ...

    def encode_documents(self, texts: Sequence[str]) -> TokenEmbeddings:
        """Return the token embeddings of passages; a passage of which every token is skipped has none."""

    def encode_queries(self, texts: Sequence[str]) -> TokenEmbeddings:
        """Return the token embeddings of queries."""


class MultiVectorEmbedder(LoadedModel):
    """A `sentence_transformers.MultiVectorEncoder` with its own prompts, skip-list and query expansion.

    Parameters
    ----------
    trained : bool
        Whether the model was trained for late interaction; False for the token embeddings of another model.
    model, name, **options
        As of `ragq.embedders.LoadedModel`.
    """

    kind = "multi-vector"

    def __init__(self, model: Any, name: str, *, trained: bool = True, **options: Any) -> None:
        super().__init__(model, name, **options)
        self.trained = trained

    @property
    def max_tokens(self) -> int | None:
        """Tokens the model reads of a document, special tokens included; the rest of a text is cut off."""
        lengths = [getattr(self.model[0], "document_length", None), super().max_tokens]
        return min((int(length) for length in lengths if length is not None), default=None)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the model is and how it chooses tokens; see `ragq.embedders.same_model`."""
        skip = [word for module in self.model for word in getattr(module, "skiplist_words", [])]
        first = self.model[0]
        return super().fingerprint | {
            "trained": self.trained,
            "skiplist": sorted(skip),
            "query_length": getattr(first, "query_length", None),
            "query_expansion": getattr(first, "query_expansion", None),
        }

    def encode_documents(self, texts: Sequence[str]) -> TokenEmbeddings:
        """Return the token embeddings of passages with the model's document prompt, without those of its skip-list."""
        return self._encode(self.model.encode_document, texts)

    def encode_queries(self, texts: Sequence[str]) -> TokenEmbeddings:
        """Return the token embeddings of queries with the model's query prompt and expansion."""
        return self._encode(self.model.encode_query, texts)

    def _encode(self, encode: Callable[..., Any], texts: Sequence[str]) -> TokenEmbeddings:
        rows = (
            encode(list(texts), batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True)
            if len(texts)
            else []
        )
        return TokenEmbeddings.from_list([np.asarray(row, np.float32) for row in rows], self.dim)


class FunctionTokenEmbedder(FunctionModel):
    """A function from a list of n texts to n arrays of shape (tokens, dim)."""

    def encode_documents(self, texts: Sequence[str]) -> TokenEmbeddings:
        """Return what the function returns for `texts`, checked."""
        if not len(texts):
            return TokenEmbeddings.from_list([], self.dim)
        made = self.function(list(texts))
        tokens = made if isinstance(made, TokenEmbeddings) else TokenEmbeddings.from_list(made, self._dim)
        if len(tokens) != len(texts) or self._dim not in (None, tokens.dim):
            raise InvalidArgumentError(
                f"{self.name} must return one array of shape (tokens, {self._dim or 'dim'}) per text. "
                f"Got {len(tokens)} of {tokens.dim} dimensions for {len(texts)} texts."
            )
        self._dim = tokens.dim
        return tokens


def load_token_embedder(
    model: Any = DEFAULT_MODEL,
    *,
    backend: str = "torch",
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int = 32,
    prompts: dict[str, str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    skiplist: Sequence[str] = (),
    truncate_dim: int | None = None,
) -> TokenEmbedder:
    """Return `model` as a `TokenEmbedder`.

    Parameters
    ----------
    model : str, Path, MultiVectorEncoder, SentenceTransformer, callable or TokenEmbedder
        A name or a folder of a late-interaction or a sentence model; a loaded one; a function from ``list[str]`` to as
        many arrays of shape (tokens, dim). The default model's own token embeddings need no network with
        ``ragq[offline]``.
    backend, device, dtype, batch_size, prompts, revision, trust_remote_code
        As in `ragq.embedders.load_embedder`.
    skiplist : sequence of str
        Tokens of documents to leave out (``string.punctuation``), of a model that brings no skip-list of its own.
    truncate_dim : int, optional
        Not possible here, since a projection's dimensions have no order.

    Raises
    ------
    InvalidArgumentError
        The model is not here and cannot be fetched, or is nothing that embeds tokens.

    Warns
    -----
    UserWarning
        The checkpoint was not trained for late interaction (the default model is documented and does not warn), or its
        projection holds the random weights that it was initialised with.
    """
    if truncate_dim is not None:
        raise InvalidArgumentError(
            "Token embeddings are not cut: 'truncate_dim' must be None for a multi-vector model."
        )
    if isinstance(model, (str, Path)):
        options = {"backend": backend, "device": device, "prompts": prompts, "trust_remote_code": trust_remote_code}
        options |= {"model_kwargs": {"dtype": dtype} if dtype else None}
        return _load(str(model), revision, check_int(batch_size, "batch_size", 1), tuple(skiplist), options)
    if isinstance(model, (MultiVectorEmbedder, FunctionTokenEmbedder)):
        return model
    if hasattr(model, "encode_document") and hasattr(model, "tokenizer"):
        name = str(getattr(getattr(model, "model_card_data", None), "base_model", None) or type(model).__name__)
        if type(model).__name__ == "MultiVectorEncoder":
            return _warned(MultiVectorEmbedder(model, name, batch_size=batch_size))
        return _warned(MultiVectorEmbedder(_token_model(model, skiplist), name, trained=False, batch_size=batch_size))
    if hasattr(model, "encode_queries") and isinstance(model, TokenEmbedder):
        return model
    if callable(model):
        return FunctionTokenEmbedder(model)
    raise InvalidArgumentError(
        "'model' of a multi-vector index must be a name or path of a late-interaction or a sentence model, or a "
        f"function from list[str] to arrays of shape (tokens, dim). Got {type(model).__name__}."
    )


def is_late_interaction(folder: Path) -> bool:
    """Tell whether a model folder was saved as a late-interaction model, and so brings what it was trained with."""

    def field(file: str, name: str) -> Any:
        path = folder / file
        try:
            return json.loads(path.read_text(encoding="utf-8")).get(name) if path.exists() else None
        except (OSError, ValueError, AttributeError):
            return None

    architectures = field("config.json", "architectures") or []
    return field("config_sentence_transformers.json", "model_type") in ("MultiVectorEncoder", "ColBERT") or any(
        name == "HF_ColBERT" or str(name).endswith("ForRetrieval") for name in architectures
    )


def untrained_projection(model: Any) -> bool:
    """Tell whether the last dense layer over tokens still holds the weights that torch initialises a layer with.

    They are uniform in ±1/sqrt(inputs), and no training step leaves all of them inside: that is what is looked for.
    """
    layers = [module.linear for module in model if type(module).__name__ == "Dense" and hasattr(module, "linear")]
    if not layers:
        return False
    weight = layers[-1].weight.detach().float()
    bound = 1 / math.sqrt(weight.shape[1])
    largest, spread = float(weight.abs().max()), float(weight.std()) * math.sqrt(3)
    return 0.98 * bound < largest <= 1.001 * bound and abs(spread - bound) < 0.05 * bound


def _warned(embedder: MultiVectorEmbedder) -> MultiVectorEmbedder:
    """Say once what a model was not trained for."""
    if untrained_projection(embedder.model):
        warnings.warn(
            f"The projection of {embedder.name} has the random weights that it was initialised with: it loses what the "
            "tokens mean. Train it, or give the name of the model below it, whose own token embeddings are then used.",
            stacklevel=3,
        )
    elif not embedder.trained and embedder.name != DEFAULT_MODEL:
        warnings.warn(
            f"{embedder.name} has no projection that was trained for late interaction; its own token embeddings "
            f"({embedder.dim} dimensions) are used.",
            stacklevel=3,
        )
    return embedder


def _token_model(model: Any, skiplist: Sequence[str]) -> Any:
    """Return a late-interaction model of a SentenceTransformer's own token embeddings, scaled to unit length."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    transformer = model[0]
    if not hasattr(transformer, "tokenizer") or type(transformer).__name__ == "StaticEmbedding":
        raise InvalidArgumentError(
            f"{type(transformer).__name__} gives no token embeddings; a multi-vector index needs a transformer."
        )
    mask, unit = MultiVectorMask(skiplist_words=list(skiplist)), Normalize(module_input_name="token_embeddings")
    return MultiVectorEncoder(modules=[transformer, mask, unit], prompts=model.prompts, device=str(model.device))


def _load(
    name: str, revision: str | None, batch_size: int, skiplist: tuple[str, ...], options: dict[str, Any]
) -> MultiVectorEmbedder:
    """Load by folder, by the offline package or by the hub's cache, and only then by the network."""
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer

    name, folder, cached = locate(name, revision)
    local = folder is not None or cached is not None
    arguments = {"revision": None if folder else revision, "local_files_only": local, **options}
    try:
        with no_progress_bar() if local else nullcontext():
            if not local:
                MultiVectorEncoder(name, **arguments)  # fetches the files, which then say what the model is
                cached = locate(name, revision)[2]
            place = folder or cached
            trained = place is not None and is_late_interaction(place)
            if trained:
                model = MultiVectorEncoder(str(folder or name), **arguments)
            else:
                model = _token_model(SentenceTransformer(str(folder or name), **arguments), skiplist)
    except InvalidArgumentError:
        raise
    except Exception as error:  # a missing backend is raised as a bare Exception
        raise not_loaded(name, error) from error
    weights = weights_sha256(place) if place else None
    return _warned(
        MultiVectorEmbedder(model, name, trained=trained, revision=revision, batch_size=batch_size, weights=weights)
    )
