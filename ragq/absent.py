"""Stand-ins for optional libraries that modules name at their top: they import, and their use says what to do."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ragq.errors import missing_extra

__all__ = ["AbsentComponent", "absent_base", "require"]


def require(extra: str, *libraries: str) -> None:
    """Raise `MissingExtraError` unless the libraries of an extra are installed, which another library would ask for."""
    for library in libraries:
        if find_spec(library) is None:
            raise missing_extra(library, extra)


def absent_base(library: str, extra: str) -> type:
    """Return a base class whose subclasses raise `MissingExtraError` when one is made."""

    class Absent:
        def __new__(cls, *args: object, **options: object) -> Absent:
            raise missing_extra(library, extra)

    return Absent


class AbsentComponent:
    """Takes the place of Haystack's decorator ``component``."""

    def __call__(self, _: type) -> type:
        return absent_base("haystack-ai", "haystack")

    def output_types(self, **_: Any) -> Any:
        """Leave a method as it is."""
        return lambda method: method
