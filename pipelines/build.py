"""Build an index: read, cut, embed, fit, encode, write; resumable after every shard.

The work leaves its traces in ``<index>/build/`` until the manifest names the finished shards:

1. ``passages-….arrow``: what was read and cut (only when a model embeds)
2. ``sample.f32``: embeddings of the sample that the compressor is fitted on; they are not computed again
3. ``progress.json``: the arguments, the fitted compressor, and every finished shard

An old index in the same folder stays what readers see until the commit.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ragq.checks import check_int, check_metric, normalized
from ragq.compressors import Compressor, from_spec
from ragq.embedders import DEFAULT_MODEL, Embedder, load_embedder
from ragq.errors import InvalidArgumentError
from ragq.manifest import MANIFEST, FileEntry, Manifest, read_file, read_shard
from ragq.pipelines.codecs import is_codec_folder, load_codec, open_codec, untrained
from ragq.pipelines.engines import Engine, make_engine
from ragq.pipelines.feeds import Feed, ReadyFeed, TextFeed
from ragq.pipelines.fitting import SHARD_ROWS, full_shard, learns, save_compressor
from ragq.pipelines.progress import Progress, silent
from ragq.pipelines.readers import open_embeddings, read
from ragq.pipelines.scratch import Scratch
from ragq.pipelines.spool import TABLE, Spool
from ragq.remote import address, locate
from ragq.storage import TEMPORARY, fsync_folder, storage_errors
from ragq.token_embedders import TokenEmbedder, load_token_embedder
from ragq.transaction import BUILD, Transaction

__all__ = ["SAMPLE", "BuildReport", "Recipe", "build_index"]

SAMPLE = 32_768
SAMPLED = "sample.f32"
OWN_NAMES = ("write.lock", "write.owner", BUILD, "shards", "deletes", "structures", "retired")


@dataclass(frozen=True)
class Recipe:
    """How to build an index; equal recipes over the same source give the same shards, byte for byte.

    Attributes
    ----------
    codec : str
        Compressor spec; empty when `budget` chooses it.
    budget : int or None
        Code bytes a vector; the best codec within them is chosen on the sample.
    metric : str
        ``ip``, ``cosine`` or ``l2``.
    chunk_tokens, chunk_overlap : int or None
        Tokens of a passage and of what neighbours share; None for the model's own. ``chunk_tokens=0`` keeps documents
        whole.
    sample : int
        Most embeddings that the compressor is fitted on.
    shard_rows : int
        Passages a shard.
    seed : int
    multi_vector : bool
        Index all token embeddings of a passage.
    first_stage : str or None
        Spec of what finds candidates in a multi-vector index.
    """

    codec: str = "FP8"
    budget: int | None = None
    metric: str = "cosine"
    chunk_tokens: int | None = None
    chunk_overlap: int | None = None
    sample: int = SAMPLE
    shard_rows: int = SHARD_ROWS
    seed: int = 0
    multi_vector: bool = False
    first_stage: str | None = None

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_int(self.sample, "sample", 1)
        check_int(self.shard_rows, "shard_rows", 1)
        check_int(self.seed, "seed", 0)
        if self.budget is not None:
            check_int(self.budget, "budget", 1)
        if self.first_stage is not None and not self.multi_vector:
            raise InvalidArgumentError("'first_stage' belongs to a multi-vector index: multi_vector=True.")
        if self.multi_vector and (self.budget is not None or self.metric == "l2"):
            wrong = f"a budget of {self.budget}" if self.budget is not None else "the metric l2"
            raise InvalidArgumentError(
                f"A multi-vector index takes 'codec' and 'first_stage', and scores by inner products. Got {wrong}."
            )

    def compressor(self) -> Any:
        """Return the unfitted compressor that the specs name."""
        if not self.multi_vector:
            return open_codec(self.codec)
        from ragq.compressors.multivector import MultiVectorCompressor

        return MultiVectorCompressor.from_spec(self.codec, self.first_stage)


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes
    ----------
    documents, passages : int
        In the index.
    duplicates : int
        Documents that a later one with the same id replaced.
    skipped : dict of str to int
        Records that were left out, by reason.
    spec : str
        The compressor.
    choice : str
        Why this compressor, when a budget chose it; else empty.
    notes : tuple of str
        What is to be said once: ids that were numbers, a missing extra, a codec that is not trained.
    """

    documents: int
    passages: int
    duplicates: int
    skipped: dict[str, int]
    spec: str
    choice: str = ""
    notes: tuple[str, ...] = ()


