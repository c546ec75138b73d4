"""Rerankers: a second, finer opinion on the candidates of a search.

A reranker is a name or folder of a sentence-transformers `CrossEncoder`, an object with its ``predict(pairs)``, or any
function ``(query, passages) -> scores``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.errors import InvalidArgumentError

__all__ = ["Reranker", "load_reranker"]

Reranker = Callable[[str, Sequence[str]], Any]
"""``reranker(query, passages)`` returns one score a passage; higher is better."""


def load_reranker(model: Any) -> Callable[[str, Sequence[str]], NDArray[np.float32]]:
    """Return a function that scores passages and checks what comes back.

    Raises
    ------
    InvalidArgumentError
        Nothing that can rerank, or a reranker that does not return one finite score a passage.
    """
    if isinstance(model, (str, Path)):
        model = cross_encoder(str(model))
    if hasattr(model, "predict"):
        predict = model.predict

        def score(query: str, passages: Sequence[str]) -> Any:
            return predict([(query, passage) for passage in passages])

    elif callable(model):
        score = model
    else:
        raise InvalidArgumentError(
            f"'rerank' must be a CrossEncoder, its name, or a function. Got {type(model).__name__}."
        )

    def checked(query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        scores = np.asarray(score(query, passages), np.float32).reshape(-1)
        if scores.shape != (len(passages),) or not np.isfinite(scores).all():
            raise InvalidArgumentError(
                f"'rerank' must return one finite score a passage. Got {scores.size} for {len(passages)} passages."
            )
        return scores

    return checked


@lru_cache(maxsize=2)
def cross_encoder(name: str) -> Any:
    """Load a cross encoder, once a process."""
    from sentence_transformers import CrossEncoder

    try:
        return CrossEncoder(name)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidArgumentError(
            f"The reranker '{name}' cannot be loaded: {reason} Give the folder of a CrossEncoder, or allow the network."
        ) from None
