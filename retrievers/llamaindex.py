"""A LlamaIndex retriever over an index (extra ``llamaindex``)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import ragq
from ragq.absent import absent_base
from ragq.filters import Where

try:
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ImportError:
    BaseRetriever = absent_base("llama-index-core", "llamaindex")

__all__ = ["RagqRetriever"]


class RagqRetriever(BaseRetriever):
    """Retrieve passages from an index as nodes.

    Parameters
    ----------
    index : str, Path or Index
        The index, or its folder.
    k : int
        How many passages.
    where : mapping or pyarrow.compute.Expression, optional
        Filter, see `ragq.filters`.
    model : optional
        What embeds queries, where the index's own model is not to be loaded by name.
    **search
        More arguments of `Index.search`, such as ``rerank`` or ``select``.

    Examples
    --------
    >>> retriever = RagqRetriever("corpus.ragq", k=5)  # doctest: +SKIP
    >>> retriever.retrieve("what is a shard?")[0].score  # doctest: +SKIP
    """

    def __init__(self, index: Any, k: int = 5, where: Where | None = None, *, model: Any = None, **search: Any) -> None:
        super().__init__()
        self.index = ragq.open(index, model=model) if isinstance(index, (str, Path)) else index
        self.options = {"k": k, "where": where, **search}

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if query_bundle.embedding is not None:  # LlamaIndex has embedded the query itself
            hits = self.index.hits([query_bundle.embedding], **self.options)[0]
        else:
            hits = self.index.search(query_bundle.query_str, **self.options)
        return [
            NodeWithScore(
                node=TextNode(
                    id_=hit.id,
                    text=hit.text,
                    metadata={**hit.metadata, "title": hit.title, "document_id": hit.document_id},
                ),
                score=hit.score,
            )
            for hit in hits
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
