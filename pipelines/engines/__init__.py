"""Engines: where the work of a build is done. They write the same files, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ragq.errors import InvalidArgumentError

if TYPE_CHECKING:
    from ragq.compressors import Compressor
    from ragq.manifest import ShardEntry
    from ragq.pipelines.build import Build
    from ragq.pipelines.feeds import Feed
    from ragq.pipelines.readers import Reader

__all__ = ["ENGINES", "Engine", "make_engine"]

ENGINES = ("local", "ray")


class Engine(Protocol):
    """What a build leaves to its engine; the rest, the commit above all, it does itself."""

    def spool(self, build: Build, reader: Reader, tokens: int | None, shard_rows: int) -> None:
        """Read and cut the source into the scratch files of a `Spool`, and save its table."""

    def sample(self, build: Build, feed: Feed, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of some passages, as `Feed.sample` does."""

    def shards(
        self, build: Build, feed: Feed, compressor: Compressor, spans: Sequence[tuple[int, int]], first: int
    ) -> Iterator[ShardEntry]:
        """Write the shards of spans of passages, numbered from `first`, and yield them in their order."""

    def close(self) -> None:
        """Let go of what the engine holds."""


def make_engine(name: str, **options: Any) -> Engine:
    """Return an engine by its name; nothing is started yet.

    Parameters
    ----------
    name : {'local', 'ray'}
    **options
        ``address`` and ``workers`` of `ragq.pipelines.engines.ray.RayEngine`.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if name == "ray":
        from ragq.pipelines.engines.ray import RayEngine

        return RayEngine(**given)
    if name != "local":
        raise InvalidArgumentError(f"'engine' must be one of {', '.join(ENGINES)}. Got {name!r}.")
    if given:
        raise InvalidArgumentError(f"'{next(iter(given))}' goes with engine='ray' only.")
    from ragq.pipelines.engines.local import LocalEngine

    return LocalEngine()
