"""The compressor contract.

A compressor has three parts, never mixed:

config
    The constructor's arguments, JSON values; the spec string prints them.
state
    What `fit` learned: arrays whose names end in ``_``, listed in `Stage.state_names`, saved with safetensors.
behaviour
    ``encode`` (floats to codes, each row by itself), ``decode`` (codes to floats), ``scorer`` (queries to score codes).

The law that every compressor keeps, tested for all of them: ``scorer(q, "ip").score(codes) == q @ decode(codes).T``
within `Compressor.tolerance`, and its cosine and l2 forms. Scores are in the embedding's own units.

A `Transform` (PCA, rotation) turns floats into floats; a `Quantizer` ends in bytes; a `Chain` is transforms and one
quantizer. A new method is one module that subclasses `Transform` or `Quantizer`, one line in `registry.py`, one golden
file and one row in README.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import copy
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragq.checks import check_embeddings, check_metric
from ragq.compressors.scorers import LinearScorer, NormScorer, Scorer
from ragq.compressors.spec import parameters, print_stage
from ragq.errors import CorruptIndexError, InvalidArgumentError, NotFittedError
from ragq.layouts import Layout

__all__ = ["Chain", "Compressor", "Quantizer", "Stage", "Transform"]

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
MAX_DIM = 1 << 20  # of a state that somebody else wrote


def row_slices(x: NDArray[Any], elements: int = 1 << 16) -> Iterator[slice]:
    """Cut the rows of `x` into runs of about `elements` numbers, few enough to stay in cache between steps."""
    step = max(1, elements // max(1, x.shape[1]))
    return (slice(start, start + step) for start in range(0, len(x), step))


class Stage(ABC):
    """What transforms and quantizers share: config, state, fitting.

    Attributes
    ----------
    dim : int
        Dimensions that go in; known after `fit`.
    """

    forms: ClassVar[tuple[str, ...]]  # how the spec spells the stage, as "PQ{m}x{bits}"; see `ragq.compressors.spec`
    examples: ClassVar[tuple[str, ...]] = ()  # whole specs that the conformance suite runs at dim 64 and 300 rows
    menu: ClassVar[tuple[str, ...]] = ()  # specs for `ragq codecs`, "{2}" for half the dimensions; else examples[0]
    state_names: ClassVar[tuple[str, ...]] = ()
    state_dtypes: ClassVar[dict[str, str]] = {}  # where a state array is not float32
    minimum_rows: int = 1  # rows that `fit` needs; a property where it depends on the config

    dim_: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        return {name: getattr(self, name) for name in parameters(type(self))}

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """The fitted arrays by name, ``dim_`` included; never 0-d and C-contiguous, as safetensors needs."""
        self._check_fitted()
        arrays = {name: np.asarray(getattr(self, name), order="C") for name in self.state_names}
        return {"dim_": np.array([self.dim_], np.int64), **arrays}

    def load_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Take over arrays that `state` gave.

        Raises
        ------
        CorruptIndexError
            An array is missing, unexpected, of another type or shape, or not finite; the stage is then unfitted.
        """
        self.dim_ = None
        expected = {"dim_", *self.state_names}
        if set(state) != expected:
            raise CorruptIndexError(f"The state of {self} must hold {sorted(expected)}. Got {sorted(state)}.")
        arrays = {name: np.asarray(array) for name, array in state.items()}
        dim = arrays.pop("dim_")
        if dim.dtype != np.int64 or dim.shape != (1,) or not 1 <= int(dim[0]) <= MAX_DIM:
            raise CorruptIndexError(f"'dim_' of {self} must be one int64 in 1..{MAX_DIM}. Got {dim.dtype} {dim}.")
        self.dim_ = int(dim[0])
        try:
            self._check_dim(self.dim_)
            for name, array in arrays.items():
                setattr(self, name, array)
            self._check_state(arrays)
        except InvalidArgumentError as error:
            self.dim_ = None
            raise CorruptIndexError(f"The state of {self} does not fit its spec: {error}") from None
        except BaseException:
            self.dim_ = None
            raise
        return self

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of `state_names`, from the config and `dim_`: what `load_state` insists on.

        A shape that another state array decides may read it: the arrays are set, in any shape, when this is called.
        """
        return {}

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Raise `CorruptIndexError` when an array cannot be what `fit` made; extend it for values out of range."""
        shapes = self._state_shapes()
        for name, array in arrays.items():
            dtype, shape = np.dtype(self.state_dtypes.get(name, "float32")), shapes.get(name, array.shape)
            if array.dtype != dtype or array.shape != shape:
                raise CorruptIndexError(f"'{name}' of {self} must be {dtype} {shape}. Got {array.dtype} {array.shape}.")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CorruptIndexError(f"'{name}' of {self} must be finite. It holds NaN or infinity.")

    def _at(self, dim: int) -> Self:
        """Return an unfitted copy that knows its dimension, for sizes that need no data."""
        self._check_dim(dim)
        stage = copy(self)
        stage.dim_ = dim
        return stage

    @property
    def dim(self) -> int:
        self._check_fitted()
        assert self.dim_ is not None
        return self.dim_

    @property
    def spec(self) -> str:
        """The stage as text that `from_spec` reads back."""
        return print_stage(self)

    def __str__(self) -> str:
        return self.spec

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"

    def fit(self, x: ArrayLike, *, queries: ArrayLike | None = None, qrels: Any = None, seed: int = 0) -> Self:
        """Learn from a sample of embeddings.

        Parameters
        ----------
        x : array_like of float, shape (n, dim)
            Document embeddings.
        queries : array_like of float, shape (n_queries, dim), optional
            Query embeddings, for the methods that use them.
        qrels : mapping of int to set of int, optional
            Query row to the relevant document rows, for the methods that use labels.
        seed : int
            Fitting twice with the same data and seed gives the same state.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            Wrong shape, type or dimension, non-finite values, or fewer rows than the method needs.
        """
        floats = check_embeddings(x)
        if len(floats) < self.minimum_rows:
            raise InvalidArgumentError(
                f"{self} needs at least {self.minimum_rows} embeddings to fit. Got {len(floats)}. "
                "Add documents, or choose a codec that needs fewer (FP8 needs 1)."
            )
        known = None if queries is None else check_embeddings(queries, floats.shape[1], name="queries")
        self._check_dim(floats.shape[1])
        self.dim_ = floats.shape[1]
        try:
            self._fit(floats, known, qrels, np.random.default_rng(seed))
        except BaseException:
            self.dim_ = None
            raise
        return self

    def _check_dim(self, dim: int) -> None:  # noqa: B027
        """Raise `InvalidArgumentError` when the config cannot work with `dim` dimensions."""

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:  # noqa: B027
        """Set the arrays of `state_names`; `x` is checked. Nothing to learn is fine."""

    def _check_fitted(self) -> None:
        if self.dim_ is None:
            raise NotFittedError(f"{self} is not fitted yet. Call fit(embeddings) first, or open a saved index.")


