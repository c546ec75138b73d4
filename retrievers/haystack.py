"""A Haystack retriever component over an index (extra ``haystack``)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import ragq
from ragq.absent import AbsentComponent
from ragq.errors import InvalidArgumentError
from ragq.filters import Where

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError:
    Document, component = None, AbsentComponent()

__all__ = ["RagqRetriever", "to_where"]

WORDS = {"==": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte", "in": "in", "not in": "nin"}


@component
class RagqRetriever:
    """Retrieve passages from an index as Haystack documents.

    Parameters
    ----------
    index : str, Path or Index
        The index, or its folder. A pipeline that is to be saved needs the folder.
    top_k : int
        How many passages; also an input of `run`.
    where : mapping, optional
        Filter, see `ragq.filters`; `run` also takes Haystack's own ``filters``.
    model : optional
        What embeds queries, where the index's own model is not to be loaded by name.
    search : dict, optional
        More arguments of `Index.search`, such as ``rerank`` or ``select``.
    """

    def __init__(
        self,
        index: Any,
        top_k: int = 5,
        where: Where | None = None,
        model: Any = None,
        search: dict[str, Any] | None = None,
    ) -> None:
        folder = str(index) if isinstance(index, Path) else index
        self.options: dict[str, Any] = {"index": folder, "top_k": top_k, "where": where, "model": model}
        self.options["search"] = search
        self.index = ragq.open(index, model=model) if isinstance(index, (str, Path)) else index

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None, filters: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return ``{"documents": [...]}``, best first, with scores in the metric's own units."""
        k, where = self.options["top_k"] if top_k is None else top_k, self.options["where"]
        if filters:
            where = to_where(filters) if where is None else {"$and": [where, to_where(filters)]}
        hits = self.index.search(query, k=k, where=where, **(self.options["search"] or {}))
        return {
            "documents": [
                Document(
                    id=hit.id,
                    content=hit.text,
                    meta={**hit.metadata, "title": hit.title, "document_id": hit.document_id},
                    score=hit.score,
                )
                for hit in hits
            ]
        }

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, top_k: int | None = None, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """As `run`, without blocking the loop."""
        return await asyncio.to_thread(self.run, query, top_k, filters)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes: the folder of the index and the options."""
        return default_to_dict(self, **self.options)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RagqRetriever:
        """Open the retriever that `to_dict` described."""
        return default_from_dict(cls, data)


def to_where(filters: dict[str, Any]) -> dict[str, Any]:
    """Return Haystack's filters as those of `ragq.filters`."""
    operator = filters.get("operator")
    if operator in ("AND", "OR", "NOT"):
        parts = [to_where(part) for part in filters["conditions"]]
        return {"$not": {"$and": parts}} if operator == "NOT" else {f"${operator.lower()}": parts}
    if operator not in WORDS:
        raise InvalidArgumentError(f"A filter's operator must be one of {', '.join(WORDS)}. Got {operator!r}.")
    return {filters["field"].removeprefix("meta."): {f"${WORDS[operator]}": filters["value"]}}
