"""PDF and Office files, turned into Markdown by markitdown (the extra ``files``)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ragq.errors import missing_extra

__all__ = ["SUFFIXES", "office_text"]

SUFFIXES = frozenset({".pdf", ".docx", ".pptx", ".xlsx"})


def office_text(path: Path) -> tuple[str, str]:
    """Return (title, text) of a PDF or Office file.

    Raises
    ------
    MissingExtraError
        markitdown, or the library that it needs for this kind of file, is not installed.
    ValueError
        The file cannot be converted.
    """
    converter = _converter()
    from markitdown import MarkItDownException, MissingDependencyException

    try:
        result = converter.convert_local(path)
    except MissingDependencyException as error:
        raise missing_extra("markitdown", "files") from error
    except MarkItDownException as error:
        if any(issubclass(kind, MissingDependencyException) for kind in _causes(error)):
            raise missing_extra("markitdown", "files") from error
        raise ValueError((str(error).strip().splitlines() or ["cannot be converted"])[0]) from error
    return result.title or "", result.markdown


def _causes(error: Any) -> list[type]:
    return [attempt.exc_info[0] for attempt in getattr(error, "attempts", None) or [] if attempt.exc_info]


@lru_cache(maxsize=1)
def _converter() -> Any:
    try:
        from markitdown import MarkItDown
        from markitdown.converters import DocxConverter, PdfConverter, PptxConverter, XlsxConverter
    except ImportError as error:
        raise missing_extra("markitdown", "files") from error
    # Only these: the others would read a broken PDF as plain text, or ask a web service.
    converter = MarkItDown(enable_builtins=False, enable_plugins=False)
    for kind in (DocxConverter, PdfConverter, PptxConverter, XlsxConverter):
        converter.register_converter(kind())
    return converter
