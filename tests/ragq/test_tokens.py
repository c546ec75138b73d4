"""Multi-vector embeddings and codes: what goes in comes out by document, and what cannot be is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ragq.errors import InvalidArgumentError
from ragq.tokens import MultiVectorCodes, TokenEmbeddings

COUNTS = [3, 0, 1, 5]


@pytest.fixture
def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, 4)).astype(np.float32) for n in COUNTS]


@pytest.fixture
def tokens(documents: list[np.ndarray]) -> TokenEmbeddings:
    return TokenEmbeddings.from_list(documents)


def same(tokens: TokenEmbeddings, documents: list[np.ndarray]) -> bool:
    return len(tokens) == len(documents) and all(
        np.array_equal(a, b) and a.shape == b.shape for a, b in zip(tokens, documents, strict=True)
    )


def test_documents_come_out_as_they_went_in(tokens: TokenEmbeddings, documents: list[np.ndarray]) -> None:
    assert same(tokens, documents)
    assert (tokens.dim, tokens.total, tokens.counts.tolist()) == (4, 9, COUNTS)
    assert tokens.offsets.dtype == np.int64 and tokens.values.dtype == np.float32
    for i, document in enumerate(documents):
        assert np.array_equal(tokens[i], document) and np.array_equal(tokens[i - 4], document)


@pytest.mark.parametrize("key", [slice(1, 3), slice(2, 2), slice(4, 9), slice(None, None, -2), [3, 0, 0], [], [-1]])
def test_slices_and_numbers_choose_documents_like_a_list(
    key: slice | list[int], tokens: TokenEmbeddings, documents: list[np.ndarray]
) -> None:
    wanted = documents[key] if isinstance(key, slice) else [documents[i] for i in key]
    assert same(tokens[key], wanted)


def test_a_mask_chooses_documents(tokens: TokenEmbeddings, documents: list[np.ndarray]) -> None:
    assert same(tokens[np.array([True, False, False, True])], [documents[0], documents[3]])


def test_a_slice_is_a_view_and_taking_is_a_copy(tokens: TokenEmbeddings) -> None:
    assert np.shares_memory(tokens[1:3].values, tokens.values)
    assert not np.shares_memory(tokens.take([2]).values, tokens.values)


def test_joining_undoes_cutting(tokens: TokenEmbeddings, documents: list[np.ndarray]) -> None:
    assert same(TokenEmbeddings.concatenate([tokens[:1], tokens[1:1], tokens[1:]]), documents)


def test_no_documents_have_a_dimension() -> None:
    assert TokenEmbeddings.from_list([], dim=7).dim == 7
    with pytest.raises(InvalidArgumentError, match="need 'dim'"):
        TokenEmbeddings.from_list([])


def test_unit_length_leaves_zeros_alone(tokens: TokenEmbeddings) -> None:
    values = tokens.values.copy()
    values[4] = 0
    unit = TokenEmbeddings(values, tokens.offsets).normalized()
    norms = np.linalg.norm(unit.values, axis=1)
    assert norms[4] == 0 and np.allclose(np.delete(norms, 4), 1)
    assert unit.normalized() is not tokens and np.array_equal(unit.offsets, tokens.offsets)


def test_they_cannot_be_changed(tokens: TokenEmbeddings) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokens.values = tokens.values  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(dtype: type) -> None:
    assert TokenEmbeddings(np.ones((2, 3), dtype), [0, 2]).values.dtype == np.float32


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        (np.ones(3), [0, 3], r"shape \(n, dim\)"),
        (np.ones((3, 2), int), [0, 3], "floats"),
        (np.full((3, 2), np.nan), [0, 3], "finite"),
        (np.ones((3, 2)), [0, 2], "number of rows, 3"),
        (np.ones((3, 2)), [1, 3], "rise from 0"),
        (np.ones((3, 2)), [0, 2, 1, 3], "falling"),
        (np.ones((3, 2)), [0.0, 3.0], "integers"),
        (np.ones((3, 2)), [], "integers"),
        (np.ones((3, 2)), [[0, 3]], "integers"),
    ],
)
def test_what_cannot_be_is_refused(values: np.ndarray, offsets: list, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        TokenEmbeddings(values, offsets)


def test_mixed_dimensions_are_refused_and_named(tokens: TokenEmbeddings) -> None:
    with pytest.raises(InvalidArgumentError, match=r"Document 1 must have shape \(tokens, 2\). Got \(1, 3\)"):
        TokenEmbeddings.from_list([np.ones((2, 2)), np.ones((1, 3))])
    with pytest.raises(InvalidArgumentError, match=r"one dimension\. Got 4, 7"):
        TokenEmbeddings.concatenate([tokens, TokenEmbeddings.from_list([], dim=7)])


@pytest.mark.parametrize("key", [[4], [-5], [True, False], [0.5]])
def test_documents_that_are_not_there_are_refused(key: list, tokens: TokenEmbeddings) -> None:
    with pytest.raises(InvalidArgumentError):
        tokens[key]


@pytest.mark.parametrize("first", [False, True])
def test_codes_are_cut_and_joined_by_document(first: bool) -> None:
    codes = np.arange(18, dtype=np.uint8).reshape(9, 2)
    stage = np.arange(12, dtype=np.uint8).reshape(4, 3) if first else None
    whole = MultiVectorCodes(codes, [0, 3, 3, 4, 9], stage)
    joined = MultiVectorCodes.concatenate([whole[:2], whole[[2]], whole[np.array([False, False, False, True])]])
    assert np.array_equal(joined.codes, codes) and joined.counts.tolist() == COUNTS
    assert joined.nbytes == 18 + 12 * first and np.array_equal(whole[[3, 0]].counts, [5, 3])
    if stage is not None:
        assert np.array_equal(joined.first, stage) and np.array_equal(whole[::-1].first, stage[::-1])
        with pytest.raises(InvalidArgumentError, match="all with a first stage"):
            MultiVectorCodes.concatenate([whole, MultiVectorCodes(codes, [0, 9])])
        with pytest.raises(InvalidArgumentError, match=r"one code a document, 4\. Got 3"):
            MultiVectorCodes(codes, whole.offsets, stage[:3])