def build_index(
    source: Any,
    out: str | Path,
    recipe: Recipe,
    *,
    model: Any = None,
    embeddings: Any = None,
    ids: Any = None,
    resume: bool = False,
    overwrite: bool = True,
    lock_timeout: float = 0.0,
    strict: bool = False,
    progress: Progress = silent,
    model_options: dict[str, Any] | None = None,
    engine: Engine | None = None,
) -> tuple[BuildReport, Embedder | TokenEmbedder | None]:
    """Build the index at `out`; see `ragq.build` for the arguments."""
    folder, engine = locate(out), engine or make_engine("local")
    if source is None and embeddings is None:
        raise InvalidArgumentError("There is nothing to index: give a source, or embeddings with ids.")
    if recipe.codec:
        recipe.compressor()
    if source is not None:
        read(source)  # raises when there is no such source, before a model is loaded and anything is made
    embedder: Any = None
    if embeddings is None or model is not None:
        load = load_token_embedder if recipe.multi_vector else load_embedder
        embedder = load(model if model is not None else DEFAULT_MODEL, **(model_options or {}))
    fresh = prepare_folder(folder)
    arguments = {
        "recipe": asdict(recipe),
        "source": identity(source),
        "embeddings": identity(embeddings),
        "ids": identity(ids),
        "model": embedder.fingerprint if embedder else None,
    }
    placeholder = Manifest("", "", 1, recipe.metric, recipe.metric == "cosine", FileEntry("", 0, ""))
    with Transaction(folder, placeholder, timeout=lock_timeout) as transaction:
        if transaction.generation > 1 and not overwrite:
            raise InvalidArgumentError(
                f"{address(folder)} is an index already. Add to it, or build with overwrite=True."
            )
        scratch = Scratch(folder, arguments, transaction.generation, resume)
        try:
            scratch.start()
            build = build_class(recipe)(transaction, scratch, recipe, embedder, source, strict, progress, engine)
            build.model, build.model_options = model, model_options or {}
            return build.run(embeddings, ids), embedder
        except BaseException:  # still under the lock: nobody else's work is here
            scratch.discard_if_empty()
            if fresh and not (folder / MANIFEST).exists() and not scratch.folder.exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            engine.close()


def build_class(recipe: Recipe) -> type[Build]:
    """Return what does the steps of a build."""
    if recipe.multi_vector:
        from ragq.pipelines.token_build import TokenBuild

        return TokenBuild
    return Build


def identity(value: Any) -> Any:
    """Return JSON that tells whether an argument is that of an interrupted run: of a file its name, size and time."""
    if not isinstance(value, (str, Path)):
        return None if value is None else type(value).__name__
    path = Path(value).expanduser()
    if not path.is_file():
        return str(value)
    stat = path.stat()
    return [str(value), stat.st_size, stat.st_mtime_ns]


def prepare_folder(folder: Path) -> bool:
    """Make the index folder, or check that it may be written over; return whether it is new.

    A folder that only happens to hold a ``build/`` is not ours: what we began holds the writer's lock as well.
    """
    with storage_errors(folder, "create"):
        if folder.exists() and not folder.is_dir():
            raise InvalidArgumentError(f"{folder} is a file; an index is a folder. Choose another place with -o.")
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        begun = "write.lock" in names and all(
            name in OWN_NAMES or name.startswith(("compressor-", TEMPORARY)) for name in names
        )
        if names and MANIFEST not in names and not begun:
            raise InvalidArgumentError(f"{folder} is not an index and not empty. Choose another place with -o.")
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folder(folder.absolute().parent)
    return MANIFEST not in names


