"""Stands in for Triton where it is not installed: modules import, and a kernel that is launched names the extra."""

from __future__ import annotations

from typing import Any

from ragq.errors import missing_extra

__all__ = ["constexpr", "jit"]


class AbsentKernel:
    """A kernel that nothing can compile."""

    def __getitem__(self, grid: Any) -> Any:
        """Raise `MissingExtraError`, as any launch must."""
        raise missing_extra("triton", "gpu")


def jit(function: Any = None, **options: Any) -> Any:
    """Take the place of `triton.jit`, with and without arguments."""
    return AbsentKernel() if function is not None else lambda function: AbsentKernel()


def constexpr(value: Any) -> Any:
    """Take the place of `triton.language.constexpr`."""
    return value
