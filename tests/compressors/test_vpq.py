"""VPQ and VTQ: rates, groups, the factor, the best codes of a chain; and what `suggest` makes of codecs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ragq.compressors import from_spec
from ragq.compressors.scorers import factor
from ragq.compressors.suggest import candidates, suggest
from ragq.compressors.vpq import OWN_QUERIES, deal, principal_axes, query_aware_factor, water_fill
from ragq.compressors.vtq import VTQ, least_squares
from ragq.errors import InvalidArgumentError
from ragq.select import topk
from tests.compressors.conftest import DIM, documents, embeddings, query_embeddings


def recall(spec: str, x: np.ndarray, q: np.ndarray) -> float:
    codec = from_spec(spec).fit(x)
    exact, found = topk(q @ x.T, 10)[1], topk(codec.scorer(q).score(codec.encode(x)), 10)[1]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)]))


@pytest.mark.parametrize("bits", [1, 8, 40, 400])
def test_rates_add_up_and_level_the_water(bits: int) -> None:
    variances = np.sort(np.random.default_rng(0).exponential(size=50) ** 3)[::-1]
    rates = water_fill(variances, bits)
    assert rates.sum() == pytest.approx(bits)
    kept = rates > 0
    levels = variances[kept] / 4 ** rates[kept]
    np.testing.assert_allclose(levels, levels[0])
    assert (variances[~kept] <= levels[0]).all()


def test_groups_carry_like_rates() -> None:
    rates = np.concatenate([water_fill(1 / (1.0 + np.arange(100)), 120)])
    groups = deal(rates, 10)
    np.testing.assert_array_equal(np.sort(np.concatenate(groups)), np.arange(100))
    sums = [rates[group].sum() for group in groups]
    assert max(sums) < 1.2 * min(sums)
    assert sorted(len(group) for group in deal(np.zeros(5), 3)) == [1, 1, 3]


def test_principal_axes_diagonalise_the_covariance() -> None:
    z = documents() - documents().mean(axis=0)
    variances, axes = principal_axes(z)
    np.testing.assert_allclose(np.cov((z @ axes.T).T, bias=True), np.diag(variances), atol=1e-8)
    assert (np.diff(variances) <= 0).all()


def test_the_factor_is_the_best_estimate_over_its_queries() -> None:
    rng = np.random.default_rng(1)
    variances = np.linspace(2, 0.1, 12).astype(np.float32)
    z = (rng.normal(size=(1, 12)) * np.sqrt(variances)).astype(np.float32)
    decoded = (z * 0.7 + 0.2 * rng.normal(size=z.shape)).astype(np.float32)
    f = query_aware_factor(z, z, decoded, variances)
    q = rng.normal(size=(400_000, 12)) * np.sqrt(variances) + np.sqrt(OWN_QUERIES) * rng.normal(size=(400_000, 1)) * z
    fitted = np.linalg.lstsq(q @ decoded.T, (q @ z[0])[:, None], rcond=None)[0]
    assert f[0] == pytest.approx(float(fitted[0, 0]), rel=0.02)
    np.testing.assert_array_equal(query_aware_factor(z, z, 0 * decoded, variances), [1])


def test_vpq_beats_pq_of_the_same_bytes() -> None:
    x, q = embeddings(3000, DIM, seed=21), query_embeddings()
    assert recall("VPQ10", x, q) > recall("PQ8x8(length)", x, q) + 0.03


def test_vtq_beats_vpq() -> None:
    x = embeddings(1200, DIM, seed=22)
    error = {}
    for spec in ("VPQ8(bits=4)", "VTQ8(bits=4)"):
        codec = from_spec(spec).fit(x)
        weighted = codec._coordinates(x) * codec._weights
        codebook = codec.codebook_.astype(np.float32)
        error[spec] = np.square(weighted - codec._decoded(codec._nearest(weighted, codebook), codebook)).mean()
    assert error["VTQ8(bits=4)"] < 0.97 * error["VPQ8(bits=4)"]


def test_codes_for_clusters_err_less_on_clusters() -> None:
    rng = np.random.default_rng(26)
    centres = rng.normal(size=(60, DIM))
    x = (centres[rng.integers(60, size=1500)] + 0.3 * rng.normal(size=(1500, DIM))).astype(np.float32)
    error = {}
    for clusters in (0, 2):
        codec = VTQ(8, bits=4, clusters=clusters).fit(x)
        assert codec.codebook_.shape[0] == 2 + clusters
        error[clusters] = np.square(x - codec.decode(codec.encode(x))).sum()
    assert error[2] < 0.8 * error[0]


def test_clusters_leave_two_codes_for_the_chain() -> None:
    codec = VTQ(4, clusters=5).fit(embeddings(300, DIM, seed=27))  # two codes
    assert (codec.first, codec.groups) == (0, 1)
    assert VTQ(6, clusters=9).first == 2


def test_the_codes_of_a_chain_are_the_best_of_all() -> None:
    x = embeddings(40, DIM, seed=23)
    codec = VTQ(4, bits=4, iterations=1, clusters=0).fit(embeddings(300, DIM, seed=24))  # 4 codes of 16 codewords
    y = codec._coordinates(x) * codec._weights
    codebook = codec.codebook_.astype(np.float32)
    every = np.array(list(itertools.product(range(16), repeat=4)), np.uint8)
    decoded = codec._decoded(every, codebook)
    best = (np.square(decoded).sum(axis=1)[None] - 2 * y @ decoded.T).min(axis=1) + np.square(y).sum(axis=1)
    found = np.square(y - codec._decoded(codec._nearest(y, codebook), codebook)).sum(axis=1)
    np.testing.assert_allclose(found, best, atol=1e-4)


def test_codewords_of_a_chain_are_least_squares() -> None:
    rng = np.random.default_rng(2)
    left, right = rng.integers(16, size=(2, 500)).astype(np.uint8)
    truth = rng.normal(size=(2, 16, 3)).astype(np.float32)
    y = truth[0][left] + truth[1][right]
    words = least_squares(y, left, right, truth + 0.01 * rng.normal(size=truth.shape).astype(np.float32))
    np.testing.assert_allclose(words[0][left] + words[1][right], y, atol=1e-2)


def test_a_code_is_codewords_and_a_factor() -> None:
    x = documents()
    codec = from_spec("VPQ10").fit(x)
    codes = codec.encode(x)
    z = codec._decoded(codes[:, :8], codec.codebook_.astype(np.float32)) / codec._weights
    expected = codec.mean_ + factor(codes, -1)[:, None] * (z @ codec.basis_.astype(np.float32))
    np.testing.assert_allclose(codec.decode(codes), expected, atol=1e-6)


@pytest.mark.parametrize("spec", ["VPQ2", "VPQ300", "VPQ10(bits=5)", "VTQ3"])
def test_impossible_sizes_are_refused(spec: str) -> None:
    with pytest.raises(InvalidArgumentError):
        from_spec(spec).fit(documents())


def test_suggest_returns_the_best_of_its_table() -> None:
    x = embeddings(400, DIM, seed=25)
    choice = suggest(x, 12)
    assert choice.spec == choice.table[0].spec
    assert choice.table[0].recall == max(row.recall for row in choice.table if not row.heavy)
    assert all(row.code_bytes <= 12 for row in choice.table)
    assert len(choice.table) >= 4
    assert choice.spec in choice.reason
    assert "80 held-out documents" in choice.reason


def test_suggest_tries_both_kinds_of_balanced_codebooks_where_they_can_work() -> None:
    for budget in (24, 96):
        assert {f"VTQ{budget}", f"VPQ{budget}", "SAQ"} <= {
            "SAQ" if spec.startswith("SAQ") else spec for spec in candidates(384, budget, 10_000)
        }
    assert not {"VTQ24", "VPQ24"} & set(candidates(384, 24, 255))  # fewer rows than codewords


def test_suggest_passes_over_codebooks_that_outweigh_the_vectors() -> None:
    x = embeddings(400, DIM, seed=25)
    few, many = suggest(x, 6), suggest(x, 6, count=1_000_000)
    heavy = [row for row in few.table if row.heavy]
    assert heavy
    assert all(row.shared_bytes > 2 * DIM for row in heavy)  # half of float32
    assert list(few.table[-len(heavy) :]) == heavy
    assert not few.table[0].heavy
    assert heavy[0].spec in few.reason
    assert max(row.shared_bytes for row in few.table) == pytest.approx(
        max(row.shared_bytes for row in many.table) * 1_000_000 / 400
    )
    assert not any(row.heavy for row in many.table)
    assert many.table[0].recall >= few.table[0].recall


def test_suggest_asks_the_queries_that_it_is_given() -> None:
    x = embeddings(300, DIM, seed=25)
    choice = suggest(x, 5, query_embeddings())
    assert "40 queries" in choice.reason
    assert suggest(x, 5, query_embeddings()).table == choice.table


def test_suggest_says_when_nothing_can_be_tried() -> None:
    assert suggest(documents(), 4 * DIM).spec == "F32"
    few = suggest(documents()[:5], 40)
    assert from_spec(few.spec).code_size_at(DIM) <= 40
    assert "too few" in few.reason
    assert from_spec(suggest(documents()[:5], 1).spec).code_size_at(DIM) == 1
