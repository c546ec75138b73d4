"""Error of each scalar and lattice codec on random unit vectors, relative to the Shannon bound ``4^-b``.

The bound is the least mean squared error that any code of `b` bits a dimension can have on a normal source, and, in
many dimensions, on the unit sphere. The error of a row is that of its direction, ``1 - cos^2``: what is left of
``|x|^2`` when the code is given the best length.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors import from_spec
from ragq.compressors.lattice import decode_pairs, nearest_pair, patterns, shortest

DIM = 384

# spec: (bits of codes a dimension, largest ratio to 4^-bits)
TABLE = {
    "TQ1": (1, 1.47),
    "TQ2": (2, 1.90),
    "TQ3": (3, 2.24),
    "TQ4": (4, 2.46),
    "RBQ1": (1, 1.47),
    "RBQ2": (2, 1.93),
    "RBQ3": (3, 2.42),
    "RBQ4": (4, 2.92),
    "E8(bits=1)": (1, 1.29),
    "E8": (2, 1.49),
    "FP4A": (4, 2.32),
    "LVQ4": (4, 3.4),
    "LVQ8": (8, 3.1),
}


def sphere(n: int) -> NDArray[np.float32]:
    x = np.random.default_rng(21).normal(size=(n, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def direction_error(spec: str, x: NDArray[np.float32]) -> float:
    codec = from_spec(spec).fit(x, seed=1)
    decoded = codec.decode(codec.encode(x))
    cosine = (x * decoded).sum(axis=1) / np.linalg.norm(decoded, axis=1)
    return float((1 - cosine**2).mean())


@pytest.mark.parametrize("spec", TABLE)
def test_the_ratio_to_the_shannon_bound(spec: str) -> None:
    bits, limit = TABLE[spec]
    ratio = direction_error(spec, sphere(400)) * 4.0**bits
    assert 1 < ratio < limit, f"{spec}: {ratio:.3f} times the Shannon bound"


def test_two_bits_on_the_lattice_are_below_a_tenth() -> None:
    x = sphere(300)
    codec = from_spec("E8").fit(x, seed=1)
    decoded = codec.decode(codec.encode(x))
    assert direction_error("E8", x) < 0.1
    shrunk = decoded * ((x * decoded).sum(axis=1) / np.square(decoded).sum(axis=1))[:, None]
    assert np.square(shrunk - x).sum(axis=1).mean() < 0.1
    assert direction_error("E8", x) < 0.85 * direction_error("TQ2", x)


def test_lattice_codes_are_points_of_the_lattice_and_the_nearest_ones() -> None:
    assert (np.square(shortest()).sum(axis=1) == np.repeat([2, 4], [240, 16])).all()
    assert len(np.unique(patterns()[0], axis=0)) == 256
    every = np.stack(np.divmod(np.arange(65536), 256), axis=1).astype(np.uint8)
    points = decode_pairs(every)
    assert len(np.unique(points, axis=0)) == 65536
    quarters = points - 0.25
    whole, half = np.rint(quarters) == quarters, np.rint(quarters - 0.5) == quarters - 0.5
    assert (whole.all(axis=1) | half.all(axis=1)).all()
    assert (quarters.sum(axis=1) % 2 == 0).all()
    y = np.random.default_rng(3).normal(size=(60, 8)).astype(np.float32)
    nearest = np.square(y[:, None] - points).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(np.square(decode_pairs(nearest_pair(y)) - y).sum(axis=1), nearest, rtol=1e-4)


def test_a_learned_alphabet_keeps_directions_better_than_e2m1() -> None:
    rows = sphere(400)
    errors = {}
    for spec in ("FP4A", "FP4"):
        codec = from_spec(spec).fit(rows)
        decoded = codec.decode(codec.encode(rows))
        cosine = (rows * decoded).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(decoded, axis=1)
        errors[spec] = (1 - cosine**2).mean(), codec.code_size
    assert errors["FP4A"][0] < errors["FP4"][0]
    assert errors["FP4A"][1] < errors["FP4"][1]


def numpy_nearest_pair(y: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Try all patterns of both quarters, the signs those of the row, the cheapest flip where their parity is wrong."""
    table, odd = patterns()
    best, codes = np.full(len(y), -np.inf, np.float32), np.zeros((len(y), 2), np.uint8)
    for high, quarter in ((0, np.float32(-0.25)), (1, np.float32(0.25))):
        size, minus = np.abs(y - quarter), y - quarter < 0
        products = size[:, None] * table
        scores = np.zeros((len(y), 256), np.float32)
        for j in range(8):
            scores += products[:, :, j]
        scores -= np.square(table).sum(axis=1) / 2
        wrong = (minus.sum(axis=1) & 1)[:, None] != odd
        scores -= np.where(wrong, 2 * products.min(axis=2), 0)
        for i, index in enumerate(scores.argmax(axis=1)):
            value = scores[i, index] - np.square(y[i] - quarter).sum() / 2
            if value > best[i]:
                signs = minus[i].copy()
                signs[products[i, index].argmin()] ^= wrong[i, index]
                best[i], codes[i] = value, (index, np.packbits(signs[:7], bitorder="little")[0] | high << 7)
    return codes


def test_the_compiled_search_of_the_lattice_finds_the_same_codes_as_numpy() -> None:
    rng = np.random.default_rng(4)
    y = (rng.normal(size=(500, 8)) * rng.choice([0.3, 1, 3], size=(500, 1))).astype(np.float32)
    y[0], y[1], y[2] = 0, 0.25, -0.75
    np.testing.assert_array_equal(nearest_pair(y), numpy_nearest_pair(y))


@pytest.mark.parametrize("spec", ["TQ4", "RBQ4", "SAQ4", "E8"])
@pytest.mark.parametrize("scale", [1e-25, 1e21, 1e36])
def test_codes_do_not_depend_on_the_scale(spec: str, scale: float) -> None:
    x = sphere(64)
    x -= x.mean(axis=0)  # codecs that centre have no mean to take off
    one = from_spec(spec).fit(x, seed=1)
    scaled = (x * np.float32(2.0 ** np.round(np.log2(scale)))).astype(np.float32)
    other = from_spec(spec).fit(scaled, seed=1)
    codes = other.encode(scaled)
    assert np.isfinite(other.decode(codes)).all()
    if spec in ("TQ4", "E8"):  # no state that a scale changes
        np.testing.assert_array_equal(codes[:, :-2], one.encode(x)[:, :-2])
