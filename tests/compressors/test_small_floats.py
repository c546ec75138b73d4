"""Small floats against ml_dtypes: the same value for every code, the same code for every number in range."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ragq.compressors import from_spec
from ragq.compressors.fp4 import FP4
from ragq.compressors.minifloat import E2M1, E4M3, E5M2, MiniFloat

FORMATS = [
    (E4M3, ml_dtypes.float8_e4m3fn),
    (E5M2, ml_dtypes.float8_e5m2),
    (E2M1, ml_dtypes.float4_e2m1fn),
]


def oracle(x: np.ndarray, dtype: type) -> np.ndarray:
    return x.astype(dtype).view(np.uint8)


@pytest.mark.parametrize(("form", "dtype"), FORMATS)
def test_every_code_has_its_value(form: MiniFloat, dtype: type) -> None:
    values = np.arange(len(form.levels), dtype=np.uint8).view(dtype).astype(np.float32)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(form.levels[finite], values[finite])
    assert np.abs(form.levels[~finite]).tolist() == [form.largest] * (~finite).sum()
    assert form.largest == float(ml_dtypes.finfo(dtype).max)


@pytest.mark.parametrize(("form", "dtype"), FORMATS)
def test_every_half_gets_its_code(form: MiniFloat, dtype: type) -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    x = halves[np.abs(halves) <= form.largest]
    np.testing.assert_array_equal(form.encode(x), oracle(x, dtype))


@pytest.mark.parametrize(("form", "dtype"), FORMATS)
def test_boundaries_and_their_neighbours_get_their_code(form: MiniFloat, dtype: type) -> None:
    levels = np.unique(form.levels)
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    exact = np.concatenate([levels, middles.astype(np.float32)])
    x = np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))])
    x = np.concatenate([x, np.float32([0.0, -0.0, 1e-45, -1e-45, 1e-38])])
    x = x[np.abs(x) <= form.largest]
    np.testing.assert_array_equal(form.encode(x), oracle(x, dtype))


@pytest.mark.parametrize(("form", "dtype"), FORMATS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_float_gets_its_code(form: MiniFloat, dtype: type, data: st.DataObject) -> None:
    limit = float(form.largest)
    x = data.draw(arrays(np.float32, 20, elements=st.floats(-limit, limit, width=32)))
    np.testing.assert_array_equal(form.encode(x), oracle(x, dtype))


@pytest.mark.parametrize(("form", "dtype"), FORMATS)
def test_what_is_out_of_range_becomes_the_largest(form: MiniFloat, dtype: type) -> None:
    x = np.float32([1e30, -1e30, form.largest * 2, np.inf])
    np.testing.assert_array_equal(form.levels[form.encode(x)], np.sign(x) * form.largest)


def test_bf16_is_ml_dtypes_bfloat16() -> None:
    bits = np.random.default_rng(0).integers(2**32, size=64 * 2000, dtype=np.uint32)
    edges = np.arange(0, 2**32, 2**15, dtype=np.uint64).astype(np.uint32)  # every value and every middle
    x = np.concatenate([bits, edges]).view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) < 3.389e38)]
    x = x[: len(x) // 64 * 64].reshape(-1, 64)
    codec = from_spec("BF16").fit(x[:1])
    expected = x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(codec.encode(x).view(np.uint16), expected.view(np.uint16))
    np.testing.assert_array_equal(codec.decode(codec.encode(x)), expected.astype(np.float32))


@pytest.mark.parametrize("spec", ["F16", "BF16", "FP8", "FP8e5m2", "FP4", "INT8", "INT4", "BIN"])
def test_the_largest_floats_stay_finite(spec: str) -> None:
    x = np.full((2, 64), np.finfo(np.float32).max, np.float32)
    x[1] *= -1
    codec = from_spec(spec).fit(x / np.float32(2.0**100))
    decoded = codec.decode(codec.encode(x))
    assert np.isfinite(decoded).all()
    assert (np.sign(decoded) == np.sign(x)).all()


@pytest.mark.parametrize(("spec", "form", "dtype"), [("FP8", *FORMATS[0]), ("FP8e5m2", *FORMATS[1])])
def test_fp8_rounds_at_one_global_power_of_two(spec: str, form: MiniFloat, dtype: type) -> None:
    x = np.random.default_rng(1).normal(size=(500, 64)).astype(np.float32) / 8
    codec = from_spec(spec).fit(x)
    scale = codec.state["scale_"][0]
    assert np.log2(scale) % 1 == 0
    assert form.largest / 4 < np.abs(x).max() * scale <= form.largest / 2
    np.testing.assert_array_equal(codec.encode(x), oracle(x * scale, dtype))
    normal = np.abs(x * scale) >= 2.0 ** (1 - form.bias)
    relative = np.abs(codec.decode(codec.encode(x)) / x - 1)[normal]
    assert relative.max() <= 2.0 ** -(form.mantissa_bits + 1)
    assert normal.mean() > 0.99


def test_fp4_takes_the_better_of_two_scales_for_each_block() -> None:
    x = np.random.default_rng(2).normal(size=(300, 64)).astype(np.float32)
    codec = FP4(block=16).fit(x)
    y = (x * codec.scale_).reshape(300, 4, 16)
    errors = []
    for peak in (6, 4):
        step = E4M3.levels[E4M3.encode(np.abs(y).max(axis=2) / np.float32(peak))][:, :, None]
        errors.append(np.square(step * (y / step).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) - y).sum(axis=2))
    decoded = (codec.decode(codec.encode(x)) * codec.scale_).reshape(300, 4, 16)
    np.testing.assert_allclose(np.square(decoded - y).sum(axis=2), np.minimum(*errors), rtol=1e-4)
    assert (errors[0] < errors[1]).any()
    assert (errors[1] < errors[0]).any()


def test_finer_blocks_of_fp4_are_nearer() -> None:
    x = np.random.default_rng(3).normal(size=(300, 64)).astype(np.float32)
    x[:, ::16] *= 8  # outliers that widen the block they are in
    error = [np.square(c.decode(c.encode(x)) - x).mean() for c in (FP4(block=b).fit(x) for b in (8, 32, 64))]
    assert error[0] < error[1] < error[2]
