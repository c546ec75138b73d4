"""What the stages of a multi-vector codec share: config and state as any stage, fitted on runs of token embeddings."""

from __future__ import annotations

from abc import ABC
from typing import Any, Self

import numpy as np

from ragq.compressors.base import Stage
from ragq.errors import InvalidArgumentError
from ragq.tokens import TokenEmbeddings

__all__ = ["TokenStage", "check_tokens"]


def check_tokens(tokens: TokenEmbeddings, dim: int | None = None, *, name: str = "tokens") -> TokenEmbeddings:
    """Return `tokens` when it is `TokenEmbeddings` of `dim` dimensions, or say what came."""
    if not isinstance(tokens, TokenEmbeddings):
        raise InvalidArgumentError(
            f"'{name}' must be TokenEmbeddings; TokenEmbeddings.from_list joins arrays. Got {type(tokens).__name__}."
        )
    if dim is not None and tokens.dim != dim:
        raise InvalidArgumentError(f"'{name}' must have {dim} dimensions. Got {tokens.dim}.")
    return tokens


class TokenStage(Stage, ABC):
    """A stage that sees whole documents: runs of token embeddings instead of single vectors."""

    def fit(  # type: ignore[override]
        self, tokens: TokenEmbeddings, *, queries: TokenEmbeddings | None = None, qrels: Any = None, seed: int = 0
    ) -> Self:
        """Learn from the token embeddings of a sample of documents.

        Parameters
        ----------
        tokens : TokenEmbeddings
            At least `minimum_rows` tokens in all.
        queries : TokenEmbeddings, optional
            Token embeddings of queries, for the stages that use them.
        qrels : mapping of int to set of int, optional
            Query to relevant documents, for the stages that use labels.
        seed : int

        Raises
        ------
        InvalidArgumentError
            Fewer tokens than the stage needs, or queries of another dimension.
        """
        check_tokens(tokens)
        if tokens.total < self.minimum_rows:
            raise InvalidArgumentError(
                f"{self} needs at least {self.minimum_rows} token embeddings to fit. Got {tokens.total}."
            )
        if queries is not None:
            check_tokens(queries, tokens.dim, name="queries")
        self._check_dim(tokens.dim)
        self.dim_ = tokens.dim
        try:
            self._fit_tokens(tokens, queries, np.random.default_rng(seed))
        except BaseException:
            self.dim_ = None
            raise
        return self

    def _fit_tokens(self, tokens: TokenEmbeddings, queries: TokenEmbeddings | None, rng: np.random.Generator) -> None:
        """Set the arrays of `state_names`; nothing to learn is fine."""

    def _check_tokens(self, tokens: TokenEmbeddings, name: str = "tokens") -> TokenEmbeddings:
        return check_tokens(tokens, self.dim, name=name)
