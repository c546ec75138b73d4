"""Late interaction over coded vectors: MaxSim of what the codes decode to, in any way that it is computed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors.multivector import MultiVectorCompressor
from ragq.errors import InvalidArgumentError
from ragq.retrievers.kernels import cpu
from ragq.retrievers.multivector import MultiVectorBlock, search
from ragq.select import pack_mask, topk
from ragq.tokens import TokenEmbeddings
from tests.compressors.test_multivector import maxsim, tokens

CODECS = ["F32", "F16", "FP8", "POOL4,INT8", "PQ5x4", "PQ4x4(length)", "RR,PQ5x8", "PCA12,PQ4x8(length)", "RBQ3",
          "POOL3,BIN", "RBQ1+INT8", "PLAID30x2", "HPC32"]  # fmt: skip


def fitted(codec: str, first: str | None = None, n: int = 150) -> tuple[MultiVectorCompressor, list[MultiVectorBlock]]:
    """Return a compressor, and documents in three blocks, one of them empty; some documents have no vectors."""
    documents = tokens(n, longest=12)
    compressor = MultiVectorCompressor.from_spec(codec, first).fit(documents)
    codes = compressor.encode(documents)
    cuts = [slice(0, 70), slice(70, 70), slice(70, n)]
    return compressor, [MultiVectorBlock.from_codes(compressor, codes[cut]) for cut in cuts]


def decoded(compressor: MultiVectorCompressor, n: int = 150) -> TokenEmbeddings:
    return compressor.decode(compressor.encode(tokens(n, longest=12)))


def assert_found(answer: tuple[NDArray[np.float32], NDArray[np.int64]], truth: NDArray[np.float32], k: int) -> None:
    """Equal scores, and rows whose true scores are these; rounding may swap rows that all but tie."""
    scores, rows = answer
    np.testing.assert_allclose(scores, topk(truth, k)[0], rtol=1e-5, atol=1e-5)
    own = np.take_along_axis(truth, np.maximum(rows, 0), axis=1)
    np.testing.assert_allclose(np.where(rows >= 0, own, -np.inf), scores, rtol=1e-5, atol=1e-5)
    assert all(len(set(row[row >= 0])) == np.count_nonzero(row >= 0) for row in rows)


@pytest.mark.parametrize("kernel", ["reference", *cpu.available_sets()])
@pytest.mark.parametrize("codec", CODECS)
def test_scores_are_the_maxsim_of_the_decoded_vectors(codec: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGQ_KERNEL", kernel)
    compressor, blocks = fitted(codec)
    queries = tokens(8, seed=9)  # query 1 has no tokens
    truth = maxsim(queries, decoded(compressor))
    assert_found(search(compressor, queries, blocks, 12, threads=2), truth, 12)


@pytest.mark.parametrize("kernel", ["reference", cpu.available_sets()[-1]])
@pytest.mark.parametrize("codec", CODECS)
def test_candidates_are_scored_like_all(codec: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGQ_KERNEL", kernel)
    queries = tokens(8, seed=9)
    compressor, blocks = fitted(codec, "MUVERA(3,2,4)")
    truth = maxsim(queries, decoded(compressor))
    assert_found(search(compressor, queries, blocks, 12, candidates=150), truth, 12)
    scores, rows = search(compressor, queries, blocks, 5, candidates=9)
    own = np.take_along_axis(truth, np.maximum(rows, 0), axis=1)
    np.testing.assert_allclose(np.where(rows >= 0, own, -np.inf), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [None, "MUVERA(3,2,4)", "LEMUR8(32)", "CENTROIDS16"])
def test_a_filtered_search_returns_k_whenever_k_documents_qualify(first: str | None) -> None:
    compressor, blocks = fitted("PQ4x4", first)
    queries, live = tokens(8, seed=9), np.zeros(150, bool)
    live[1::7] = True
    masks = [pack_mask(live[:70]), None, pack_mask(live[70:])]
    qualify = live & (tokens(150, longest=12).counts > 0)
    assert qualify.sum() < live.sum()  # documents without vectors must not take the place of candidates
    for k in (int(qualify.sum()), int(qualify.sum()) + 3):
        scores, rows = search(compressor, queries, blocks, k, masks, candidates=1)
        for query, found in enumerate(rows):
            expected = np.flatnonzero(qualify) if queries.counts[query] else []
            assert sorted(found[found >= 0]) == list(expected)
        assert (np.isfinite(scores) == (rows >= 0)).all()


@pytest.mark.parametrize("codec", ["F32", "PQ4x4", "RBQ1"])
@pytest.mark.parametrize("first", [None, "MUVERA(3,2,4)", "LEMUR8(32),INT8"])
def test_equal_scores_come_in_document_order(codec: str, first: str | None) -> None:
    one = tokens(12, longest=12)
    documents = TokenEmbeddings.concatenate([one] * 5)
    compressor = MultiVectorCompressor.from_spec(codec, first).fit(documents)
    codes = compressor.encode(documents)
    blocks = [MultiVectorBlock.from_codes(compressor, codes[:20]), MultiVectorBlock.from_codes(compressor, codes[20:])]
    _, rows = search(compressor, tokens(4, seed=9)[2:], blocks, 60, candidates=60)
    for found in rows:
        same = found[found >= 0].reshape(-1, 5)  # copies lie 12 apart
        assert (np.diff(same, axis=1) == 12).all()


def test_threads_change_nothing() -> None:
    compressor, blocks = fitted("PQ4x4", "MUVERA(3,2,4)", n=4500)
    queries = tokens(8, seed=9)
    one, two = (search(compressor, queries, blocks, 9, candidates=4500, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_a_batch_is_its_queries() -> None:
    compressor, blocks = fitted("POOL4,PQ4x4", "MUVERA(3,2,4),PQ16x4")
    queries = tokens(8, seed=9)
    scores, rows = search(compressor, queries, blocks, 9, candidates=30)
    for query in range(len(queries)):
        alone = search(compressor, queries[query : query + 1], blocks, 9, candidates=30)
        np.testing.assert_array_equal(rows[query], alone[1][0])
        np.testing.assert_allclose(scores[query], alone[0][0], rtol=1e-5)


@pytest.mark.parametrize("first", [None, "MUVERA(3,2,4)"])
def test_nothing_asked_and_nothing_there(first: str | None) -> None:
    compressor, blocks = fitted("F32", first)
    queries = tokens(8, seed=9)
    assert search(compressor, queries, [], 3)[1].tolist() == [[-1] * 3] * 8
    assert search(compressor, queries[:0], blocks, 3)[0].shape == (0, 3)
    assert search(compressor, queries, blocks, 0)[0].shape == (8, 0)
    assert (search(compressor, queries[1:2], blocks, 3)[1] == -1).all()  # a query without tokens


def test_bad_arguments_say_what_came() -> None:
    compressor, blocks = fitted("F32", "MUVERA(3,2,4)")
    queries = tokens(8, seed=9)
    for arguments, message in (
        ({"k": -1}, "'k' must be"),
        ({"k": 3, "candidates": 0}, "'candidates' must be"),
        ({"k": 3, "masks": [None]}, "Got 1 for 3 blocks"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            search(compressor, queries, blocks, **arguments)  # type: ignore[arg-type]
    bare = [MultiVectorBlock(block.tokens, block.offsets) for block in blocks]
    with pytest.raises(InvalidArgumentError, match="needs first-stage codes"):
        search(compressor, queries, bare, 3)
