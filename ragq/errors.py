"""The errors that ragq raises on purpose; everything else is a bug.

Every message is one line that names the path or argument, what was expected, what came, and a way out.
"""

from __future__ import annotations

__all__ = [
    "CommitConflictError",
    "CorruptIndexError",
    "IncompatibleIndexError",
    "IndexLockedError",
    "InvalidArgumentError",
    "MissingExtraError",
    "NotFittedError",
    "RagqError",
    "StorageError",
]


class RagqError(Exception):
    """Base of all errors of ragq."""


class InvalidArgumentError(RagqError, ValueError):
    """An argument or an input record is not what it has to be."""


class NotFittedError(InvalidArgumentError):
    """A compressor was used before `fit`."""


class CorruptIndexError(RagqError):
    """A file of the index is missing, truncated or altered; the message names it."""


class IncompatibleIndexError(RagqError):
    """The index is whole but does not fit: other format version, other model, other dimension."""


class IndexLockedError(RagqError):
    """Another writer holds the index; the message names its owner and age."""


class CommitConflictError(IndexLockedError):
    """Another writer committed first to an index in an object store; nothing of this change is in it."""


class StorageError(RagqError, OSError):
    """The operating system refused to read or write: full disk, read-only folder, missing right."""


class MissingExtraError(RagqError, ImportError):
    """An optional library is not installed; the message has the install line."""


def missing_extra(library: str, extra: str) -> MissingExtraError:
    """Return the error for an absent optional library, with the line that installs it."""
    return MissingExtraError(f"'{library}' is not installed. Install it with: pip install 'ragq[{extra}]'")
