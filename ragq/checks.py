"""Checks of arguments that several rooms share; each raises `InvalidArgumentError` with what came. And unit length."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragq.errors import InvalidArgumentError

__all__ = ["METRICS", "check_bool", "check_embeddings", "check_int", "check_metric", "finite_rows", "normalized"]

METRICS = ("ip", "cosine", "l2")


def check_embeddings(x: ArrayLike, dim: int | None = None, *, name: str = "x") -> NDArray[np.float32]:
    """Return `x` as C-contiguous float32 of shape (n, dim), or say what is wrong with it.

    float16, float32 and float64 are accepted; the input is never written to.

    Raises
    ------
    InvalidArgumentError
        Not two-dimensional, not floating point, a wrong dimension, or a NaN or infinite value (the row is named).
    """
    array = np.asarray(x)
    if array.ndim != 2:
        raise InvalidArgumentError(f"'{name}' must have shape (n, dim). Got shape {array.shape}.")
    if not np.issubdtype(array.dtype, np.floating):
        raise InvalidArgumentError(f"'{name}' must hold floats. Got {array.dtype}.")
    if dim is not None and array.shape[1] != dim:
        raise InvalidArgumentError(f"'{name}' must have {dim} dimensions. Got {array.shape[1]}.")
    if array.shape[1] == 0:
        raise InvalidArgumentError(f"'{name}' must have at least one dimension. Got shape {array.shape}.")
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(array, dtype=np.float32)
    finite = finite_rows(floats)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InvalidArgumentError(f"'{name}' must be finite. Row {row} holds NaN or infinity.")
    return floats


def check_bool(value: object, name: str) -> bool:
    """Return `value` when it is true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgumentError(f"'{name}' must be true or false. Got {value!r}.")
    return bool(value)


def check_int(value: object, name: str, low: int, high: int | None = None) -> int:
    """Return `value` when it is an integer in `low .. high`."""
    ok = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not ok or int(value) < low or (high is not None and int(value) > high):  # type: ignore[call-overload]
        bound = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"
        raise InvalidArgumentError(f"'{name}' must be {bound}. Got {value!r}.")
    return int(value)  # type: ignore[call-overload]


def check_metric(metric: str) -> str:
    """Return `metric` when it is one of ``ip``, ``cosine``, ``l2``."""
    if metric not in METRICS:
        raise InvalidArgumentError(f"'metric' must be one of {', '.join(METRICS)}. Got {metric!r}.")
    return metric


def normalized(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to unit length; a row of zeros stays."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norms > 0, norms, 1), np.float32)


def finite_rows(x: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which rows hold neither NaN nor infinity; a float64 sum of finite float32 cannot overflow."""
    return np.asarray(np.isfinite(x.sum(axis=1, dtype=np.float64)))
