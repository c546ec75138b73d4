"""The model of an index: loaded by the name that the manifest holds, and compared with what the caller brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ragq.embedders import load_embedder, same_model
from ragq.errors import IncompatibleIndexError, InvalidArgumentError
from ragq.manifest import Manifest
from ragq.token_embedders import load_token_embedder

__all__ = ["embedder_of"]


def embedder_of(path: Path, manifest: Manifest, model: Any, options: dict[str, Any]) -> Any:
    """Return what embeds for an index: an `Embedder`, or a `TokenEmbedder` for a multi-vector index.

    Parameters
    ----------
    path : Path
        The index folder, for messages.
    manifest : Manifest
    model : optional
        What the caller brings; None loads what the manifest names.
    options : dict
        More arguments of `load_embedder`.

    Raises
    ------
    IncompatibleIndexError
        The model is not the one that the index was made with; names both sides.
    InvalidArgumentError
        No model was given, and the manifest names none that can be loaded.
    """
    known, tokens = manifest.embedder, manifest.multi_vector is not None
    kind, load = ("multi-vector", load_token_embedder) if tokens else ("sentence-transformers", load_embedder)
    options = dict(options)
    if model is None:
        if known is None:
            raise InvalidArgumentError(
                f"{path} was made from ready embeddings; open it with the model that made them: "
                "ragq.open(path, model=…) or --model, or search with search_embeddings."
            )
        if known.get("kind") != kind:
            raise InvalidArgumentError(
                f"{path} was embedded by {known.get('model')}; give it again: ragq.open(path, model=…)."
            )
        model = known["model"]
        names = ("revision", "skiplist") if tokens else ("revision", "truncate_dim")
        options = {name: known.get(name) for name in names} | options
        options.setdefault("prompts", known.get("prompts") or None)
    embedder: Any = load(model, **options)
    mine = known or {"kind": "embeddings", "dim": manifest.dim}
    difference = same_model(mine, embedder.fingerprint)
    if difference:
        raise IncompatibleIndexError(
            f"{path} and the model do not go together: {difference}. "
            "Open it with the model that made it, or index the documents again with the new one."
        )
    return embedder
