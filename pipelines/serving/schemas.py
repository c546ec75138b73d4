"""What goes over HTTP, as the OpenAPI description shows it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BatchRequest", "BatchResponse", "Failure", "GetRequest", "GetResponse", "SearchRequest", "SearchResponse"]

Number = Annotated[float, Field(allow_inf_nan=False)]
Embedding = list[Number] | list[list[Number]]  # the latter of a multi-vector index: one a token


class Options(BaseModel):
    """What every search takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    k: int = Field(10, ge=1, description="How many hits; fewer come back only when fewer passages qualify.")
    where: dict[str, Any] | None = Field(
        None, description="Only documents that match.", examples=[{"lang": "en", "year": {"$gte": 2020}}]
    )
    exact: bool = Field(False, description="Scan every row, and rule none out by an estimate of its score.")
    nprobe: int | None = Field(None, ge=1, le=1 << 20, description="Lists of an inverted file to look at.")
    ef_search: int | None = Field(None, ge=1, le=1 << 20, description="Candidates of a graph search.")
    candidates: int | None = Field(None, ge=1, le=1 << 20, description="Candidates of a multi-vector index.")


class SearchRequest(Options):
    """One question, as text or as the embedding of it."""

    query: str | None = Field(None, examples=["how is a shard written?"])
    embedding: Embedding | None = None


class BatchRequest(Options):
    """Several questions, all as texts or all as embeddings."""

    queries: list[str] | None = None
    embeddings: list[Embedding] | None = None


class GetRequest(BaseModel):
    """Documents by id."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: list[str]


class Hit(BaseModel):
    """One passage."""

    id: str = Field(description="<document id>#<number of the passage>")
    score: float = Field(description="In the metric's own units; higher is better.")
    document_id: str
    title: str
    text: str
    metadata: dict[str, Any]


class SearchResponse(BaseModel):
    """The hits of one question, best first."""

    generation: int = Field(description="The generation of the index that answered.")
    seconds: float
    hits: list[Hit]


class BatchResponse(BaseModel):
    """The hits of each question."""

    generation: int
    seconds: float
    results: list[list[Hit]]


class Stored(BaseModel):
    """One document."""

    id: str
    title: str
    text: str
    metadata: dict[str, Any]
    source: str


class GetResponse(BaseModel):
    """Documents in the order of the ids; those that are not there are left out."""

    generation: int
    documents: list[Stored]


class Failure(BaseModel):
    """Why a request was refused."""

    detail: str
