"""A watch over what the children of a fuzz run open."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

__all__ = ["OutsideError", "guarded"]

PARENT = os.getpid()
_original = pa.memory_map
_folder: list[Path] = []


class OutsideError(AssertionError):
    """A file outside of the index was opened."""


def guarded(folder: Path | None) -> None:
    """Let openings of files that are neither below `folder` nor Python's own raise `OutsideError` in children."""
    if not _folder:
        sys.addaudithook(hook)
        pa.memory_map = memory_map
    _folder[:] = [folder or Path("/")]


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or os.getpid() == PARENT or not isinstance(arguments[0], (str, bytes)):
        return
    name = os.fsdecode(arguments[0])
    own = ("/proc/", "/dev/null", "/sys/", sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]))
    if name.startswith("/") and not name.startswith((str(_folder[0]), *own)):
        raise OutsideError(name)


def memory_map(path: str, *arguments: Any) -> Any:
    if os.getpid() != PARENT and not Path(path).resolve().is_relative_to(_folder[0].resolve()):
        raise OutsideError(path)
    return _original(path, *arguments)
