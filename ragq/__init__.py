"""ragq: a retrieval index for RAG that is as small as the answers allow.

>>> import ragq
>>> index = ragq.build("corpus/", "corpus.ragq")  # doctest: +SKIP
>>> ragq.open("corpus.ragq").search("what is a shard?")  # doctest: +SKIP

The names below are imported when they are first used, so that ``import ragq`` stays quick.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from ragq.errors import (
        CommitConflictError,
        CorruptIndexError,
        IncompatibleIndexError,
        IndexLockedError,
        InvalidArgumentError,
        RagqError,
        StorageError,
    )
    from ragq.pipelines.api import build
    from ragq.pipelines.checkup import checkup
    from ragq.pipelines.index import Index
    from ragq.pipelines.index import open_index as open
    from ragq.pipelines.repair import repair
    from ragq.tokens import TokenEmbeddings
    from ragq.types import Document, Hit, Results

__version__ = "0.1.0"

__all__ = [
    "CommitConflictError",
    "CorruptIndexError",
    "Document",
    "Hit",
    "IncompatibleIndexError",
    "Index",
    "IndexLockedError",
    "InvalidArgumentError",
    "RagqError",
    "Results",
    "StorageError",
    "TokenEmbeddings",
    "build",
    "checkup",
    "open",
    "repair",
]

_HOMES = {
    "build": ("ragq.pipelines.api", "build"),
    "checkup": ("ragq.pipelines.checkup", "checkup"),
    "open": ("ragq.pipelines.index", "open_index"),
    "repair": ("ragq.pipelines.repair", "repair"),
    "Index": ("ragq.pipelines.index", "Index"),
    "Document": ("ragq.types", "Document"),
    "Hit": ("ragq.types", "Hit"),
    "Results": ("ragq.types", "Results"),
    "TokenEmbeddings": ("ragq.tokens", "TokenEmbeddings"),
}


def __getattr__(name: str) -> _Any:
    if name not in __all__:
        raise AttributeError(f"module 'ragq' has no attribute '{name}'")
    home, attribute = _HOMES.get(name, ("ragq.errors", name))
    value = globals()[name] = getattr(_import_module(home), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
