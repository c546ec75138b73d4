"""BIN: signs."""

from __future__ import annotations

import numpy as np

from ragq.compressors.binary import BIN
from tests.compressors.conftest import documents, query_embeddings


def test_a_bit_is_the_sign() -> None:
    x = documents()
    codes = BIN().fit(x).encode(x)
    np.testing.assert_array_equal(codes, np.packbits(x > 0, axis=1, bitorder="little"))
    centred = BIN(centred=True).fit(x)
    above = x > x.mean(axis=0, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(centred.encode(x), np.packbits(above, axis=1, bitorder="little"))


def test_the_step_has_the_least_squared_error() -> None:
    x = documents()
    for codec in (BIN().fit(x), BIN(centred=True).fit(x)):
        error = {}
        for factor in (0.95, 1, 1.05):
            other = BIN(centred=codec.centred).load_state({**codec.state, "scale_": codec.scale_ * np.float32(factor)})
            error[factor] = np.square(other.decode(other.encode(x)) - x).sum()
        assert error[1] < min(error[0.95], error[1.05])


def test_symmetric_scores_rank_by_hamming_distance() -> None:
    x, q = documents(), query_embeddings()
    codec = BIN(symmetric=True).fit(x)
    codes, bits = codec.encode(x), codec.encode(q)
    distance = np.bitwise_count(codes[None] ^ bits[:, None]).sum(axis=2, dtype=np.int64)
    scores = codec.scorer(q).score(codes)
    for row, far in zip(scores, distance, strict=True):
        assert len(np.unique(row)) == len(np.unique(far))  # equal distances tie exactly
        np.testing.assert_array_equal(np.argsort(-row, kind="stable"), np.argsort(far, kind="stable"))


def test_a_float_query_ranks_better_than_a_rounded_one() -> None:
    x, q = documents(), query_embeddings()
    true = q @ x.T

    def likeness(codec: BIN) -> float:
        return float(np.corrcoef(codec.fit(x).scorer(q).score(codec.encode(x)).ravel(), true.ravel())[0, 1])

    assert likeness(BIN()) > likeness(BIN(symmetric=True)) + 0.02


def test_lengths_are_kept() -> None:
    x = documents() * np.linspace(0.5, 4, len(documents()))[:, None].astype(np.float32)
    codec = BIN(length=True).fit(x)
    kept = np.linalg.norm(codec.decode(codec.encode(x)), axis=1)
    np.testing.assert_allclose(kept, np.linalg.norm(x, axis=1), rtol=1e-3)
    assert codec.code_size == 64 // 8 + 2
