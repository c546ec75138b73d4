"""The traces of an unfinished build, which ``--resume`` goes on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ragq.errors import InvalidArgumentError
from ragq.manifest import read_shard
from ragq.storage import storage_errors, write_bytes
from ragq.transaction import BUILD

__all__ = ["JOURNAL", "Scratch"]

JOURNAL = "progress.json"


class Scratch:
    """The traces of an unfinished build."""

    def __init__(self, folder: Path, arguments: dict[str, Any], resume: bool) -> None:
        self.folder = folder / BUILD
        self.path = self.folder / JOURNAL
        self.found = resume and self.path.exists()
        if self.found:
            with storage_errors(self.path, "read"):
                self.body = json.loads(self.path.read_bytes())
            self._check(arguments)
        else:
            self.body = {"arguments": arguments, "shards": [], "skipped": {}, "choice": "", "notes": []}

    def _check(self, arguments: dict[str, Any]) -> None:
        old = self.body["arguments"]
        for name in sorted({*old, *arguments}):
            if old.get(name) != arguments.get(name):
                raise InvalidArgumentError(
                    f"The interrupted run had {name} = {old.get(name)!r}; this one has {arguments.get(name)!r}. "
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

    @property
    def files(self) -> set[str]:
        """Files outside of the scratch folder that an unfinished build needs."""
        names = {BUILD}
        if "compressor" in self.body:
            names.add(self.body["compressor"]["name"])
        for body in self.body["shards"]:
            names |= {file.name for file in read_shard(body).files}
        return names
