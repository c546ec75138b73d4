"""Cross encoders as teachers: margins between the documents of a query (GPL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.pipelines.training.data import Margins
from ragq.pipelines.training.vectors import Vectors
from ragq.retrievers.rerank import load_reranker

__all__ = ["margins"]

Floats = NDArray[np.float32]
DEPTH = 25  # documents of a query that the cross encoder reads


def margins(
    model: Any, vectors: Vectors, queries: Floats, texts: Sequence[str | None], passages: Sequence[str]
) -> Margins:
    """Let a cross encoder score the documents that the dense scores put first.

    A cross encoder's scores spread about ten times as wide as cosines, and how wide is no matter of relevance: they are
    scaled so that over all queries they spread around their query's mean as the dense scores of the same documents do.

    Parameters
    ----------
    model : str or CrossEncoder or callable
        See `ragq.retrievers.rerank.load_reranker`.
    vectors : Vectors
    queries : ndarray of float32, shape (n, dim)
    texts : sequence of (str or None)
        The queries; one without a text gets no margins.
    passages : sequence of str
        The documents' texts, by row.

    Notes
    -----
    Wang, Thakur, Reimers and Gurevych, "GPL: Generative pseudo labeling for unsupervised domain adaptation of dense
    retrieval", NAACL 2022.
    """
    score = load_reranker(model)
    dense, rows = vectors.search(queries, min(DEPTH, len(vectors)))
    found = np.zeros(rows.shape, np.float32)
    known = np.asarray([text is not None for text in texts], bool)
    for i, text in enumerate(texts):
        if text is not None:
            found[i] = score(text, [passages[row] for row in rows[i]])
    spread = (found - found.mean(axis=1, keepdims=True))[known].std()
    wanted = (dense - dense.mean(axis=1, keepdims=True))[known].std()
    return Margins(np.where(known[:, None], rows, -1), found * np.float32(wanted / max(spread, 1e-12)))
