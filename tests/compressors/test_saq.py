"""SAQ: the plan fills its budget, queries steer it, adjustment and the weighted length help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors import from_spec
from ragq.compressors.saq import SAQ, plan
from ragq.compressors.scalar import distortion, encode_planes, sphere_levels, stack_tables
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.layouts import HAMMING_WORDS, from_ragged_planes
from tests.compressors.conftest import documents, query_embeddings

Floats = NDArray[np.float32]


def recall(codec: SAQ, x: Floats, q: Floats, k: int = 10) -> float:
    exact = q @ x.T
    kth = -np.partition(-exact, k - 1, axis=1)[:, k - 1 : k]
    best = np.argsort(-codec.scorer(q).score(codec.encode(x)), axis=1)[:, :k]
    return float((np.take_along_axis(exact, best, axis=1) >= kth - 1e-6).mean())


@pytest.fixture(scope="module")
def scale(shared: Path) -> tuple[Floats, Floats]:
    rows = np.load(shared / "scale" / "minilm-101k.f16.npy", mmap_mode="r")
    x, q = rows[:8000].astype(np.float32), rows[-200:].astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True), q / np.linalg.norm(q, axis=1, keepdims=True)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("dim", [8, 20, 64, 100])
@pytest.mark.parametrize("total", [1, 2, 5, 13, 50])
def test_the_plan_fills_its_bytes_and_falls(dim: int, total: int, coded: bool) -> None:
    total = min(total, (8 - coded) * -(-dim // 8))
    bits = plan(1.0 / np.arange(1, dim + 1), total, coded).astype(int)
    assert (np.diff(bits) <= 0).all()
    planes = sum(-(-int((bits > p).sum()) // 8) for p in range(int(coded), bits.max()))
    assert planes + coded * -(-int((bits > 0).sum()) // 16) == total


def test_hamming_words_differ_in_four_places_and_spell_their_number() -> None:
    apart = np.bitwise_count(HAMMING_WORDS[:, None] ^ HAMMING_WORDS)
    assert apart[~np.eye(16, dtype=bool)].min() == 4
    np.testing.assert_array_equal(HAMMING_WORDS & 15, np.arange(16))


def test_coupled_last_bits_are_the_best_words() -> None:
    rng = np.random.default_rng(5)
    z, ones = rng.normal(size=(40, 8)).astype(np.float32), np.ones(8, np.float32)
    table = sphere_levels(3)
    body, _ = encode_planes(z, 3, ones, stack_tables({3: table}), coded=True)
    found = table[from_ragged_planes(body, (8, 8), 8)]
    words = np.unpackbits(HAMMING_WORDS[:, None], axis=1, bitorder="little")
    apart = np.square(z[:, :, None] - table)  # (row, dimension, code)
    by_bit = np.stack([apart[:, :, 0::2].min(axis=2), apart[:, :, 1::2].min(axis=2)])
    best = np.stack([np.where(word, by_bit[1], by_bit[0]).sum(axis=1) for word in words]).min(axis=0)
    error = np.square(z - found).sum(axis=1)
    assert (error > best - 1e-5).all()
    assert error.mean() < 1.002 * best.mean()  # of the other last bit, only the neighbour on the row's side is tried


def test_coupled_last_bits_save_a_tenth_of_the_error() -> None:
    x, q = documents(), query_embeddings()
    errors = []
    for coded in (False, True):
        codec = SAQ(3, coded=coded).fit(x)
        errors.append(float(np.square(codec.scorer(q).score(codec.encode(x)) - q @ x.T).mean()))
    assert errors[1] < 0.9 * errors[0]


def test_the_plan_is_the_best_of_all() -> None:
    cost = np.repeat([9.0, 3.0, 1.0], 8)
    best = min(
        (72 * distortion(a) + 24 * distortion(b) + 8 * distortion(c), (a, b, c))
        for a in range(8)
        for b in range(8)
        for c in range(8)
        if a + b + c == 6
    )
    assert tuple(plan(cost, 6)[::8]) == best[1]


@pytest.mark.parametrize(("bits", "size"), [(0.5, 24), (1, 48), (1.5, 72), (2, 96), (4, 192), (0.667, 32)])
def test_bytes_are_the_bits_that_were_asked_for(bits: float, size: int) -> None:
    assert from_spec(f"SAQ{bits:g}").code_size_at(384) == size


def test_too_few_bits_for_the_dimensions_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"SAQ1\.5 or more"):
        SAQ(1).fit(documents()[:, :16])


def test_adjusted_codes_have_less_error_of_scores() -> None:
    x, q = documents(), query_embeddings()
    errors = []
    for rounds in (0, 1, 3):
        codec = SAQ(2, rounds=rounds).fit(x)
        errors.append(float(np.square(codec.scorer(q).score(codec.encode(x)) - q @ x.T).mean()))
    assert errors[1] < 0.995 * errors[0]
    assert errors[2] < 1.02 * errors[1]


def test_queries_move_bits_to_the_dimensions_that_they_use() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 32)).astype(np.float32) * np.repeat([1.0, 0.8], 16).astype(np.float32)
    q = np.zeros((2000, 32), np.float32)
    q[:, 16:] = rng.normal(size=(2000, 16))
    without, given = SAQ(2).fit(x), SAQ(2).fit(x, queries=q)
    tail = np.square(given.components_[:, 16:]).sum(axis=1)  # 1 where a component lies in the dimensions of the queries
    assert tail[:16].min() > 0.9
    assert given.bits_[0] > given.bits_[-1]
    truth = q @ x.T
    errors = [np.square(c.scorer(q).score(c.encode(x)) - truth).mean() for c in (given, without)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(("bits", "least"), [(4, 0.965), (2, 0.87), (1, 0.71), (0.5, 0.48)])
def test_recall_on_text_embeddings(scale: tuple[Floats, Floats], bits: float, least: float) -> None:
    assert recall(SAQ(bits).fit(scale[0]), *scale) >= least


def test_it_beats_equal_bits_for_every_dimension(scale: tuple[Floats, Floats]) -> None:
    ours, rabitq = SAQ(2).fit(scale[0]), from_spec("RBQ2").fit(scale[0])
    assert ours.code_size < rabitq.code_size
    assert recall(ours, *scale) > recall(rabitq, *scale) + 0.03  # type: ignore[arg-type]


def test_a_plan_that_does_not_fill_the_code_is_corrupt() -> None:
    state = SAQ(2).fit(documents()).state
    fewer = state["bits_"] - (np.arange(64) >= 56).astype(np.uint8) * (state["bits_"] > 0)
    for bits in (state["bits_"][::-1].copy(), np.maximum(state["bits_"], 1), np.minimum(state["bits_"], 2), fewer):
        if not np.array_equal(bits, state["bits_"]):
            with pytest.raises(CorruptIndexError, match="SAQ2"):
                SAQ(2).load_state({**state, "bits_": bits})
