"""LEMUR against its formula, and the laws of its estimate."""

from __future__ import annotations

import numpy as np
import pytest

from ragq.compressors.lemur import LEMUR, RIDGE, coarse, main_directions
from ragq.compressors.multivector import MultiVectorCompressor
from ragq.compressors.muvera import MUVERA
from ragq.errors import InvalidArgumentError
from ragq.tokens import TokenEmbeddings
from tests.compressors.conftest import embeddings
from tests.compressors.test_multivector import DIM, maxsim, tokens


def test_a_score_is_the_kernel_regression_of_maxsim_less_its_mean() -> None:
    documents, queries = tokens(n=80, seed=1), tokens(n=7, seed=2)
    stage = LEMUR(48, anchors=48, gamma=2).fit(documents)
    anchors = stage.anchors_.astype(np.float64)
    single = TokenEmbeddings(stage.anchors_, np.arange(49))
    whole = documents.counts > 0
    wanted = maxsim(single, documents)[:, whole]
    wanted = wanted - wanted.mean(axis=1, keepdims=True)

    def kernel(x: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(x[:, None] - anchors).sum(axis=2))  # gamma / 2 is 1

    weights = np.linalg.solve(kernel(anchors) + RIDGE * np.eye(48), wanted)
    expected = np.stack([kernel(query).sum(axis=0) @ weights for query in queries])
    got = stage.encode_queries(queries) @ stage.encode_documents(documents)[whole].T
    np.testing.assert_allclose(got, expected, atol=0.002 * np.abs(expected).max())


def test_fewer_dimensions_keep_the_main_directions() -> None:
    documents, queries = tokens(n=300, seed=1), tokens(n=40, seed=2)
    whole, asked = documents.counts > 0, queries.counts > 0
    full = LEMUR(64, anchors=64).fit(documents)
    wanted = (full.encode_queries(queries) @ full.encode_documents(documents).T)[asked][:, whole]
    losses = []
    for dims in (2, 8, 32):
        stage = LEMUR(dims, anchors=64).fit(documents)
        got = (stage.encode_queries(queries) @ stage.encode_documents(documents).T)[asked][:, whole]
        losses.append(float(np.square(got - wanted).sum() / np.square(wanted).sum()))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.05 < losses[0]


def test_it_is_nearer_to_maxsim_than_muvera_of_more_dimensions() -> None:
    documents, queries = tokens(n=300, longest=20, seed=3), tokens(n=40, seed=4)
    whole, asked = documents.counts > 0, queries.counts > 0
    wanted = maxsim(queries, documents)[asked][:, whole]

    def correlation(stage: LEMUR | MUVERA) -> float:
        got = (stage.encode_queries(queries) @ stage.encode_documents(documents).T)[asked][:, whole]
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(got, wanted, strict=True)]))

    learned, drawn = LEMUR(64, anchors=256).fit(documents[:200]), MUVERA(R=20, k=3, p=4).fit(documents[:200])
    assert correlation(learned) > 0.95 > correlation(drawn)


def test_anchors_are_as_long_as_tokens() -> None:
    documents = tokens()
    longer = TokenEmbeddings(3 * documents.values, documents.offsets)
    np.testing.assert_allclose(np.linalg.norm(LEMUR(8, anchors=32).fit(longer).anchors_, axis=1), 3, rtol=1e-3)


def test_a_saved_state_takes_two_bytes_a_number_and_gives_the_same_encodings() -> None:
    documents = tokens()
    longest = TokenEmbeddings(np.float32(1e6) * documents.values, documents.offsets)  # beyond float16
    for sample in (documents, longest):
        stage = LEMUR(8, anchors=32).fit(sample)
        state = stage.state
        assert sum(array.nbytes for array in state.values()) == 2 * 32 * (DIM + 2 * 8 + 2) + 8
        again = LEMUR(8, anchors=32).load_state(state)
        for encode in ("encode_documents", "encode_queries"):
            np.testing.assert_array_equal(getattr(again, encode)(sample), getattr(stage, encode)(sample))


def test_no_tokens_give_zeros_and_many_tokens_do_as_few() -> None:
    documents = tokens()
    stage = LEMUR(8, anchors=32).fit(documents)
    assert not stage.encode_documents(documents)[1].any() and not stage.encode_queries(documents)[1].any()
    long = TokenEmbeddings(embeddings(20000, DIM, 1), np.array([0, 9000, 20000]))  # cut into chunks
    best = (stage.anchors_ @ long[1].T).max(axis=1)
    expected = (best - stage.mean_) @ stage.document_map_
    np.testing.assert_allclose(stage.encode_documents(long)[1], expected, atol=0.002 * np.abs(expected).max())
    one = stage.encode_queries(TokenEmbeddings(long[1], np.arange(11001))).sum(axis=0)
    np.testing.assert_allclose(stage.encode_queries(long)[1], one, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize("shape", [(9, 30), (40, 12)])
def test_main_directions_are_the_singular_vectors_up_to_the_rank(shape: tuple[int, int]) -> None:
    x = embeddings(*shape, seed=3).astype(np.float64)
    directions, squares = main_directions(x, 10)
    rank = min(10, *shape)
    _, values, rows = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(squares[:rank], values[:rank] ** 2)
    np.testing.assert_allclose(np.abs(rows[:rank] @ directions[:, :rank]), np.eye(rank), atol=1e-6)
    assert not squares[rank:].any() and not directions[:, rank:].any()


@pytest.mark.parametrize("scale", [1e-20, 1, 3e4])
def test_products_of_coarse_rows_do_not_depend_on_their_neighbours(scale: float) -> None:
    x, y = embeddings(50, 384, 1) * np.float32(scale), embeddings(7, 384, 2)
    whole = coarse(x) @ coarse(y).T
    exact = (coarse(x).astype(np.float64) @ coarse(y).T.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(whole, exact)
    np.testing.assert_array_equal(whole[3:4], coarse(x[3:4]) @ coarse(y).T)
    np.testing.assert_allclose(whole / scale, (x / scale) @ y.T, atol=1e-3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("LEMUR0", "'dims' must be an integer in 1"),
        ("LEMUR64(32)", "'anchors' must be an integer in 64"),
        ("LEMUR64(gamma=0)", "'gamma' of LEMUR must be a number above 0"),
    ],
)
def test_impossible_specs_say_why(spec: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        MultiVectorCompressor.from_spec("F32", spec)


def test_too_few_tokens_say_how_many_it_needs() -> None:
    with pytest.raises(InvalidArgumentError, match="needs at least 2048 token embeddings"):
        LEMUR(64).fit(tokens())
