"""TurboQuant, QJL and rotations: the Beta law's levels, distortion, unbiasedness."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors import from_spec
from ragq.compressors.rotation import RR
from ragq.compressors.scalar import distortion, sphere_levels
from ragq.compressors.turboquant import mean_coordinate
from ragq.errors import CorruptIndexError, InvalidArgumentError

Floats = NDArray[np.float32]


def sphere(n: int, dim: int, seed: int) -> Floats:
    x = np.random.default_rng(seed).normal(size=(n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def slope(estimate: Floats, truth: Floats) -> float:
    return float((estimate * truth).sum() / np.square(truth).sum())


@pytest.mark.parametrize(("bits", "expected"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)])
def test_levels_of_many_dimensions_are_those_of_the_normal_law(bits: int, expected: float) -> None:
    assert distortion(bits) == pytest.approx(expected, rel=0.004)  # Max (1960), table I


def test_levels_of_few_dimensions_stay_inside_the_sphere() -> None:
    for dim in (1, 2, 3, 8):
        for bits in (1, 4, 8):
            levels = sphere_levels(bits, dim)
            assert (np.diff(levels) >= 0).all()
            assert np.abs(levels).max() <= np.sqrt(dim) * 1.001
            np.testing.assert_allclose(levels, -levels[::-1], atol=1e-5)
    assert sphere_levels(1, 3)[1] == pytest.approx(np.sqrt(3) / 2, rel=1e-3)  # uniform on [-sqrt 3, sqrt 3]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("bits", "expected"), [(1, 0.363), (2, 0.1175), (3, 0.0345), (4, 0.0095)])
def test_distortion_is_that_of_lloyd_and_max(bits: int, expected: float, dense: bool) -> None:
    x = sphere(1500, 384, seed=11)
    codec = from_spec(f"TQ{bits}(correction=false{',dense' * dense})").fit(x[:10], seed=1)
    error = np.square(codec.decode(codec.encode(x)) - x).sum(axis=1).mean()
    assert error == pytest.approx(expected, rel=0.02)


def test_distortion_on_sparse_vectors_is_the_same() -> None:
    x = np.eye(384, dtype=np.float32)  # what a rotation that does not mix would keep sparse
    codec = from_spec("TQ2(correction=false)").fit(x)
    assert np.square(codec.decode(codec.encode(x)) - x).sum(axis=1).max() < 0.2


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_distortion_is_no_worse_than_that_of_faiss(bits: int) -> None:
    import faiss

    x = sphere(2000, 384, seed=12)
    index = faiss.index_factory(384, f"RR384,SQtqmse{bits}")
    index.train(x)
    theirs = np.square(index.sa_decode(index.sa_encode(x)) - x).sum(axis=1).mean()
    codec = from_spec(f"TQ{bits}(correction=false)").fit(x)
    ours = np.square(codec.decode(codec.encode(x)) - x).sum(axis=1).mean()
    assert ours <= 1.01 * theirs


@pytest.mark.parametrize(
    "spec", ["TQ1", "TQ4", "TQprod2", "TQprod3", "TQprod5", "QJL384", "QJL768", "RBQ1", "RBQ2", "RBQ4"]
)
def test_scores_are_unbiased(spec: str) -> None:
    rng = np.random.default_rng(3)
    x = sphere(600, 384, seed=13) * rng.uniform(0.5, 2, size=(600, 1)).astype(np.float32)
    q = sphere(200, 384, seed=14) + x[:200]  # correlated: what a shrunken estimate would show
    scores = np.mean(
        [from_spec(spec).fit(x, seed=s).scorer(q).score(from_spec(spec).fit(x, seed=s).encode(x)) for s in (1, 2)],
        axis=0,
    )
    assert 0.98 <= slope(scores, q @ x.T) <= 1.02
    assert 0.98 <= slope(np.diagonal(scores), np.einsum("ij,ij->i", q, x[:200])) <= 1.02


def test_one_bit_without_correction_shrinks_by_two_over_pi() -> None:
    x, q = sphere(600, 384, seed=15), sphere(200, 384, seed=16)
    codec = from_spec("TQ1(correction=false)").fit(x)
    assert slope(codec.scorer(q).score(codec.encode(x)), q @ x.T) == pytest.approx(2 / np.pi, abs=0.015)


def test_the_correction_ranks_better_than_plain_rounding_and_than_the_unbiased_sketch() -> None:
    x, q = sphere(2000, 128, seed=17), sphere(100, 128, seed=18)
    x *= np.random.default_rng(1).uniform(0.9, 1.1, size=(2000, 1)).astype(np.float32)
    truth = q @ x.T

    def correlation(spec: str) -> float:
        codec = from_spec(spec).fit(x)
        return float(np.corrcoef(codec.scorer(q).score(codec.encode(x)).ravel(), truth.ravel())[0, 1])

    assert correlation("TQ2") > correlation("TQprod2") + 0.02
    assert correlation("TQ3") > correlation("TQprod3")


def test_the_mean_coordinate_of_the_sphere() -> None:
    assert mean_coordinate(3) == pytest.approx(0.5)
    assert mean_coordinate(384) == pytest.approx(np.abs(sphere(4000, 384, seed=2)).mean(), rel=2e-3)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 7, 64, 100, 384, 769])
@pytest.mark.parametrize("dense", [False, True])
def test_a_rotation_keeps_inner_products_and_comes_back(dim: int, dense: bool) -> None:
    x = sphere(37, dim, seed=dim)
    rotation = RR(dense=dense).fit(x)
    z = rotation.apply(x)
    np.testing.assert_allclose(z @ z.T, x @ x.T, atol=2e-6)
    np.testing.assert_allclose(rotation.inverse(z), x, atol=2e-6)


def test_a_damaged_rotation_is_corrupt() -> None:
    codec = from_spec("TQ2").fit(sphere(4, 16, seed=1))
    state = codec.state
    for name, value in (("order_", state["order_"] * 0), ("signs_", state["signs_"] * 2)):
        with pytest.raises(CorruptIndexError, match=name):
            from_spec("TQ2").load_state({**state, name: value})


@pytest.mark.parametrize(
    "spec", ["TQ0", "TQ9", "TQprod1", "TQprod10", "QJL0", "RBQ0", "RBQ10", "SAQ0", "SAQ9", "LVQ0", "E8(bits=3)"]
)
def test_impossible_parameters_are_refused(spec: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"1\.\.|2\.\.|0\.\.|at least 1"):
        from_spec(spec)


@pytest.mark.parametrize("cpu", ["baseline", "avx2"])
def test_codes_are_the_same_on_every_instruction_set(cpu: str) -> None:
    import os
    import subprocess
    import sys

    script = (
        "import sys, numpy as np; from ragq.compressors import from_spec;"
        "x = np.random.default_rng(0).normal(size=(50, 100)).astype('f4');"
        "codecs = [from_spec(s).fit(x) for s in ('TQ4', 'TQ6', 'RBQ3', 'SAQ2', 'E8')];"
        "sys.stdout.buffer.write(b''.join(c.encode(x).tobytes() for c in codecs))"
    )
    run = [
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **extra}, capture_output=True, check=True
        ).stdout
        for extra in ({}, {"RAGQ_CPU": cpu})
    ]
    assert len(run[0]) > 5000
    assert run[0] == run[1]
