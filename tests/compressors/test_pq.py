"""PQ, OPQ, RQ and their codebooks: the formulas, and faiss as an outside oracle."""

from __future__ import annotations

import subprocess
import sys

import faiss
import numpy as np
import pytest

from ragq.compressors import _cpu, codebooks, from_spec
from ragq.compressors.opq import OPQ, balance
from ragq.compressors.pq import PQ, least_squares_factor
from ragq.compressors.rq import RQ
from ragq.errors import InvalidArgumentError
from tests.compressors.conftest import documents, embeddings, query_embeddings

DIM = 64


def faiss_pq(codec: PQ) -> faiss.ProductQuantizer:
    """Give faiss the codebooks of a fitted PQ."""
    oracle = faiss.ProductQuantizer(DIM, codec.m, codec.bits)
    books = codec.codebook_.reshape(2**codec.bits, codec.m, -1).transpose(1, 0, 2)
    faiss.copy_array_to_vector(np.ascontiguousarray(books).ravel(), oracle.centroids)
    return oracle


@pytest.mark.parametrize("m", [4, 8, 32])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_those_of_faiss(m: int, bits: int) -> None:
    x = embeddings(1000, DIM, seed=3)
    codec = PQ(m, bits).fit(x)
    oracle = faiss_pq(codec)
    codes = codec.encode(x)
    np.testing.assert_array_equal(codes, oracle.compute_codes(x))
    np.testing.assert_array_equal(codec.decode(codes), oracle.decode(codes))


def test_distortion_is_no_more_than_that_of_faiss() -> None:
    x = embeddings(1500, DIM, seed=4)
    codec = PQ(8, 8).fit(x)
    oracle = faiss.ProductQuantizer(DIM, 8, 8)
    oracle.train(x)
    theirs = np.square(x - oracle.decode(oracle.compute_codes(x))).sum()
    assert np.square(x - codec.decode(codec.encode(x))).sum() <= 1.01 * theirs


def test_kmeans_is_the_same_on_any_number_of_threads() -> None:
    x = embeddings(3000, 24, seed=5)
    one = codebooks.kmeans(x, 50, seed=1, threads=1)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(codebooks.kmeans(x, 50, seed=1, threads=threads), one)
    assert not np.array_equal(codebooks.kmeans(x, 50, seed=2, threads=1), one)


@pytest.mark.parametrize("kernel", ["baseline", "avx2", "avx512"])
def test_codebooks_are_the_same_with_any_instruction_set(kernel: str) -> None:
    program = (
        "import numpy as np; from ragq.compressors import codebooks\n"
        "x = np.random.default_rng(0).normal(size=(500, 13)).astype(np.float32)\n"
        "print(codebooks.kmeans(x, 40, threads=1).tobytes().hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env={"RAGQ_CPU": kernel}, capture_output=True, text=True, check=True
    )
    x = np.random.default_rng(0).normal(size=(500, 13)).astype(np.float32)
    assert run.stdout.strip() == codebooks.kmeans(x, 40, threads=1).tobytes().hex()


def test_lloyd_agrees_with_numpy() -> None:
    x = embeddings(400, 16, seed=6)
    centroids = x[:20].copy()
    improved, inertia = _cpu.lloyd(x, centroids, 1, 1)
    distances = np.square(x[:, None] - centroids[None]).sum(axis=2)
    nearest = distances.argmin(axis=1)
    assert inertia == pytest.approx(distances.min(axis=1).mean(), rel=1e-5)
    expected = np.stack([x[nearest == c].mean(axis=0) for c in range(20)])
    np.testing.assert_allclose(improved, expected, atol=1e-6)


def test_rolling_reaches_in_8_rounds_what_takes_25_plain_ones() -> None:
    x = embeddings(4000, 8, seed=12)
    start = plain = _cpu.seed_centroids(x[:2000], 64, 3)
    for _ in range(25):
        plain, _ = _cpu.lloyd(x, plain, 1, 1)
    improved, _ = _cpu.lloyd(x, start, 8, 1)
    errors = [_cpu.assign(x, centroids, 1)[1].mean() for centroids in (improved, plain)]
    assert errors[0] < errors[1]


