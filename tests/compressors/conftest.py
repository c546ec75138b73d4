"""Data and fitted compressors for the conformance suite: every example of every registered class."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors import Chain, Compressor, Transform, from_spec, stage_classes
from ragq.compressors.base import Stage
from ragq.errors import InvalidArgumentError

DIM = 64
ROWS = 300


def embeddings(n: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors like a text model's: clustered, with a common mean and a falling spectrum."""
    rng = np.random.default_rng(seed)
    shape = np.random.default_rng(5)  # the same clusters, mean and spectrum for every seed
    centres, mean = shape.normal(size=(12, dim)), shape.normal(size=dim)
    spectrum = 1 / np.sqrt(1 + np.arange(dim))
    x = (centres[rng.integers(12, size=n)] + rng.normal(size=(n, dim))) * spectrum + 0.1 * mean
    return np.ascontiguousarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


@cache
def documents() -> NDArray[np.float32]:
    x = embeddings(ROWS, DIM, seed=1)
    x.flags.writeable = False
    return x


@cache
def query_embeddings() -> NDArray[np.float32]:
    q = embeddings(40, DIM, seed=2)
    q.flags.writeable = False
    return q


def relevant() -> dict[int, set[int]]:
    """Labels for the methods that use them: the nearest document of each query."""
    best = (query_embeddings() @ documents().T).argmax(axis=1)
    return {query: {int(row)} for query, row in enumerate(best)}


def fit(spec: str, x: NDArray[np.float32] | None = None, seed: int = 0) -> Compressor:
    """Fit on the documents (or on `x`) with queries, and with labels where they exist."""
    compressor = from_spec(spec)
    labels = relevant() if x is None else None
    x = documents() if x is None else x
    return compressor.fit(x, queries=query_embeddings()[:, : x.shape[1]], qrels=labels, seed=seed)


@cache
def fitted(spec: str) -> Compressor:
    """Return one fitted compressor a spec; tests must not refit it."""
    return fit(spec)


def stages(compressor: Compressor) -> list[Stage]:
    return compressor.stages if isinstance(compressor, Chain) else [compressor]


def default_spec(cls: type[Stage]) -> str | None:
    """Return the spec of a class built without arguments, where it needs none."""
    try:
        stage = cls()
    except (TypeError, InvalidArgumentError):
        return None
    return f"{stage},F32" if isinstance(stage, Transform) else str(stage)


def all_specs() -> list[str]:
    """Return the examples of every class and its default parameters, in the registry's order."""
    specs: dict[str, None] = {}
    for cls in stage_classes():
        specs |= dict.fromkeys(cls.examples)
        if default := default_spec(cls):
            specs[default] = None
    return list(specs)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `spec` for all specs, and `stage_class` for all classes, unless it says for which."""
    marks = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    given = {name.strip() for names in marks for name in (names.split(",") if isinstance(names, str) else names)}
    if "spec" in metafunc.fixturenames and "spec" not in given:
        metafunc.parametrize("spec", all_specs())
    if "stage_class" in metafunc.fixturenames and "stage_class" not in given:
        metafunc.parametrize("stage_class", stage_classes(), ids=lambda cls: cls.__name__)


@pytest.fixture
def x() -> NDArray[np.float32]:
    return documents()


@pytest.fixture
def q() -> NDArray[np.float32]:
    return query_embeddings()[:7]


@pytest.fixture
def compressor(spec: str) -> Compressor:
    return fitted(spec)


@pytest.fixture
def fit_on() -> Callable[..., Compressor]:
    return fit