class Transform(Stage):
    """Floats to floats, with a linear way back: ``q @ inverse(z).T == fold(q)[0] @ z.T + fold(q)[1]``."""

    @property
    @abstractmethod
    def dim_out(self) -> int:
        """Dimensions that come out."""

    @abstractmethod
    def apply(self, x: Floats) -> Floats:
        """Map `(n, dim)` embeddings to `(n, dim_out)`."""

    @abstractmethod
    def inverse(self, z: Floats) -> Floats:
        """Map `(n, dim_out)` back to the best `(n, dim)` approximation."""

    @abstractmethod
    def fold(self, queries: Floats) -> tuple[Floats, Floats]:
        """Return the query side of the inner product.

        Parameters
        ----------
        queries : ndarray of float32, shape (q, dim)

        Returns
        -------
        queries : ndarray of float32, shape (q, dim_out)
        bias : ndarray of float32, shape (q,)
            ``queries @ inverse(0)``, the part that no document changes.
        """


class Compressor(Stage):
    """Embeddings to codes and back, and queries that score codes.

    Attributes
    ----------
    code_size : int
        Bytes a vector adds, side floats included.
    tolerance : float
        Largest difference between `Scorer.score` and the decoded inner product, relative to ``|q| |x|``.
    rows_at_once : int
        Rows that `encode` takes through all its steps before the next ones, so that what lies between the steps stays
        in the caches; 0 for all.
    """

    tolerance: ClassVar[float] = 1e-5
    rows_at_once: ClassVar[int] = 0

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """How the codes lie in a shard; ``layout.code_size == code_size``."""

    @property
    def code_size(self) -> int:
        self._check_fitted()
        return self.layout.code_size

    def code_size_at(self, dim: int) -> int:
        """Return the `code_size` that embeddings of `dim` dimensions will have, before any `fit`.

        Raises
        ------
        InvalidArgumentError
            The config cannot work with `dim` dimensions.
        """
        return self._at(dim).code_size

    def encode(self, x: ArrayLike) -> Codes:
        """Compress embeddings, each row by itself.

        Parameters
        ----------
        x : array_like of float, shape (n, dim)

        Returns
        -------
        ndarray of uint8, shape (n, code_size)
        """
        floats = check_embeddings(x, self.dim)
        rows = self.rows_at_once or max(len(floats), 1)
        parts = [self._encode(floats[i : i + rows]) for i in range(0, max(len(floats), 1), rows)]
        codes = parts[0] if len(parts) == 1 else np.concatenate(parts)
        assert codes.dtype == np.uint8 and codes.shape[1:] == (self.code_size,)
        return codes

    def decode(self, codes: Codes) -> Floats:
        """Reconstruct embeddings.

        Parameters
        ----------
        codes : ndarray of uint8, shape (n, code_size)

        Returns
        -------
        ndarray of float32, shape (n, dim)
        """
        return self._decode(self._check_codes(codes))

    def scorer(self, queries: ArrayLike, metric: str = "ip") -> Scorer:
        """Prepare queries to score codes without decoding them.

        Parameters
        ----------
        queries : array_like of float, shape (q, dim)
        metric : {'ip', 'cosine', 'l2'}
            Inner product, cosine, or negative squared distance: higher is better in all three.
        """
        floats = check_embeddings(queries, self.dim, name="queries")
        if check_metric(metric) == "ip":
            return self._scorer(floats)
        return NormScorer(self, floats, metric)

    @abstractmethod
    def _encode(self, x: Floats) -> Codes: ...

    @abstractmethod
    def _decode(self, codes: Codes) -> Floats: ...

    @abstractmethod
    def _scorer(self, queries: Floats) -> LinearScorer:
        """Prepare checked queries for the inner product."""

    def _check_codes(self, codes: Codes) -> Codes:
        self._check_fitted()
        array = np.asarray(codes)
        if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != self.code_size:
            raise InvalidArgumentError(
                f"'codes' of {self} must be uint8 of shape (n, {self.code_size}). Got {array.dtype} {array.shape}."
            )
        return array