def rolled(x: np.ndarray, centroids: np.ndarray, rounds: int) -> np.ndarray:
    """Lloyd's rounds by a heavy ball in few dimensions, no cluster empty."""
    centroids = before = centroids.astype(np.float64)
    for turn in range(rounds):
        nearest = np.square(x[:, None] - centroids).sum(axis=2).argmin(axis=1)
        means = np.stack([x[nearest == c].mean(axis=0, dtype=np.float64) for c in range(len(centroids))])
        step, drift = {0: (1.8, 0), rounds - 2: (1.8, 0), rounds - 1: (1, 0)}.get(turn, (2.6, 0.4))
        centroids, before = centroids + step * (means - centroids) + drift * (centroids - before), centroids
    return centroids


@pytest.mark.parametrize("columns", [[0, 1, 2, 3, 4, 5, 6, 7], [3], [5, 1, 2]])
def test_rounds_in_whole_numbers_lead_where_exact_ones_do(columns: list[int]) -> None:
    x = embeddings(2000, 8, seed=13)[:, columns] * np.float32([1, 1, 0.05, 1, 2, 1, 3, 1])[columns]
    start = _cpu.seed_centroids(np.ascontiguousarray(x[:800]), 16, 3)
    found = [_cpu.lloyd(np.ascontiguousarray(x), start, 8, 1)[0], rolled(x, start, 8).astype(np.float32)]
    errors = [_cpu.assign(np.ascontiguousarray(x), centroids, 1)[1].mean() for centroids in found]
    assert errors[0] == pytest.approx(errors[1], rel=5e-3)


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_kmeans_of_scaled_rows_is_the_scaled_kmeans(factor: float) -> None:
    x = embeddings(500, 5, seed=14)
    x[:, 2] = 0.5  # a constant column
    np.testing.assert_array_equal(
        codebooks.kmeans(x * np.float32(factor), 20), codebooks.kmeans(x, 20) * np.float32(factor)
    )


def test_an_empty_cluster_takes_the_farthest_row() -> None:
    x = np.array([[0.0], [0.1], [0.2], [9.0]], np.float32)
    initial = np.array([[0.1], [50.0]], np.float32)  # nobody is near 50
    found = codebooks.kmeans(x, 2, initial=initial)
    np.testing.assert_allclose(np.sort(found[:, 0]), [0.1, 9.0], atol=1e-6)


def test_kmeans_wants_a_row_for_every_centroid() -> None:
    with pytest.raises(InvalidArgumentError, match="at least 9 rows"):
        codebooks.kmeans(documents()[:8], 9)


def test_neighbouring_codewords_share_a_high_nibble() -> None:
    codewords = embeddings(256, 8, seed=7)
    order = codebooks.nibble_order(codewords)
    np.testing.assert_array_equal(np.sort(order), np.arange(256))

    def spread(groups: np.ndarray) -> float:
        return float(np.square(groups - groups.mean(axis=1, keepdims=True)).sum())

    groups = codewords[order].reshape(16, 16, 8)
    assert spread(groups) < 0.43 * spread(codewords.reshape(16, 16, 8))
    for a, b, i, j in np.random.default_rng(7).integers(0, 16, (300, 4)):  # no two change places to any good
        other = groups.copy()
        other[a, i], other[b, j] = groups[b, j], groups[a, i]
        assert spread(other) >= spread(groups) * (1 - 1e-6)
    several = np.stack([codewords, codewords[::-1], np.pad(codewords[:, :3], ((0, 0), (0, 5)))])
    alone = [codebooks.nibble_order(part) for part in (codewords, codewords[::-1], codewords[:, :3])]
    np.testing.assert_array_equal(codebooks.nibble_order(several), alone)


