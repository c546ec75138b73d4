"""The same index from LlamaIndex and from Haystack, by the real packages."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Document, Pipeline
from haystack.components.joiners import DocumentJoiner
from llama_index.core import Settings
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import QueryBundle

import ragq
from ragq.errors import InvalidArgumentError
from ragq.retrievers.haystack import RagqRetriever as HaystackRetriever
from ragq.retrievers.haystack import to_where
from ragq.retrievers.llamaindex import RagqRetriever as LlamaRetriever

WORDS = ["zebra", "orchid", "violin", "glacier", "copper", "lantern"]


def embed(texts: list[str]) -> np.ndarray:
    x = np.asarray([[text.split().count(word) for word in WORDS] for text in texts], np.float32)
    return x + np.float32(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    records = [
        {"id": word, "title": word.title(), "text": f"{word} {WORDS[(i + 1) % 6]}", "number": i}
        for i, word in enumerate(WORDS)
    ]
    ragq.build(records, tmp_path / "a.ragq", model=embed, codec="F32").close()
    return tmp_path / "a.ragq"


def test_llamaindex_gets_nodes_with_scores_filters_and_stages(path: Path) -> None:
    retriever = LlamaRetriever(path, k=3, model=embed)
    hits = ragq.open(path, model=embed).search("violin", k=3)
    nodes = retriever.retrieve("violin")
    assert [(n.node.node_id, n.score) for n in nodes] == [(hit.id, hit.score) for hit in hits]
    assert nodes[0].node.metadata["title"] in ("Violin", "Orchid") and nodes[0].node.get_content() == hits[0].text
    assert [n.node.node_id for n in asyncio.run(retriever.aretrieve("violin"))] == [hit.id for hit in hits]
    ready = QueryBundle("anything", embedding=embed(["glacier"])[0].tolist())
    assert "glacier" in retriever.retrieve(ready)[0].node.get_content()
    few = LlamaRetriever(path, k=5, where={"number": {"$gte": 4}}, model=embed, select="unique")
    assert sorted(n.node.metadata["document_id"] for n in few.retrieve("copper")) == ["copper", "lantern"]


def test_llamaindex_answers_by_a_query_engine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    synthesizer = get_response_synthesizer(response_mode="no_text")
    engine = RetrieverQueryEngine(LlamaRetriever(path, k=2, model=embed), synthesizer)
    assert "lantern" in engine.query("lantern").source_nodes[0].node.get_content()


def test_haystack_runs_the_index_in_a_pipeline_that_can_be_saved(path: Path) -> None:
    pipeline = Pipeline()
    pipeline.add_component("retriever", HaystackRetriever(path, top_k=2, model=embed))
    pipeline.add_component("joiner", DocumentJoiner())
    pipeline.connect("retriever.documents", "joiner.documents")
    documents = pipeline.run({"retriever": {"query": "orchid"}})["joiner"]["documents"]
    assert all(isinstance(d, Document) and d.score is not None and "orchid" in d.content for d in documents)
    saved = HaystackRetriever(path, top_k=4).to_dict()
    again = HaystackRetriever.from_dict(saved)
    assert again.options == {"index": str(path), "top_k": 4, "where": None, "model": None, "search": None}


def test_haystack_filters_are_those_of_the_index(path: Path) -> None:
    retriever = HaystackRetriever(path, top_k=6, where={"number": {"$lt": 5}}, model=embed)

    def numbers(filters: dict | None) -> list[int]:
        found = asyncio.run(retriever.run_async("zebra", filters=filters))["documents"]
        return sorted(d.meta["number"] for d in found)

    def compare(operator: str, value: object) -> dict:
        return {"field": "meta.number", "operator": operator, "value": value}

    assert numbers(None) == [0, 1, 2, 3, 4]
    assert numbers(compare("not in", [1, 2])) == [0, 3, 4]
    assert numbers({"operator": "NOT", "conditions": [compare(">=", 1), compare("<=", 3)]}) == [0, 4]
    assert numbers({"operator": "OR", "conditions": [compare("==", 2), compare(">", 3)]}) == [2, 4]
    with pytest.raises(InvalidArgumentError, match="operator"):
        to_where(compare("like", 1))


@pytest.mark.parametrize(("module", "library"), [("llamaindex", "llama_index"), ("haystack", "haystack")])
def test_an_adapter_imports_without_its_library_and_says_what_to_install(module: str, library: str) -> None:
    code = f"""
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == {library!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
from ragq.errors import MissingExtraError
from ragq.retrievers.{module} import RagqRetriever
try:
    RagqRetriever("nowhere.ragq")
except MissingExtraError as error:
    assert "ragq[{module}]" in str(error), error
else:
    raise SystemExit("made")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
