"""The manifest: one JSON file that names every other file of an index, and the only one that ever changes.

A commit writes a new manifest over the old one in one rename; what it names is the index. Its ``checksum`` covers the
rest of the JSON, so that a damaged manifest is told from a new one.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import xxhash

from ragq.checks import METRICS
from ragq.errors import CorruptIndexError, IncompatibleIndexError

__all__ = [
    "FORMAT",
    "MANIFEST",
    "MULTI_VECTOR_FORMAT",
    "Deletes",
    "FileEntry",
    "Manifest",
    "MultiVectorEntry",
    "ShardEntry",
    "StructureEntry",
    "TokensEntry",
]

MANIFEST = "manifest.json"
FORMAT = 1
MULTI_VECTOR_FORMAT = 2  # of an index with several vectors a passage, which readers of format 1 cannot know
READABLE = range(1, 3)  # format versions that this release reads
MAXIMUM_BYTES = 256 << 20
MAXIMUM_ROWS = 1 << 32


@dataclass(frozen=True)
class FileEntry:
    """A file of the index: its name below the folder, bytes, and xxh3-128."""

    name: str
    size: int
    xxh3: str


@dataclass(frozen=True)
class Deletes:
    """The delete bitset of a shard: its file, and how many rows and documents it takes out."""

    file: FileEntry
    rows: int
    documents: int


@dataclass(frozen=True)
class TokensEntry:
    """What a shard of a multi-vector index has besides: its `codes` hold as many vectors a passage as there are.

    Attributes
    ----------
    rows : int
        Vectors of all passages.
    offsets : FileEntry
        Where each passage's vectors begin.
    first : FileEntry or None
        Codes of the first stage, one a passage.
    """

    rows: int
    offsets: FileEntry
    first: FileEntry | None = None


@dataclass(frozen=True)
class ShardEntry:
    """One immutable shard: rows are passages."""

    id: str
    rows: int
    documents: int
    codes: FileEntry
    docs: FileEntry
    ids: FileEntry
    deletes: Deletes | None = None
    tokens: TokensEntry | None = None

    @property
    def files(self) -> list[FileEntry]:
        """Every file that the shard needs."""
        files = [self.codes, self.docs, self.ids] + ([self.deletes.file] if self.deletes else [])
        return files if self.tokens is None else files + [f for f in (self.tokens.offsets, self.tokens.first) if f]

    @property
    def live_rows(self) -> int:
        """Rows that are not deleted."""
        return self.rows - (self.deletes.rows if self.deletes else 0)

    @property
    def live_documents(self) -> int:
        """Documents that are not deleted."""
        return self.documents - (self.deletes.documents if self.deletes else 0)


@dataclass(frozen=True)
class StructureEntry:
    """What lets a search look at a part of the rows only, see `ragq.retrievers.structures`.

    Attributes
    ----------
    kind : str
        ``ivf``, ``hnsw``, ``sm2graph`` or ``flat``.
    parameters : dict
        JSON values: what it was built with and what was tuned.
    shards : tuple of str
        Ids of the shards that it covers, in the order of its rows. Those that the index no longer has are gone.
    rows : tuple of int
        Rows of each, deleted ones included.
    files : dict of str to FileEntry
    """

    kind: str
    parameters: dict[str, Any]
    shards: tuple[str, ...]
    rows: tuple[int, ...]
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class MultiVectorEntry:
    """What makes an index a multi-vector one: `Manifest.spec` and `layout` are then those of each vector.

    Attributes
    ----------
    first_stage : str or None
        Spec of the first stage, which finds candidates.
    first_layout : str or None
        How its codes lie in the shards.
    """

    first_stage: str | None = None
    first_layout: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What an index is at one generation.

    Attributes
    ----------
    spec : str
        The compressor's spec.
    layout : str
        How codes lie in the shards, see `ragq.layouts.Layout`.
    dim : int
        Dimensions of the embeddings that go in.
    metric : {'ip', 'cosine', 'l2'}
    normalize : bool
        Whether embeddings and queries are scaled to unit length before they are encoded and scored.
    embedder : dict or None
        Fingerprint of what embeds, prompts included; None when only ready embeddings come in.
    chunking : dict
        How documents are cut into passages.
    compressor : FileEntry or None
        The fitted state.
    shards : tuple of ShardEntry
        In insertion order.
    generation : int
        Grows by one a commit.
    structure : StructureEntry or None
        What searches use instead of scanning every row.
    multi_vector : MultiVectorEntry or None
        None for an index of one vector a passage.
    """

    spec: str
    layout: str
    dim: int
    metric: str
    normalize: bool
    compressor: FileEntry
    embedder: dict[str, Any] | None = None
    chunking: dict[str, Any] = field(default_factory=dict)
    shards: tuple[ShardEntry, ...] = ()
    generation: int = 1
    format: int = FORMAT
    structure: StructureEntry | None = None
    multi_vector: MultiVectorEntry | None = None

    @property
    def files(self) -> list[FileEntry]:
        """Every file that the index needs, the manifest apart."""
        structure = self.structure.files.values() if self.structure else ()
        return [self.compressor, *structure, *(file for shard in self.shards for file in shard.files)]

    @property
    def rows(self) -> int:
        """Live passages."""
        return sum(shard.live_rows for shard in self.shards)

    @property
    def documents(self) -> int:
        """Live documents."""
        return sum(shard.live_documents for shard in self.shards)

    def next(self, **changes: Any) -> Manifest:
        """Return the next generation with some fields changed."""
        return replace(self, generation=self.generation + 1, **changes)

    def dump(self) -> bytes:
        """Return the JSON text, checksum included."""
        body = asdict(self)
        optional = [(body, "structure"), (body, "multi_vector"), *((shard, "tokens") for shard in body["shards"])]
        for part, name in optional:  # not written where they are None, as by releases that had none of them
            if part[name] is None:
                del part[name]
        body["checksum"] = checksum(body)
        return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def load(cls, path: Path, data: bytes) -> Manifest:
        """Parse and check a manifest.

        Raises
        ------
        CorruptIndexError
            Not JSON, a wrong checksum, or a field that is missing or not of its kind.
        IncompatibleIndexError
            Written by a newer format.
        """
        try:
            if len(data) > MAXIMUM_BYTES:
                raise ValueError(f"{len(data)} bytes are more than the {MAXIMUM_BYTES} that a manifest may have")
            body = json.loads(data)
            if not isinstance(body, dict):
                raise ValueError("not a JSON object")
            version = body.get("format")
            if isinstance(version, int) and version not in READABLE:
                raise IncompatibleIndexError(
                    f"{path} has format {version}; this ragq reads {READABLE[0]} to {READABLE[-1]}. "
                    "Update ragq, or index the documents again."
                )
            if body.pop("checksum", None) != checksum(body):
                raise ValueError("the checksum does not match")
            return read_manifest(body)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CorruptIndexError(f"{path} is not a manifest of ragq: {error}.") from None


