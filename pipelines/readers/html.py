"""HTML reduced to its title and its readable text, with the standard library's parser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

__all__ = ["html_text"]

_UNREAD = {"script", "style", "noscript", "template", "svg", "math", "iframe", "object", "head"}
_BLOCKS = frozenset(
    {
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "br",
        "caption",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
    }
    | {
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "html",
        "li",
        "main",
    }
    | {
        "nav",
        "ol",
        "option",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
    }
)


class _TextParser(HTMLParser):
    """Collects text; a block element begins and ends a line."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title: list[str] = []
        self.parts: list[str] = []
        self._unread: list[str] = []
        self._in_title = False
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        if tag == "title" and "svg" not in self._unread:
            self._in_title = True
        elif tag == "body":
            self._unread.clear()  # a head that nobody closed
        elif tag in _UNREAD:
            self._unread.append(tag)
        if tag in _BLOCKS:
            self.parts.append("\n")
        self._pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        """Close an element."""
        if tag == "title":
            self._in_title = False
        elif tag in self._unread:
            while self._unread.pop() != tag:
                pass
        if tag in _BLOCKS:
            self.parts.append("\n")
        self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        """Keep text that a browser would show."""
        if self._in_title:
            self.title.append(data)
        elif self._pre and not self._unread:
            self.parts.append(data)
        elif not self._unread:
            after_space = not self.parts or self.parts[-1].endswith((" ", "\n"))
            text = re.sub(r"\s+", " ", data)
            if text := text.lstrip(" ") if after_space else text:
                self.parts.append(text)


def html_text(html: str) -> tuple[str, str]:
    """Return (title, text) of an HTML page; scripts, styles and the head are left out, blocks become lines."""
    parser = _TextParser()
    parser.feed(html)
    parser.close()
    lines = (line.rstrip() for line in "".join(parser.parts).split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    return " ".join("".join(parser.title).split()), text
