"""Cuts documents into passages that the model reads whole, measured in the model's own tokens.

langchain-text-splitters finds the places to cut (headings and definitions, blank lines, lines, sentences, words, in
this order). The pieces are joined again as long as they fit, and each passage begins a little before the end of the one
before. A passage is an exact substring, and together they cover the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

from ragq.checks import check_int
from ragq.embedders import Embedder
from ragq.errors import InvalidArgumentError
from ragq.types import Document, Passage, passage_text

__all__ = ["Splitter"]

_LONGEST_DEFAULT = 512  # a passage of thousands of tokens has one embedding for too many subjects
_UNKNOWN_DEFAULT = 256  # where nobody knows what the model reads
_DEFAULT_OVERLAP = 32
_MAX_TOKEN_CHARS = 32  # a run of more characters counts as more tokens: a tokenizer may read a page of base64 as one
_BLOCK_CHARS = 100_000  # longer texts are cut into blocks first, so that memory stays that of a block
_PLAIN = [r"\n[ \t]*\n", r"\n", r"(?<=[.!?])\s+|(?<=[。！？])", r"(?<=[,;:])\s+|(?<=[、，；])", r"\s+", ""]
_LANGUAGES = {
    **dict.fromkeys((".md", ".markdown", ".pdf", ".docx", ".pptx", ".xlsx"), "markdown"),  # markitdown writes Markdown
    **dict.fromkeys((".c", ".h", ".cc", ".cpp", ".hpp", ".cu"), "cpp"),
    **dict.fromkeys((".js", ".jsx", ".mjs"), "js"),
    **dict.fromkeys((".ts", ".tsx"), "ts"),
    **dict.fromkeys((".kt", ".kts"), "kotlin"),
    **dict.fromkeys((".py", ".pyi"), "python"),
    ".cs": "csharp",
    ".go": "go",
    ".java": "java",
    ".lua": "lua",
    ".php": "php",
    ".proto": "proto",
    ".rb": "ruby",
    ".rs": "rust",
    ".rst": "rst",
    ".scala": "scala",
    ".swift": "swift",
    ".tex": "latex",
}


class Splitter:
    """Cuts documents for one model.

    Parameters
    ----------
    embedder : Embedder
        Its tokenizer counts; without one, words and punctuation marks are counted.
    tokens : int, optional
        Tokens of a passage, its title, the model's prompt and special tokens included. By default a document that the
        model reads whole is one passage, and a longer one is cut into passages of the model's length (512 at most).
        0 keeps every document whole; what is beyond the model's length is then not embedded.
    overlap : int, optional
        Tokens that a passage repeats of the one before; by default 32, or an eighth of a short passage.

    Raises
    ------
    InvalidArgumentError
        More tokens than the model reads, or too few to hold anything but the overlap.
    """

    def __init__(self, embedder: Embedder, tokens: int | None = None, overlap: int | None = None) -> None:
        readable = embedder.max_tokens
        self.whole = tokens == 0
        if tokens is not None:
            check_int(tokens, "chunk_tokens", 0)
            if readable is not None and tokens > readable:
                raise InvalidArgumentError(
                    f"'chunk_tokens' must be at most {readable}, what the model reads. Got {tokens}. 0 cuts nothing."
                )
        limit = tokens or readable or _UNKNOWN_DEFAULT
        self.tokens = min(limit, _LONGEST_DEFAULT) if tokens is None else limit
        self.overlap = check_int(min(_DEFAULT_OVERLAP, self.tokens // 8) if overlap is None else overlap, "overlap", 0)
        count = _counter(embedder.tokenizer)
        self._count = lru_cache(maxsize=2**14)(count)
        taken = _special_tokens(embedder.tokenizer) + count(_document_prompt(embedder))
        self._limit = limit - taken
        self._room = self.tokens - taken
        if not self.whole and self._room <= 2 * self.overlap:
            raise InvalidArgumentError(
                f"'chunk_tokens' must be more than {2 * self.overlap + taken} with an overlap of {self.overlap}. "
                f"Got {self.tokens}."
            )

    def fits(self, document: Document) -> bool:
        """Return whether a document needs no cut."""
        text = passage_text(document.title, document.text)
        if len(text) <= self._limit and text.isascii():
            return True  # a token has at least one character
        return self._length(text, self._limit + 1) <= self._limit

    def split(self, document: Document) -> list[Passage]:
        """Return the passages of a document, in order; one when it fits."""
        d = document
        if self.whole or self.fits(d):
            return [Passage(d.id, 0, d.text, d.title, d.metadata, d.source)]
        title = self._length(d.title, self._room) if d.title else 0
        room = max(self._room - title, self._room // 2)
        overlap = min(self.overlap, room // 2)
        cuts = self._cuts(d.text, room - overlap, str(d.metadata.get("suffix", "")))
        starts = [0, *(self._overlapped(d.text, low, cut, overlap) for low, cut in pairwise(cuts[:-1]))]
        return [
            Passage(d.id, number, d.text[start:end], d.title, d.metadata, d.source, start)
            for number, (start, end) in enumerate(zip(starts, cuts[1:], strict=True))
        ]

    def _length(self, text: str, enough: int) -> int:
        """Return the tokens of a text; of a text that is surely longer than `enough`, some number above it."""
        by_characters = len(text) // _MAX_TOKEN_CHARS
        return by_characters if by_characters > enough else max(by_characters, self._count(text))

    def _cuts(self, text: str, size: int, suffix: str) -> list[int]:
        """Return 0, the offsets at which passages of at most `size` tokens begin, and the length of the text."""
        from langchain_text_splitters import RecursiveCharacterTextSplitter

        splitter = RecursiveCharacterTextSplitter(
            separators=_separators(suffix),
            is_separator_regex=True,
            keep_separator="start",
            chunk_size=size,
            chunk_overlap=0,  # without overlap the pieces are the text, and the offset of each is known for sure
            strip_whitespace=False,
            length_function=lambda piece: self._length(piece, size),
        )
        cuts, end, used = [0], 0, 0
        for block in _blocks(text):
            for piece in splitter.split_text(block):
                length = self._length(piece, size)
                if used and used + length > size:
                    cuts.append(_after_space(text, end))
                    used = 0
                used += length
                end += len(piece)
        return [*dict.fromkeys(cut for cut in cuts if cut < len(text)), len(text)]

    def _overlapped(self, text: str, low: int, cut: int, overlap: int) -> int:
        """Return where a passage begins that repeats up to `overlap` tokens of whole words before `cut`."""
        start, used = cut, 0
        low = max(low, cut - overlap * _MAX_TOKEN_CHARS)
        for word in reversed(list(re.finditer(r"\S+", text[low:cut]))):
            used += self._length(word[0], overlap)
            if used > overlap or word.start() == 0:
                break
            start = low + word.start()
        return start


def _blocks(text: str) -> list[str]:
    """Cut a very long text at blank lines, lines or spaces."""
    blocks, start = [], 0
    while len(text) - start > _BLOCK_CHARS:
        low, high = start + _BLOCK_CHARS // 2, start + _BLOCK_CHARS
        found = (text.rfind(separator, low, high) for separator in ("\n\n", "\n", " "))
        end = next((at for at in found if at > 0), high)
        blocks.append(text[start:end])
        start = end
    return [*blocks, text[start:]]


def _after_space(text: str, cut: int) -> int:
    """Move a cut behind the line breaks that follow it, or behind the spaces; an indentation stays with its line."""
    space = re.compile(r"\s*").match(text, cut)
    run = space[0] if space else ""
    return cut + (run.rfind("\n") + 1 if "\n" in run else len(run))


@lru_cache(maxsize=64)
def _separators(suffix: str) -> list[str]:
    language = _LANGUAGES.get(suffix)
    if language is None:
        return _PLAIN
    from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

    own = RecursiveCharacterTextSplitter.get_separators_for_language(Language(language))
    return [separator for separator in own if separator not in ("\n\n", "\n", " ", "")] + _PLAIN


def _counter(tokenizer: Any) -> Callable[[str], int]:
    """Return a function from a text to its number of tokens, special tokens left out."""
    if tokenizer is None:
        return lambda text: sum(1 for _ in re.finditer(r"\w+|[^\w\s]", text))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda text: len(tokenizer.tokenize(text))
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(backend.to_str())  # a copy: the model sets truncation and padding on its own
    own.no_truncation()
    own.no_padding()
    return lambda text: len(own.encode(text, add_special_tokens=False).ids)


def _special_tokens(tokenizer: Any) -> int:
    count = getattr(tokenizer, "num_special_tokens_to_add", None)
    return int(count()) if count is not None else 0


def _document_prompt(embedder: Embedder) -> str:
    prompts = embedder.fingerprint.get("prompts") or {}
    return next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), "")
