"""Learned lists of an inverted file, and a query encoder that trains with the codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

import ragq
from ragq.checks import normalized
from ragq.cli import cli
from ragq.compressors import from_spec
from ragq.errors import InvalidArgumentError
from ragq.pipelines.codecs import load_codec
from ragq.pipelines.training.encoder import encode, train_query_encoder
from ragq.pipelines.training.lists import KEYS, SHAPES, divided, learn_lists, shares
from ragq.pipelines.training.vectors import Vectors
from ragq.retrievers.structures.base import load_arrays
from ragq.retrievers.structures.ivf import IVF
from ragq.retrievers.structures.lists import Lists
from ragq.retrievers.structures.source import Source

Floats = NDArray[np.float32]
DIM, ROWS = 16, 1500


@pytest.fixture
def index(tmp_path: Path) -> ragq.Index:
    rng = np.random.default_rng(1)
    x = normalized((rng.normal(size=(ROWS, DIM)) / np.sqrt(1 + np.arange(DIM))).astype(np.float32))
    built = ragq.build(out=tmp_path / "i", embeddings=x, ids=[str(i) for i in range(ROWS)], codec="F32")
    built.restructure("ivf", nlist=40)
    return built


def questions(n: int) -> Floats:
    """Queries that the centroids mislead: they ask along few coordinates."""
    rng = np.random.default_rng(2)
    return normalized((rng.normal(size=(n, DIM)) * np.linspace(0.1, 1, DIM) ** 2).astype(np.float32))


def share(index: ragq.Index, queries: Floats, nprobe: int) -> float:
    """Return how many of the ten best rows a search of some lists finds."""
    best, found = (index.search_embeddings(queries, 10, **how).ids for how in ({"exact": True}, {"nprobe": nprobe}))
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best, found, strict=True)]))


@pytest.mark.slow
def test_learned_lists_find_more_in_as_many_lists(index: ragq.Index) -> None:
    asked = questions(1200)
    train, test = asked[:1000], asked[1000:]
    nlist = index.manifest.structure.parameters["nlist"]
    before = share(index, test, nlist // 10)
    learned = learn_lists(index, train, epochs=15)
    assert learned.epoch > 0 and learned.value > learned.start
    assert "Learning helped" in learned.verdict
    assert share(index, test, nlist // 10) > before + 0.03
    assert share(index, test, nlist) == 1
    index.verify()
    with ragq.open(index.path) as again:
        assert share(again, test, nlist // 10) == share(index, test, nlist // 10)


def test_lists_stay_as_they_were_when_learning_does_not_help(
    index: ragq.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragq.pipelines.training.lists.RATE", 3.0)
    before = index.manifest.structure
    learned = learn_lists(index, questions(50), epochs=3)
    assert learned.epoch == 0 and learned.value == learned.start
    assert "did not help" in learned.verdict
    assert index.manifest.structure == before


def test_the_best_centroid_of_a_list_says_how_near_it_is() -> None:
    rng = np.random.default_rng(3)
    nlist, keys = 7, 3
    arrays = {
        "projection": np.eye(DIM, dtype=np.float32),
        "centroids": rng.normal(size=(nlist * keys, DIM)).astype(np.float32),
        "radii": np.zeros(nlist * keys, np.float32),
    }
    lists = Lists(None, np.empty(0, np.uint32), 32 * np.arange(nlist + 1))  # type: ignore[arg-type]
    asked = questions(20)
    best = (asked @ arrays["centroids"].T).reshape(len(asked), nlist, keys).max(axis=2)
    found = IVF(lists, arrays, "ip", 1).order(asked, 4)
    assert all(len(set(row)) == 4 for row in found.tolist())
    gaps = np.take_along_axis(best, np.argsort(-best)[:, :4], 1) - np.take_along_axis(best, found, 1)
    assert np.abs(gaps).max() < 0.05  # keys are rounded to bytes


def test_a_list_is_divided_among_centroids_of_its_own_rows(index: ragq.Index) -> None:
    shards = index._view.snapshot.shards
    known = load_arrays(index.path, index.manifest.structure.files["lists"], SHAPES)
    found = divided(known, Source(shards, index.compressor), 0)
    nlist = len(known["centroids"])
    assert found["centroids"].shape == (KEYS * nlist, DIM) and found["radii"].shape == (KEYS * nlist,)
    x = np.concatenate([shard.block.codes(0, shard.rows) for shard in shards]).view(np.float32)
    errors = [
        ((x[:, None] @ known["projection"].T - each["centroids"]) ** 2).sum(axis=2).min(axis=1).mean()
        for each in (known, found)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_shares_are_the_softmax_of_the_best_rows_by_list() -> None:
    scores = np.array([[0.3, 0.25, 0.2], [0.1, -np.inf, -np.inf]], np.float32)
    found = shares(scores, np.array([[2, 0, 2], [1, 0, 0]]), 4)
    weights = np.exp(scores[0] / 0.05) / np.exp(scores[0] / 0.05).sum()
    np.testing.assert_allclose(found, [[weights[1], 0, weights[0] + weights[2], 0], [0, 1, 0, 0]], atol=1e-6)


def test_lists_are_learned_from_the_command_line(index: ragq.Index, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", questions(60))
    path = str(index.path)
    done = CliRunner().invoke(cli, ["structure", path, "ivf", "--queries", str(tmp_path / "q.npy"), "--learn"])
    assert done.exit_code == 0, done.output
    assert "of the ten best rows" in done.output
    assert CliRunner().invoke(cli, ["structure", path, "ivf", "--learn"]).exit_code == 2
    index.refresh()
    index.restructure("none")
    with pytest.raises(InvalidArgumentError, match="no inverted file"):
        learn_lists(index, questions(9))


@pytest.fixture
def model(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A model of one word embedding each, made here."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, **{f"w{i}": i + 1 for i in range(80)}}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    weights = torch.randn(81, DIM) / np.sqrt(1 + np.arange(DIM))
    return SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=weights.float().numpy()), Normalize()], device="cpu"
    )


@pytest.mark.slow
def test_a_query_encoder_trains_with_the_codec_and_is_gated(model, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 80, 6)) for _ in range(400)]
    asked = [" ".join(f"w{i}" for i in rng.integers(0, 80, 3)) for _ in range(60)]
    x = np.asarray(model.encode_document(texts, show_progress_bar=False), np.float32)
    vectors = Vectors(x)
    codec = from_spec("DistillVQ6(bits=4)").fit(x)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    moved, trained = train_query_encoder(model, asked, codec, vectors, tmp_path / "t", epochs=2)
    changed = any((moved.state_dict()[name] != value).any() for name, value in first.items())
    assert changed == (trained is not codec)
    assert (trained.encode(x) == codec.encode(x)).all()  # the documents stay as they are
    assert (load_codec(tmp_path / "t").decode(codec.encode(x)) == trained.decode(codec.encode(x))).all()
    model.load_state_dict(first)
    monkeypatch.setattr("ragq.pipelines.training.encoder.CODEC_RATE", 10.0)
    kept, same = train_query_encoder(model, asked, codec, vectors, tmp_path / "u")
    assert same is codec
    assert all((kept.state_dict()[name] == value).all() for name, value in first.items())
    assert np.allclose(encode(kept, asked, vectors), np.asarray(model.encode_query(asked, show_progress_bar=False)))
    with pytest.raises(InvalidArgumentError, match="no codes that stay fixed"):
        train_query_encoder(model, asked, from_spec("FP8").fit(x), vectors, tmp_path / "v")