class Build:
    """One run: the steps in order, each left out when an interrupted run has done it."""

    def __init__(
        self,
        transaction: Transaction,
        scratch: Scratch,
        recipe: Recipe,
        embedder: Any,
        source: Any,
        strict: bool,
        progress: Progress,
        engine: Engine,
    ) -> None:
        self.engine = engine
        self.model: Any = None  # what the embedder was loaded from, for workers that load it again
        self.model_options: dict[str, Any] = {}
        self.ready: tuple[Any, Any, Any, int] | None = None  # what the ready feed was opened from
        self.transaction, self.scratch, self.recipe = transaction, scratch, recipe
        self.embedder, self.source, self.strict, self.progress = embedder, source, strict, progress
        self.normalize = recipe.metric == "cosine"

    def run(self, embeddings: Any, ids: Any) -> BuildReport:
        """Do it all and commit."""
        shard_rows = self.rows_per_shard(embeddings)
        feed = self.text_feed(shard_rows) if embeddings is None else self.ready_feed(embeddings, ids, shard_rows)
        if feed.rows == 0:
            raise InvalidArgumentError(
                f"There is nothing to index in {self.scratch.body['arguments']['source']}{self.why()}."
            )
        compressor = self.fitted(feed)
        self.write(feed, compressor)
        _, duplicates = self.transaction.commit(lambda manifest: self.finish(manifest, feed, compressor))
        shutil.rmtree(self.scratch.folder, ignore_errors=True)
        manifest = self.transaction.manifest
        body = self.scratch.body
        return BuildReport(
            manifest.documents,
            manifest.rows,
            duplicates,
            body["skipped"],
            manifest.spec,
            body["choice"],
            tuple(body["notes"]),
        )

    def known_dim(self, embeddings: Any) -> int:
        """Return the dimension that goes in."""
        if embeddings is not None:
            return int(open_embeddings(embeddings).shape[1])
        assert self.embedder is not None
        return self.embedder.dim

    def rows_per_shard(self, embeddings: Any) -> int:
        """Return the rows of a shard: as asked, but no more than its writer may hold in memory."""
        if not self.recipe.codec:
            return self.recipe.shard_rows
        size = open_codec(self.recipe.codec).code_size_at(self.known_dim(embeddings))
        return full_shard(size, self.recipe.shard_rows)

    def why(self) -> str:
        """Say what was skipped, as the end of a sentence."""
        skipped = self.scratch.body["skipped"]
        return f" (skipped: {', '.join(f'{n} {reason}' for reason, n in skipped.items())})" if skipped else ""

    def text_feed(self, shard_rows: int) -> Feed:
        """Read and cut the source, unless that is done, and open what came of it."""
        assert self.embedder is not None
        scratch = self.scratch
        if not (scratch.folder / TABLE).exists():
            reader = read(self.source, strict=self.strict)
            tokens = self.recipe.chunk_tokens if reader.chunked or self.recipe.chunk_tokens else 0
            self.engine.spool(self, reader, tokens, shard_rows)
            scratch.save(skipped=dict(reader.counts.skipped), notes=reader.notes)
        return self.open_text()

    def open_text(self) -> TextFeed:
        """Open what was read and cut."""
        return TextFeed(Spool.open(self.transaction.folder), self.embedder, self.scratch.folder / SAMPLED)

    def ready_feed(self, embeddings: Any, ids: Any, shard_rows: int) -> Feed:
        """Pair the embeddings with their documents."""
        opened = open_embeddings(embeddings, ids)
        if self.embedder is not None and self.embedder.dim != opened.shape[1]:
            raise InvalidArgumentError(
                f"The embeddings have {opened.shape[1]} dimensions, but the model has {self.embedder.dim}; "
                "name the model that made them."
            )
        reader = None if self.source is None else read(self.source, aligned=True)
        self.ready = (embeddings, ids, self.source, shard_rows)
        return ReadyFeed(opened, reader, shard_rows)

    def fitted(self, feed: Feed) -> Compressor:
        """Return the compressor, fitted on a seeded sample; saved before anything is encoded with it."""
        body, folder = self.scratch.body, self.transaction.folder
        if "compressor" not in body and is_codec_folder(self.recipe.codec):
            return self.trained(feed)
        spec = body.get("spec", self.recipe.codec)
        n = min(self.recipe.sample, feed.rows) if self.recipe.budget or learns(from_spec(spec)) else 0
        rows = np.sort(np.random.default_rng(self.recipe.seed).choice(feed.rows, n, replace=False))
        if spec and n and n < from_spec(spec).minimum_rows:
            from_spec(spec).fit(np.zeros((n, feed.dim), np.float32))  # raises the error that says what it needs
        x = self.engine.sample(self, feed, rows)
        if "compressor" in body:
            file = read_file(body["compressor"], "compressor")
            state = safetensors.numpy.load((folder / file.name).read_bytes())
            return from_spec(body["spec"]).load_state(state)
        x = normalized(x) if self.normalize else np.ascontiguousarray(x)
        choice = ""
        if self.recipe.budget is not None:
            from ragq.compressors.suggest import suggest

            suggestion = suggest(x, self.recipe.budget, count=feed.rows, seed=self.recipe.seed)
            spec, choice = suggestion.spec, suggestion.reason
        self.progress("fit", 0, 1)
        compressor = from_spec(spec).fit(x if n else np.zeros((1, feed.dim), np.float32), seed=self.recipe.seed)
        self.progress("fit", 1, 1)
        notes = [*body["notes"], *untrained(compressor)]
        saved = asdict(save_compressor(folder, compressor))
        self.scratch.save(spec=compressor.spec, choice=choice, compressor=saved, notes=notes)
        return compressor

    def trained(self, feed: Feed) -> Compressor:
        """Return the codec of a folder, which needs no sample."""
        compressor = load_codec(self.recipe.codec)
        if compressor.dim != feed.dim:
            raise InvalidArgumentError(
                f"{self.recipe.codec} was trained for {compressor.dim} dimensions. The embeddings have {feed.dim}."
            )
        saved = asdict(save_compressor(self.transaction.folder, compressor))
        self.scratch.save(spec=compressor.spec, choice="", compressor=saved)
        return compressor

    def write(self, feed: Feed, compressor: Compressor) -> None:
        """Write the shards that are not there yet."""
        transaction, done = self.transaction, self.scratch.body["shards"]
        transaction.manifest = replace(transaction.manifest, **self.described(compressor))
        for body in done:
            transaction.add(read_shard(body))
        spans = list(zip([0, *feed.cuts], feed.cuts, strict=False))
        for entry in self.engine.shards(self, feed, compressor, spans[len(done) :], len(done) + 1):
            transaction.add(entry)
            self.scratch.save(shards=[*self.scratch.body["shards"], asdict(entry)])

    def described(self, compressor: Compressor) -> dict[str, Any]:
        """Return the fields of the manifest that the compressor decides."""
        return {"spec": compressor.spec, "layout": str(compressor.layout)}

    def finish(self, manifest: Manifest, feed: Feed, compressor: Compressor) -> Manifest:
        """Fill in what a new manifest says besides its shards."""
        chunking = {"tokens": self.recipe.chunk_tokens, "overlap": self.recipe.chunk_overlap}
        return replace(
            manifest,
            **self.described(compressor),
            dim=feed.dim,
            compressor=read_file(self.scratch.body["compressor"], "compressor"),
            embedder=self.embedder.fingerprint if self.embedder else None,
            chunking=chunking,
        )
