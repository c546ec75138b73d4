"""The laws of `ragq.compressors.base`, for every example of every registered class.

A class joins by listing `examples`: whole specs that can be fitted on 300 embeddings of 64 dimensions. Nothing is
skipped; what differs is named in `EXCEPTIONS` with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ragq.checks import METRICS
from ragq.compressors import Compressor, from_spec
from ragq.compressors.scorers import Scorer
from ragq.errors import CorruptIndexError, InvalidArgumentError, NotFittedError
from ragq.layouts import ROW_PADDING, Block
from ragq.select import pack_mask, topk
from tests.compressors.conftest import DIM, documents, fitted, stages

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Fit = Callable[..., Compressor]

# A symmetric codec compares codes with codes: in its inner products, what the query is rounded to takes its place.
EXCEPTIONS: dict[str, Callable[[Any, Floats], Floats]] = {
    "BIN(symmetric)": lambda compressor, q: compressor.rounded_queries(q),
    "BIN(symmetric,centred,length)": lambda compressor, q: compressor.rounded_queries(q),
}


def reference(compressor: Compressor, q: Floats, codes: Codes, metric: str) -> tuple[Floats, Floats]:
    """Return the scores of the decoded embeddings in float64, and the unit that the tolerance is relative to."""
    queries, rows = q.astype(np.float64), compressor.decode(codes).astype(np.float64)
    lengths, sizes = np.linalg.norm(queries, axis=1)[:, None], np.linalg.norm(rows, axis=1)[None, :]
    if rounded := EXCEPTIONS.get(str(compressor)):
        queries = rounded(compressor, q).astype(np.float64)
    products = queries @ rows.T
    longest = np.maximum(lengths, np.linalg.norm(queries, axis=1)[:, None])
    if metric == "ip":
        return products, longest * sizes.max(initial=0)
    if metric == "cosine":
        norms = lengths * sizes
        # A row near zero is the difference of longer vectors (its mean, its residual): as exact as those are.
        unit = np.divide(sizes.max(initial=0), sizes, out=np.ones_like(sizes), where=sizes > 0)
        return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0), unit + 0 * norms
    return 2 * products - lengths**2 - sizes**2, (longest + sizes) ** 2


def assert_law(compressor: Compressor, q: Floats, codes: Codes) -> None:
    for metric in METRICS:
        scores = compressor.scorer(q, metric).score(codes)
        expected, unit = reference(compressor, q, codes, metric)
        assert scores.dtype == np.float32
        assert scores.shape == expected.shape
        worst = np.max(np.abs(scores - expected) / np.maximum(unit, 1e-30), initial=0)
        assert worst <= compressor.tolerance, f"{metric}: off by {worst:.2e}"


def assert_same_state(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype
        np.testing.assert_array_equal(array, b[name], err_msg=name)


# config and spec


def test_the_class_lists_examples_of_itself(stage_class: type) -> None:
    assert stage_class.examples, f"{stage_class.__name__}.examples is empty"
    for spec in stage_class.examples:
        assert any(type(stage) is stage_class for stage in stages(from_spec(spec))), spec


def test_the_spec_prints_and_parses_to_itself(spec: str) -> None:
    assert str(from_spec(spec)) == spec


def test_the_config_is_json_and_builds_the_same(spec: str) -> None:
    for stage in stages(from_spec(spec)):
        config = json.loads(json.dumps(stage.config))
        again = type(stage)(**config)
        assert again.config == stage.config
        assert str(again) == str(stage)


def test_fitting_leaves_the_config_alone(compressor: Compressor, spec: str) -> None:
    assert str(compressor) == spec
    assert compressor.config == from_spec(spec).config


def test_the_code_size_is_known_before_fitting(compressor: Compressor, spec: str) -> None:
    assert from_spec(spec).code_size_at(DIM) == compressor.code_size == compressor.layout.code_size
    assert compressor.dim == DIM


def test_the_tolerance_is_small(compressor: Compressor) -> None:
    assert 0 < compressor.tolerance <= 1e-3


# state


def test_unfitted_is_refused(spec: str, x: Floats) -> None:
    compressor = from_spec(spec)
    for use in (
        lambda: compressor.encode(x),
        lambda: compressor.decode(np.zeros((1, 8), np.uint8)),
        lambda: compressor.scorer(x),
        lambda: compressor.state,
        lambda: compressor.dim,
        lambda: compressor.code_size,
    ):
        with pytest.raises(NotFittedError, match="fit"):
            use()


def test_the_state_survives_safetensors(
    compressor: Compressor, spec: str, x: Floats, q: Floats, tmp_path: Path
) -> None:
    save_file({name: np.ascontiguousarray(a) for name, a in compressor.state.items()}, tmp_path / "state.safetensors")
    again = from_spec(spec).load_state(load_file(tmp_path / "state.safetensors"))
    assert_same_state(again.state, compressor.state)
    codes = compressor.encode(x)
    np.testing.assert_array_equal(again.encode(x), codes)
    np.testing.assert_array_equal(again.decode(codes), compressor.decode(codes))
    np.testing.assert_array_equal(again.scorer(q).score(codes), compressor.scorer(q).score(codes))


def damaged(state: dict[str, NDArray[Any]]) -> list[tuple[str, dict[str, NDArray[Any]]]]:
    """Return states that no fit made: an array missing, added, of another type, another shape, or not finite."""
    cases = [("added", {**state, "stranger_": np.zeros(3, np.float32)})]
    for name, array in state.items():
        rest = {other: a for other, a in state.items() if other != name}
        other_type = np.float64 if array.dtype == np.float32 else np.float32
        cases += [
            (f"{name} missing", rest),
            (f"{name} of type {np.dtype(other_type)}", {**rest, name: array.astype(other_type)}),
            (f"{name} with another axis", {**rest, name: array[None]}),
        ]
        for axis in range(array.ndim):
            repeated = np.concatenate([array, array.take([0], axis)], axis)
            cases += [
                (f"{name} longer in axis {axis}", {**rest, name: repeated}),
                (f"{name} shorter in axis {axis}", {**rest, name: array.take(range(array.shape[axis] - 1), axis)}),
            ]
        if array.dtype.kind == "f" and array.size:
            broken = array.copy()
            broken.flat[-1] = np.nan
            cases.append((f"{name} with a NaN", {**rest, name: broken}))
    return cases


def test_a_damaged_state_is_corrupt(compressor: Compressor, spec: str) -> None:
    for what, state in damaged(compressor.state):
        again = from_spec(spec)
        try:
            again.load_state(state)
        except CorruptIndexError:
            with pytest.raises(NotFittedError):
                again.encode(documents())
        else:
            pytest.fail(f"A state with {what} was accepted; give the class a `_state_shapes` (see base.py).")


def test_a_state_of_an_impossible_dimension_is_corrupt(compressor: Compressor, spec: str) -> None:
    for name in compressor.state:
        if name.endswith("dim_"):
            for dim in ([-1], [0], [2**40], [DIM, DIM], []):
                with pytest.raises(CorruptIndexError):
                    from_spec(spec).load_state({**compressor.state, name: np.array(dim, np.int64)})


def test_fitting_twice_gives_the_same_state(compressor: Compressor, spec: str, fit_on: Fit) -> None:
    assert_same_state(fit_on(spec).state, compressor.state)


def test_fitting_leaves_the_global_generator_alone(spec: str, fit_on: Fit) -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    fit_on(spec)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]


# encoding


def test_rows_are_encoded_each_by_itself(compressor: Compressor, x: Floats) -> None:
    whole = compressor.encode(x)
    single = np.concatenate([compressor.encode(row[None]) for row in x[:60]])
    np.testing.assert_array_equal(single, whole[:60], err_msg="use ragq.compressors.exact.exact_matmul for products")
    parts = np.concatenate([compressor.encode(x[start : start + 37]) for start in range(0, len(x), 37)])
    np.testing.assert_array_equal(parts, whole)


def test_codes_follow_the_order_of_the_rows(compressor: Compressor, x: Floats, q: Floats) -> None:
    order = np.random.default_rng(0).permutation(len(x))
    codes = compressor.encode(x)
    np.testing.assert_array_equal(compressor.encode(x[order]), codes[order])
    scorer = compressor.scorer(q)
    atol = compressor.tolerance * np.abs(compressor.decode(codes)).sum(axis=1).max()
    np.testing.assert_allclose(scorer.score(codes[order]), scorer.score(codes)[:, order], rtol=0, atol=atol)


def test_codes_are_uint8_rows(compressor: Compressor, x: Floats) -> None:
    codes = compressor.encode(x)
    assert codes.dtype == np.uint8
    assert codes.shape == (len(x), compressor.code_size)
    decoded = compressor.decode(codes)
    assert decoded.dtype == np.float32
    assert decoded.shape == x.shape
    assert np.isfinite(decoded).all()


def test_the_input_is_not_mutated(spec: str, x: Floats, q: Floats, fit_on: Fit) -> None:
    mine, ours = x.copy(), q.copy()
    compressor = fit_on(spec, mine)
    codes = compressor.encode(mine)
    before = codes.copy()
    compressor.decode(codes)
    compressor.scorer(ours).score(codes)
    np.testing.assert_array_equal(mine, x)
    np.testing.assert_array_equal(ours, q)
    np.testing.assert_array_equal(codes, before)


def test_codes_do_not_alias_the_input(compressor: Compressor, x: Floats) -> None:
    mine = x.copy()
    codes = compressor.encode(mine)
    before = codes.copy()
    mine[:] = 0
    np.testing.assert_array_equal(codes, before)


def test_any_memory_order_gives_the_same_codes(compressor: Compressor, x: Floats, q: Floats, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    codes = compressor.encode(x)
    wide = np.zeros((2 * len(x), 2 * DIM), np.float32)
    wide[::2, ::-2] = x
    for same in (np.load(tmp_path / "x.npy", mmap_mode="r"), np.asfortranarray(x), wide[::2, ::-2]):
        np.testing.assert_array_equal(compressor.encode(same), codes)
    decoded, scores = compressor.decode(codes), compressor.scorer(q).score(codes)
    spread = np.zeros((2 * len(codes), 2 * codes.shape[1]), np.uint8)
    spread[::2, ::2] = codes
    spread.flags.writeable = False
    for same in (spread[::2, ::2], np.asfortranarray(codes)):
        np.testing.assert_array_equal(compressor.decode(same), decoded)
        np.testing.assert_array_equal(compressor.scorer(np.asfortranarray(q)).score(same), scores)


def test_memory_mapped_and_half_precision_samples_fit(spec: str, x: Floats, fit_on: Fit, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x.astype(np.float16))
    mapped = fit_on(spec, np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert_same_state(mapped.state, fit_on(spec, x.astype(np.float16).astype(np.float32)).state)


def test_other_float_types_are_read_as_float32(compressor: Compressor, x: Floats, q: Floats) -> None:
    for dtype in (np.float16, np.float64):
        codes = compressor.encode(x.astype(dtype))
        np.testing.assert_array_equal(codes, compressor.encode(x.astype(dtype).astype(np.float32)))
        scores = compressor.scorer(q.astype(dtype)).score(codes)
        np.testing.assert_array_equal(scores, compressor.scorer(q.astype(dtype).astype(np.float32)).score(codes))


# bad input


def test_non_finite_input_is_refused(compressor: Compressor, spec: str, x: Floats) -> None:
    bad = x.copy()
    for value in (np.nan, np.inf, -np.inf):
        bad[17, 3] = value
        for use in (compressor.encode, compressor.scorer, from_spec(spec).fit):
            with pytest.raises(InvalidArgumentError, match="Row 17"):
                use(bad)


def test_wrong_shapes_and_types_are_refused(compressor: Compressor, x: Floats) -> None:
    codes = compressor.encode(x[:4])
    for bad in (x[:, :-1], np.concatenate([x, x], axis=1), x[0], x.astype(np.int32), x[None]):
        with pytest.raises(InvalidArgumentError):
            compressor.encode(bad)
        with pytest.raises(InvalidArgumentError):
            compressor.scorer(bad)
    for bad in (codes[:, :-1], codes[0], codes.astype(np.int64)):
        with pytest.raises(InvalidArgumentError):
            compressor.decode(bad)
    with pytest.raises(InvalidArgumentError, match="metric"):
        compressor.scorer(x, "manhattan")


def test_any_bytes_decode_and_score_without_a_crash(compressor: Compressor, q: Floats) -> None:
    noise = np.random.default_rng(1).integers(256, size=(50, compressor.code_size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        assert compressor.decode(noise).shape == (50, DIM)
        assert compressor.scorer(q).score(noise).shape == (len(q), 50)


# how many rows


def test_no_rows(compressor: Compressor, spec: str, x: Floats, q: Floats) -> None:
    with pytest.raises(InvalidArgumentError, match="needs at least"):
        from_spec(spec).fit(x[:0])
    empty = compressor.encode(x[:0])
    assert empty.shape == (0, compressor.code_size)
    assert compressor.decode(empty).shape == (0, DIM)
    for metric in METRICS:
        assert compressor.scorer(q, metric).score(empty).shape == (len(q), 0)
        assert compressor.scorer(q[:0], metric).score(compressor.encode(x)).shape == (0, len(x))


def test_too_few_rows_are_refused_and_enough_are_not(spec: str, x: Floats, q: Floats, fit_on: Fit) -> None:
    needed = from_spec(spec).minimum_rows
    assert 1 <= needed <= len(x)
    with pytest.raises(InvalidArgumentError, match=f"at least {needed}"):
        from_spec(spec).fit(x[: needed - 1])
    compressor = fit_on(spec, x[:needed])
    codes = compressor.encode(x)
    assert np.isfinite(compressor.decode(codes)).all()
    assert_law(compressor, q, codes)


# awkward data


def awkward(kind: str) -> Floats:
    x = documents().copy()
    if kind == "a constant dimension":
        x[:, 5] = 0.5
    elif kind == "a zero dimension and a zero row":
        x[:, 5], x[7] = 0, 0
    elif kind == "duplicate rows":
        x = np.tile(x[:9], (34, 1))[: len(x)]
    elif kind == "one row repeated":
        x[:] = x[0]
    elif kind == "zeros":
        x[:] = 0
    elif kind == "long vectors":
        x *= 100
    else:
        x *= np.float32(0.01)
    return x


AWKWARD = [
    "a constant dimension",
    "a zero dimension and a zero row",
    "duplicate rows",
    "one row repeated",
    "zeros",
    "long vectors",
    "short vectors",
]


@pytest.mark.parametrize("kind", AWKWARD)
def test_awkward_data_keeps_the_law(spec: str, kind: str, q: Floats, fit_on: Fit) -> None:
    x = awkward(kind)
    compressor = fit_on(spec, x)
    assert all(np.isfinite(a).all() for a in compressor.state.values())
    codes = compressor.encode(x)
    assert np.isfinite(compressor.decode(codes)).all()
    assert_law(compressor, q, codes)
    unseen = documents()  # the sample did not show them, or only at another scale
    assert np.isfinite(compressor.decode(compressor.encode(unseen))).all()
    alike = unseen * (np.abs(x).max() / np.abs(unseen).max())
    assert_law(compressor, q, compressor.encode(alike))


def test_equal_rows_get_equal_codes(compressor: Compressor, x: Floats) -> None:
    codes = compressor.encode(np.repeat(x[:20], 3, axis=0))
    np.testing.assert_array_equal(codes[0::3], codes[1::3])
    np.testing.assert_array_equal(codes[0::3], codes[2::3])


# scores


def test_the_law(compressor: Compressor, x: Floats, q: Floats) -> None:
    assert_law(compressor, q, compressor.encode(x))


def test_the_law_holds_for_a_zero_query(compressor: Compressor, x: Floats, q: Floats) -> None:
    assert_law(compressor, np.concatenate([q[:1] * 0, q]), compressor.encode(x))


def test_scores_follow_the_true_ones(spec: str, x: Floats, q: Floats, fit_on: Fit) -> None:
    for scale in np.float32([0.01, 1, 100]):
        compressor = fitted(spec) if scale == 1 else fit_on(spec, x * scale)
        scores = compressor.scorer(q * scale).score(compressor.encode(x * scale))
        assert np.corrcoef(scores.ravel(), (q @ x.T).ravel())[0, 1] > 0.5


def test_a_block_gives_the_rows_back(compressor: Compressor, x: Floats) -> None:
    whole, layout = compressor.encode(x), compressor.layout
    assert type(layout).parse(str(layout)) == layout
    for n in (0, 1, 31, 32, 33, 64, 300):
        codes = whole[:n]
        columns = layout.pack(codes)
        assert {name: column.shape[1] for name, column in columns.items()} == layout.columns
        for column in columns.values():
            assert column.dtype == np.uint8
            assert len(column) == -(-n // ROW_PADDING) * ROW_PADDING
        block = Block(layout, columns, n)
        np.testing.assert_array_equal(block.codes(), codes)
        np.testing.assert_array_equal(block.codes(n // 3, n - n // 4), codes[n // 3 : n - n // 4])


def test_topk_of_a_block_is_the_topk_of_the_scores(compressor: Compressor, x: Floats, q: Floats) -> None:
    codes = compressor.encode(x)
    block = Block.from_codes(compressor.layout, codes)
    allowed = np.random.default_rng(4).random(len(x)) < 0.3
    for metric in METRICS:
        scorer = compressor.scorer(q, metric)
        assert_topk(scorer, block, scorer.score(codes), np.ones(len(x), bool), None, compressor.tolerance)
        assert_topk(scorer, block, scorer.score(codes), allowed, pack_mask(allowed), compressor.tolerance)


def assert_topk(
    scorer: Scorer,
    block: Block,
    scores: Floats,
    allowed: NDArray[np.bool_],
    mask: NDArray[np.uint8] | None,
    tolerance: float,
) -> None:
    atol = tolerance * np.abs(scores).max()
    for k in (1, 10, block.rows + 5):
        best, rows = scorer.topk(block, k, mask)
        expected, _ = topk(scores, k, mask)
        found = rows >= 0
        assert best.shape == rows.shape == (len(scores), k)
        assert (found.sum(axis=1) == min(k, allowed.sum())).all()
        assert allowed[rows[found]].all()
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in rows)
        np.testing.assert_allclose(best[found], expected[found], rtol=0, atol=atol)
        of_rows = np.take_along_axis(scores, np.maximum(rows, 0), axis=1)
        np.testing.assert_allclose(best[found], of_rows[found], rtol=0, atol=atol)
        assert (best[~found] == -np.inf).all()
        assert (best[:, :-1] >= best[:, 1:]).all()