def test_length_factor_has_the_least_squared_error() -> None:
    x = documents()
    codec = from_spec("PQ8x4(length)").fit(x)
    z = x - codec.mean_
    decoded = (codec.decode(codec.encode(x)) - codec.mean_).astype(np.float64)
    best = np.square(z - decoded).sum(axis=1)
    for stretch in (0.98, 1.02):
        assert (best <= np.square(z - stretch * decoded).sum(axis=1) + 1e-7).all()
    np.testing.assert_allclose(least_squares_factor(z, 0 * z), 1)


def test_opq_errs_less_than_pq_and_is_a_rotation() -> None:
    x = embeddings(1000, DIM, seed=8)
    rotation = OPQ(8, bits=4, iterations=3).fit(x).rotation_
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(DIM), atol=1e-5)
    codecs = [from_spec(spec).fit(x) for spec in ("PQ8x4", "OPQ8(bits=4,iterations=6),PQ8x4")]
    errors = [np.square(x - codec.decode(codec.encode(x))).sum() for codec in codecs]
    assert errors[1] < 0.9 * errors[0]


def test_balance_gives_every_part_its_width_and_a_like_product() -> None:
    variances = np.exp(-np.arange(24) / 3.0)
    parts = balance(variances, np.array([8, 8, 8]))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(24))
    logs = [np.log(variances[part]).sum() for part in parts]
    assert max(logs) - min(logs) < 2


def test_rq_of_bytes_leaves_less_than_faiss_does(shared):
    vectors = np.load(shared / "scale/minilm-101k.f16.npy", mmap_mode="r")
    x, unseen = vectors[:4096].astype(np.float32), vectors[50_000:51_000].astype(np.float32)
    codec, oracle = RQ(3, 8).fit(x), faiss.ResidualQuantizer(x.shape[1], 3, 8)
    oracle.train(x)
    mine = np.mean((unseen - codec.decode(codec.encode(unseen))) ** 2)
    theirs = np.mean((unseen - oracle.decode(oracle.compute_codes(unseen))) ** 2)
    assert mine < theirs


def test_a_wider_beam_errs_less() -> None:
    x = embeddings(800, DIM, seed=9)
    greedy = RQ(6, 4, beam=1).fit(x)
    wide = RQ(6, 4, beam=8).load_state(greedy.state)
    errors = [np.square(x - c.decode(c.encode(x))).sum(axis=1) for c in (greedy, wide)]
    assert errors[1].mean() < 0.995 * errors[0].mean()


def test_a_full_beam_finds_the_best_codes() -> None:
    x = embeddings(60, 8, seed=10)
    codec = RQ(2, 4, beam=16).fit(x)
    words = codec.codebook_.astype(np.float32) * codec.scale_
    every = (words[0][:, None] + words[1][None]).reshape(256, 8)
    best = np.square(x[:, None] - codec.mean_ - every[None]).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(np.square(x - codec.decode(codec.encode(x))).sum(axis=1), best, atol=1e-6)


def test_itq_brings_signs_nearer_than_pca() -> None:
    x = embeddings(1500, DIM, seed=11)

    def loss(spec: str) -> float:
        z = from_spec(spec).fit(x).transforms[0].apply(x)
        scale = np.abs(z).mean()
        return float(np.square(z - scale * np.sign(z)).mean() / np.square(z).mean())

    assert loss("ITQ16,BIN") < 0.9 * loss("PCA16,BIN")


def test_a_query_scores_codes_by_table() -> None:
    codec = from_spec("PQ8x8").fit(documents())
    q = query_embeddings()[:3]
    tables = codec.scorer(q).tables
    words = codec.codebook_.reshape(256, 8, 8)
    np.testing.assert_allclose(tables, np.einsum("qmd,kmd->qmk", q.reshape(3, 8, 8), words), atol=1e-6)
