"""Folders of text files, one document a file."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ragq.errors import InvalidArgumentError, MissingExtraError, StorageError
from ragq.pipelines.readers import office
from ragq.pipelines.readers.base import Counts, Options, Reader
from ragq.pipelines.readers.gitignore import GitIgnore
from ragq.pipelines.readers.html import html_text
from ragq.types import Document

__all__ = ["FileReader", "FolderReader"]

_PART = 512  # files that are read by one worker
_PROBE = 8192  # bytes that are looked at to tell text from binary, as git does
_WIDE_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_HTML = frozenset({".html", ".htm", ".xhtml"})
_MARKDOWN = frozenset({".md", ".markdown"})
_HEADING = re.compile(r"^#[ \t]+(.+?)[ \t#]*$", re.MULTILINE)


class FileReader(Reader):
    """One text, HTML, PDF or Office file; its id is its name. The rules of hidden and ignored files are not applied."""

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__("file", str(path), options)
        self.root = path.parent
        self.path = path

    @property
    def total(self) -> int | None:
        """One."""
        return 1

    def _documents(self) -> Iterator[Document]:
        document = self._read(self.path, self.path.name)
        if document is not None:
            yield document

    def _read(self, path: Path, relative: str) -> Document | None:
        """Return the document of a file; None when it is left out (and counted)."""
        suffix = path.suffix.lower()
        try:
            if path.stat().st_size > self.options.max_bytes:
                self.skip(f"larger than {self.options.max_bytes / 2**20:g} MiB", str(path), fault=True)
                return None
            content = self._office(path) if suffix in office.SUFFIXES else self._text(path, suffix)
        except OSError as error:
            if self.options.strict or self.options.aligned:
                raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error
            self.skip("unreadable", str(path))
            return None
        if content is None:
            return None
        title, text = content
        metadata = {"path": relative, "suffix": suffix}
        return self.checked(Document(relative, text, title, metadata, str(path)), str(path))

    def _text(self, path: Path, suffix: str) -> tuple[str, str] | None:
        data = path.read_bytes()
        if b"\0" in data[:_PROBE] and not data.startswith(_WIDE_BOMS):
            self.skip("binary", str(path))
            return None
        try:
            text = data.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError:
            self.skip("not UTF-8", str(path), fault=True)
            return None
        if suffix in _HTML:
            return html_text(text)
        heading = _HEADING.search(text) if suffix in _MARKDOWN else None
        return heading[1] if heading else "", text

    def _office(self, path: Path) -> tuple[str, str] | None:
        try:
            return office.office_text(path)
        except MissingExtraError as error:
            if self.options.strict or self.options.aligned:
                raise MissingExtraError(f"{path}: {error}") from error
            self.note(f"PDF and Office files were left out. {error}")
            self.skip("needing ragq[files]", str(path))
        except ValueError as error:
            if self.options.strict or self.options.aligned:
                raise InvalidArgumentError(f"{path} cannot be converted to text: {error}") from error
            self.skip("unreadable", str(path))
        return None


class FilesReader(FileReader):
    """Some files of a folder, given with their ids."""

    def __init__(self, root: Path, files: Sequence[tuple[Path, str]], options: Options) -> None:
        super().__init__(root, options)
        self.files = files

    def _documents(self) -> Iterator[Document]:
        for path, relative in self.files:
            document = self._read(path, relative)
            if document is not None:
                yield document


class FolderReader(FileReader):
    """All text files below a folder, in the order of their path parts; an id is the path relative to the folder.

    Hidden entries, what git would ignore, binary files, indexes (``*.ragq``), symbolic links to folders and links that
    leave the folder are left out and counted.
    """

    def __init__(self, root: Path, options: Options) -> None:
        super().__init__(root, options)
        self.kind = "folder"
        self.root = root
        self._total: int | None = None

    @property
    def total(self) -> int | None:
        """Number of files that are neither hidden nor ignored; counted once, by a walk."""
        if self._total is None:
            self._total = sum(1 for _ in FolderReader(self.root, self.options)._walk())
        return self._total

    def parts(self) -> list[Reader]:
        self.counts, self.notes = Counts(), []
        files = list(self._walk())
        return [FilesReader(self.root, files[i : i + _PART], self.options) for i in range(0, len(files), _PART)]

    def _documents(self) -> Iterator[Document]:
        for path, relative in self._walk():
            document = self._read(path, relative)
            if document is not None:
                yield document

    def _walk(self) -> Iterator[tuple[Path, str]]:
        yield from self._walk_folder(self.root, "", GitIgnore.for_root(self.root), self.root.resolve())

    def _walk_folder(self, folder: Path, prefix: str, ignore: GitIgnore, root: Path) -> Iterator[tuple[Path, str]]:
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if self.options.strict or folder == self.root:
                raise StorageError(f"{folder} cannot be read: {error.strerror or error}.") from error
            self.skip("unreadable", str(folder))
            return
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            reason = self._left_out(entry, is_folder, ignore, root)
            path = folder / entry.name
            if reason is not None:
                self.skip(reason, str(path))
            elif is_folder:
                yield from self._walk_folder(path, f"{prefix}{entry.name}/", ignore.inside(entry.name), root)
            else:
                yield path, f"{prefix}{entry.name}"

    @staticmethod
    def _left_out(entry: os.DirEntry[str], is_folder: bool, ignore: GitIgnore, root: Path) -> str | None:
        """Return why an entry is left out; None when it is read."""
        if entry.name.startswith("."):
            return "hidden"
        if not entry.name.isascii() and any("\udc80" <= character <= "\udcff" for character in entry.name):
            return "named in bytes that are not UTF-8"
        if is_folder and entry.name.endswith(".ragq"):
            return "index"
        if ignore.ignores(entry.name, is_folder=is_folder):
            return "gitignored"
        if entry.is_symlink():
            target = Path(entry.path).resolve()
            return None if target.is_file() and target.is_relative_to(root) else "symbolic link"
        return None if is_folder or entry.is_file() else "special file"
