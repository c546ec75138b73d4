"""PCA, random projection, Matryoshka truncation, autoencoder."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ragq.compressors import from_spec
from ragq.compressors.autoencoder import AE
from ragq.compressors.reduction import MRL, PCA, RP
from ragq.errors import InvalidArgumentError
from tests.compressors.conftest import documents, query_embeddings


def squared_error(transform: PCA | AE, x: np.ndarray) -> float:
    return float(np.square(transform.inverse(transform.apply(x)) - x).sum())


def test_pca_leaves_the_least_squared_error() -> None:
    x = documents()
    for centred in (True, False):
        pca = PCA(16, centred=centred).fit(x)
        y = x.astype(np.float64) - (x.mean(axis=0, dtype=np.float64) if centred else 0)
        tail = np.square(np.linalg.svd(y, compute_uv=False)[16:]).sum()  # Eckart and Young (1936)
        assert squared_error(pca, x) == pytest.approx(tail, rel=1e-4)
        np.testing.assert_allclose(pca.matrix_.T @ pca.matrix_, np.eye(16), atol=1e-6)


def test_pca_orders_its_dimensions_by_variance() -> None:
    z = PCA(16).fit(documents()).apply(documents())
    assert (np.diff(z.var(axis=0)) < 0).all()
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)


def test_pca_of_all_dimensions_keeps_every_score() -> None:
    x, q = documents(), query_embeddings()
    codec = from_spec("PCA100%,F32").fit(x)
    np.testing.assert_allclose(codec.scorer(q).score(codec.encode(x)), q @ x.T, atol=2e-6)


def test_a_random_projection_is_unbiased() -> None:
    x, q = documents()[:20], query_embeddings()[:5]
    scores = []
    for seed in range(400):
        codec = from_spec("RP16,F32").fit(x, seed=seed)
        scores.append(codec.scorer(q).score(codec.encode(x)))
    error = np.mean(scores, axis=0) - q @ x.T
    assert np.abs(error).max() < 5 * np.std(scores, axis=0).max() / 20


def test_a_random_projection_depends_on_the_seed_alone() -> None:
    a, b = RP(16).fit(documents(), seed=3), RP(16).fit(documents()[:1], seed=3)
    np.testing.assert_array_equal(a.matrix_, b.matrix_)
    assert not np.array_equal(a.matrix_, RP(16).fit(documents(), seed=4).matrix_)


def test_mrl_truncates_and_keeps_the_length() -> None:
    x = documents() * np.float32(3)
    z = MRL(24).fit(x).apply(x)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 3, rtol=1e-5)
    direction = x[:, :24] / np.linalg.norm(x[:, :24], axis=1, keepdims=True)
    np.testing.assert_allclose(z, 3 * direction, atol=1e-5)
    np.testing.assert_array_equal(MRL(24, renormalise=False).fit(x).apply(x), x[:, :24])


@pytest.mark.parametrize(("spec", "dim_out"), [("PCA50%", 32), ("RP25%", 16), ("MRL0.1%", 1), ("AE100%", 64)])
def test_a_share_is_rounded_to_whole_dimensions(spec: str, dim_out: int) -> None:
    assert from_spec(f"{spec},F16").code_size_at(64) == 2 * dim_out


@pytest.mark.parametrize("spec", ["PCA65,F32", "RP65,F32", "MRL65,F32", "AE65,F32", "PCA32,RP33,F32"])
def test_more_dimensions_than_there_are_is_refused_before_anything_is_learned(spec: str) -> None:
    with pytest.raises(InvalidArgumentError, match="dimensions"):
        from_spec(spec).fit(documents())
    with pytest.raises(InvalidArgumentError, match="dimensions"):
        from_spec(spec).code_size_at(64)


@pytest.mark.parametrize("components", [0, -1, 2.5, "half", "0%", "101%", "1e1%", "%", "5", True])
def test_an_impossible_number_of_dimensions_is_refused(components: object) -> None:
    for cls in (PCA, RP, MRL, AE):
        with pytest.raises(InvalidArgumentError, match="n_components"):
            cls(components)


def test_training_an_autoencoder_brings_neighbours_nearer_than_pca() -> None:
    x = documents()

    def likely(scores: np.ndarray) -> np.ndarray:
        sharp = np.exp(scores / 0.05)
        np.fill_diagonal(sharp, 0)
        return sharp / sharp.sum(axis=1, keepdims=True)

    def divergence(transform: AE) -> float:
        z, (folded, bias) = transform.fit(x).apply(x), transform.fold(x)
        true, found = likely(x @ x.T), likely(folded @ z.T + bias[:, None])
        return float((true * np.log((true + 1e-30) / (found + 1e-30))).sum(axis=1).mean())

    untrained = AE(6, hidden=32, steps=0)
    assert divergence(AE(6, hidden=32, steps=30)) < 0.95 * divergence(untrained)
    np.testing.assert_allclose(untrained.apply(x), PCA(6).fit(x).apply(x), atol=1e-6)


def test_only_fitting_an_autoencoder_imports_torch() -> None:
    code = (
        "import sys, numpy as np, ragq.compressors as c\n"
        "a = c.from_spec('AE4(hidden=4,steps=0),FP8'); c.stage_classes()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
