"""Which files of a folder git would ignore, by the `.gitignore` of every folder on the way down."""

from __future__ import annotations

from pathlib import Path

import pathspec

__all__ = ["GitIgnore"]


class GitIgnore:
    """The patterns in force in one folder: its own and those of the folders above, up to the repository's root."""

    def __init__(self, folder: Path, above: tuple[tuple[Path, pathspec.GitIgnoreSpec], ...] = ()) -> None:
        spec = _spec(folder)
        self.folder = folder
        self._specs = above if spec is None else (*above, (folder, spec))

    @classmethod
    def for_root(cls, root: Path) -> GitIgnore:
        """Return the patterns in force in `root`, with those of the repository that it lies in."""
        root = root.absolute()
        repository = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), root)
        here = cls(repository)
        for part in root.relative_to(repository).parts:
            here = here.inside(part)
        return here

    def inside(self, name: str) -> GitIgnore:
        """Return the patterns in force in the folder `name` of this one."""
        return GitIgnore(self.folder / name, self._specs)

    def ignores(self, name: str, *, is_folder: bool) -> bool:
        """Return whether git ignores the entry `name` of this folder: the deepest file with a match decides."""
        path = self.folder / name
        for folder, spec in reversed(self._specs):
            relative = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
            if (ignored := spec.check_file(relative).include) is not None:
                return ignored
        return False


def _spec(folder: Path) -> pathspec.GitIgnoreSpec | None:
    try:
        lines = (folder / ".gitignore").read_text("utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    return pathspec.GitIgnoreSpec.from_lines(lines)
