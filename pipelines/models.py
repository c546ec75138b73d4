"""The model of an index: loaded by the name that the manifest holds, and compared with what the caller brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ragq.embedders import Embedder, load_embedder, same_model
from ragq.errors import IncompatibleIndexError, InvalidArgumentError
from ragq.manifest import Manifest

__all__ = ["embedder_of"]


def embedder_of(path: Path, manifest: Manifest, model: Any, options: dict[str, Any]) -> Embedder:
    """Return what embeds for an index.

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
    known = manifest.embedder
    options = dict(options)
    if model is None:
        if known is None:
            raise InvalidArgumentError(
                f"{path} was made from ready embeddings; open it with the model that made them: "
                "ragq.open(path, model=…) or --model, or search with search_embeddings."
            )
        if known.get("kind") != "sentence-transformers":
            raise InvalidArgumentError(
                f"{path} was embedded by {known.get('model')}; give it again: ragq.open(path, model=…)."
            )
        model = known["model"]
        options = {"revision": known.get("revision"), "truncate_dim": known.get("truncate_dim")} | options
        options.setdefault("prompts", known.get("prompts") or None)
    embedder = load_embedder(model, **options)
    mine = known or {"kind": "embeddings", "dim": manifest.dim}
    difference = same_model(mine, embedder.fingerprint)
    if difference:
        raise IncompatibleIndexError(
            f"{path} and the model do not go together: {difference}. "
            "Open it with the model that made it, or index the documents again with the new one."
        )
    return embedder
