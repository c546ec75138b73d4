"""The traces of an unfinished build, which ``--resume`` goes on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ragq.errors import InvalidArgumentError
from ragq.storage import storage_errors, write_bytes
from ragq.transaction import BUILD, JOURNAL

__all__ = ["Scratch"]


class Scratch:
    """The traces of an unfinished build."""

    def __init__(self, folder: Path, arguments: dict[str, Any], generation: int, resume: bool) -> None:
        self.folder = folder / BUILD
        self.path = self.folder / JOURNAL
        self.found = resume and self.path.exists()
        self.body: dict[str, Any] = {"arguments": arguments, "generation": generation, "shards": []}
        self.body |= {"skipped": {}, "choice": "", "notes": []}
        if self.found:
            with storage_errors(self.path, "read"):
                body = json.loads(self.path.read_bytes())
            self._check(body)
            self.body = body

    def _check(self, body: dict[str, Any]) -> None:
        if body["generation"] != self.body["generation"]:
            raise InvalidArgumentError(
                f"{self.folder.parent} has changed since the interrupted run. Start anew without --resume."
            )
        old, new = body["arguments"], self.body["arguments"]
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                raise InvalidArgumentError(
                    f"The interrupted run had {name} = {old.get(name)!r}; this one has {new.get(name)!r}. "
                    "Give the same arguments, or start anew without --resume."
                )

    def start(self) -> None:
        """Throw away what is there, unless this run goes on with it."""
        with storage_errors(self.folder, "write to"):
            if not self.found:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)
        self.save()

    def save(self, **changes: Any) -> None:
        """Add to the journal, durably."""
        self.body.update(changes)
        write_bytes(self.path, json.dumps(self.body, ensure_ascii=False).encode())

    def discard_if_empty(self) -> None:
        """Remove the traces of a run that failed before it had anything worth going on with."""
        if not self.body["shards"] and not (self.folder / "passages.json").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