def checksum(body: dict[str, Any]) -> str:
    """Return the xxh3-128 of the canonical JSON of everything but the checksum."""
    return xxhash.xxh3_128_hexdigest(
        json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )


def want(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    """Return `value` when it is of `kind`; JSON integers must also be in range."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"'{name}' is {value!r}")
    if isinstance(value, int) and not 0 <= value < 1 << 63:
        raise ValueError(f"'{name}' is {value}")
    return value


def only(body: Any, cls: type, name: str) -> dict[str, Any]:
    """Return a JSON object that has exactly the fields of a dataclass."""
    names = {f.name for f in fields(cls)}
    if set(want(body, dict, name)) != names:
        raise ValueError(f"'{name}' must have the fields {sorted(names)}")
    return body


def read_file(body: Any, name: str) -> FileEntry:
    """Read a `FileEntry`."""
    only(body, FileEntry, name)
    if not re.fullmatch(r"[0-9a-f]{32}", want(body["xxh3"], str, name)):
        raise ValueError(f"'{name}' has no xxh3-128")
    return FileEntry(want(body["name"], str, name), want(body["size"], int, name), body["xxh3"])


def read_shard(body: Any) -> ShardEntry:
    """Read a `ShardEntry` and check that its counts can be."""
    body = {"tokens": None} | want(body, dict, "shard")
    only(body, ShardEntry, "shard")
    rows, documents = want(body["rows"], int, "rows"), want(body["documents"], int, "documents")
    if not documents <= rows < MAXIMUM_ROWS:
        raise ValueError(f"a shard of {rows} rows holds {documents} documents")
    deletes = None
    if body["deletes"] is not None:
        gone = only(body["deletes"], Deletes, "deletes")
        deletes = Deletes(
            read_file(gone["file"], "deletes"),
            want(gone["rows"], int, "rows"),
            want(gone["documents"], int, "documents"),
        )
        if deletes.rows > rows or deletes.documents > documents:
            raise ValueError("more rows are deleted than there are")
    files = {name: read_file(body[name], name) for name in ("codes", "docs", "ids")}
    tokens = None if body["tokens"] is None else read_tokens(body["tokens"])
    return ShardEntry(want(body["id"], str, "id"), rows, documents, deletes=deletes, tokens=tokens, **files)


def read_tokens(body: Any) -> TokensEntry:
    """Read a `TokensEntry`."""
    only(body, TokensEntry, "tokens")
    rows = want(body["rows"], int, "rows")
    if rows >= MAXIMUM_ROWS:
        raise ValueError(f"a shard holds {rows} vectors")
    first = None if body["first"] is None else read_file(body["first"], "first")
    return TokensEntry(rows, read_file(body["offsets"], "offsets"), first)


def read_multi_vector(body: Any, shards: tuple[ShardEntry, ...]) -> MultiVectorEntry | None:
    """Read a `MultiVectorEntry` and check that the shards have what it says."""
    entry = None
    if body is not None:
        only(body, MultiVectorEntry, "multi_vector")
        stage, layout = (body[name] and want(body[name], str, name) for name in ("first_stage", "first_layout"))
        if bool(stage) != bool(layout):
            raise ValueError("a first stage has no layout")
        entry = MultiVectorEntry(stage or None, layout or None)
    for shard in shards:
        if (shard.tokens is None) != (entry is None):
            raise ValueError(f"the shard {shard.id} has {'no' if entry else 'several'} vectors a passage")
        if entry and shard.tokens and (shard.tokens.first is None) != (entry.first_stage is None):
            raise ValueError(f"the shard {shard.id} does not fit the first stage")
    return entry


def read_structure(body: Any) -> StructureEntry:
    """Read a `StructureEntry`."""
    only(body, StructureEntry, "structure")
    shards = tuple(want(name, str, "shards") for name in want(body["shards"], list, "shards"))
    rows = tuple(want(n, int, "rows") for n in want(body["rows"], list, "rows"))
    if len(set(shards)) != len(shards) or len(rows) != len(shards) or sum(rows) >= MAXIMUM_ROWS:
        raise ValueError("'structure' does not cover shards, each with its rows")
    files = {name: read_file(file, name) for name, file in want(body["files"], dict, "files").items()}
    parameters = want(body["parameters"], dict, "parameters")
    return StructureEntry(want(body["kind"], str, "kind"), parameters, shards, rows, files)


def read_manifest(body: dict[str, Any]) -> Manifest:
    """Read the whole; raise `ValueError` on the first thing that is wrong."""
    body = {"structure": None, "multi_vector": None} | body  # written only when there is one
    only(body, Manifest, "manifest")
    if body["metric"] not in METRICS:
        raise ValueError(f"'metric' is {body['metric']!r}")
    if body["embedder"] is not None:
        want(body["embedder"], dict, "embedder")
    if not 1 <= want(body["dim"], int, "dim") <= 1 << 20:
        raise ValueError(f"'dim' is {body['dim']}")
    shards = tuple(read_shard(shard) for shard in want(body["shards"], list, "shards"))
    if len({shard.id for shard in shards}) != len(shards):
        raise ValueError("a shard is named twice")
    return Manifest(
        spec=want(body["spec"], str, "spec"),
        layout=want(body["layout"], str, "layout"),
        dim=body["dim"],
        metric=body["metric"],
        normalize=want(body["normalize"], bool, "normalize"),
        compressor=read_file(body["compressor"], "compressor"),
        embedder=body["embedder"],
        chunking=want(body["chunking"], dict, "chunking"),
        shards=shards,
        generation=want(body["generation"], int, "generation"),
        format=want(body["format"], int, "format"),
        structure=None if body["structure"] is None else read_structure(body["structure"]),
        multi_vector=read_multi_vector(body["multi_vector"], shards),
    )