class Quantizer(Compressor):
    """The last stage of a spec: floats to bytes."""


class Chain(Compressor):
    """Transforms, then one quantizer: what a spec with commas builds.

    Parameters
    ----------
    transforms : list of Transform
    quantizer : Quantizer
    """

    def __init__(self, transforms: list[Transform], quantizer: Quantizer) -> None:
        self.transforms = transforms
        self.quantizer = quantizer

    @property
    def stages(self) -> list[Stage]:
        """The transforms, then the quantizer."""
        return [*self.transforms, self.quantizer]

    @property
    def config(self) -> dict[str, Any]:
        return {"stages": [stage.spec for stage in self.stages]}

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        self._check_fitted()
        return {f"{i}.{name}": array for i, stage in enumerate(self.stages) for name, array in stage.state.items()}

    def load_state(self, state: dict[str, NDArray[Any]]) -> Self:
        parts: list[dict[str, NDArray[Any]]] = [{} for _ in self.stages]
        for key, array in state.items():
            position, _, name = key.partition(".")
            if not position.isdecimal() or int(position) >= len(parts):
                raise CorruptIndexError(f"The state of {self} has {len(parts)} stages. Got an array named '{key}'.")
            parts[int(position)][name] = array
        self.dim_ = None
        for stage, part in zip(self.stages, parts, strict=True):
            stage.load_state(part)
        for transform, following in zip(self.transforms, self.stages[1:], strict=True):
            if transform.dim_out != following.dim:
                raise CorruptIndexError(
                    f"In the state of {self}, {transform} gives {transform.dim_out} dimensions "
                    f"and {following} takes {following.dim}."
                )
        self.dim_ = self.stages[0].dim
        return self

    @property
    def spec(self) -> str:
        return ",".join(stage.spec for stage in self.stages)

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return max(stage.minimum_rows for stage in self.stages)

    @property
    def code_size(self) -> int:
        return self.quantizer.code_size

    @property
    def layout(self) -> Layout:
        return self.quantizer.layout

    @property
    def tolerance(self) -> float:  # type: ignore[override]
        return max(1e-5, self.quantizer.tolerance)

    def _check_dim(self, dim: int) -> None:
        self._at(dim)

    def _at(self, dim: int) -> Self:
        chain, first = copy(self), dim
        chain.transforms = []
        for transform in self.transforms:
            chain.transforms.append(transform._at(dim))
            dim = chain.transforms[-1].dim_out
        chain.quantizer = self.quantizer._at(dim)
        chain.dim_ = first
        return chain

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        for transform in self.transforms:
            transform.fit(x, queries=queries, qrels=qrels, seed=int(rng.integers(2**31)))
            x = transform.apply(x)
            queries = None if queries is None else transform.fold(queries)[0]
        self.quantizer.fit(x, queries=queries, qrels=qrels, seed=int(rng.integers(2**31)))

    def _encode(self, x: Floats) -> Codes:
        for transform in self.transforms:
            x = transform.apply(x)
        return self.quantizer._encode(np.ascontiguousarray(x, np.float32))

    def _decode(self, codes: Codes) -> Floats:
        x = self.quantizer._decode(codes)
        for transform in reversed(self.transforms):
            x = transform.inverse(x)
        return x

    def _scorer(self, queries: Floats) -> LinearScorer:
        bias = np.zeros(len(queries), np.float32)
        for transform in self.transforms:
            queries, part = transform.fold(queries)
            bias = bias + part
        return self.quantizer._scorer(np.ascontiguousarray(queries, np.float32)).plus(bias)
