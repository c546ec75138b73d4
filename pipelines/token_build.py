"""Build a multi-vector index: the steps of `Build`, where a passage has as many embeddings as it has tokens."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors.numpy

from ragq.compressors import Chain
from ragq.compressors.multivector import MultiVectorCompressor
from ragq.errors import InvalidArgumentError
from ragq.manifest import MULTI_VECTOR_FORMAT, Manifest, read_file
from ragq.pipelines.build import SAMPLED, Build
from ragq.pipelines.engines.local import LocalEngine
from ragq.pipelines.feeds import Feed
from ragq.pipelines.fitting import SHARD_BYTES, full_shard, save_compressor
from ragq.pipelines.readers import read
from ragq.pipelines.readers.tokens import open_tokens
from ragq.pipelines.spool import Spool
from ragq.pipelines.token_feeds import ReadyTokenFeed, TokenFeed, sampled_passages, tokens_of
from ragq.pipelines.token_view import multi_vector_entry
from ragq.token_shards import TokenShard
from ragq.tokens import TokenEmbeddings

__all__ = ["TokenBuild", "merged_cuts"]

UNFITTED_SAMPLE = 64  # passages that tell the size of codes, where nothing is learned
MEASURED = 256  # passages whose codes tell how many fit into a shard


def merged_cuts(cuts: list[int], rows: int) -> list[int]:
    """Leave cuts out, so that spans grow to `rows` but not beyond; a span that is longer stays."""
    kept: list[int] = []
    for cut, following in zip(cuts, [*cuts[1:], None], strict=True):
        if following is None or following - (kept[-1] if kept else 0) > rows:
            kept.append(cut)
    return kept


class TokenBuild(Build):
    """One run; see `Build`.

    How many vectors a passage keeps is known when the compressor is fitted, and only then how many passages fill a
    shard. So passages are cut finely at first, and the cuts are thinned out after that.
    """

    def check(self) -> None:
        """Raise `InvalidArgumentError` when the engine cannot do it."""
        if not isinstance(self.engine, LocalEngine):
            raise InvalidArgumentError("A multi-vector index is built by engine='local'. Leave 'engine' out.")

    def rows_per_shard(self, embeddings: Any) -> int:
        """Return the passages between two cuts: no more than a shard's writer may hold when none is merged."""
        self.check()
        if self.embedder is None or embeddings is not None:
            return self.recipe.shard_rows
        compressor: MultiVectorCompressor = self.recipe.compressor()
        vector, first = compressor.code_sizes_at(self.embedder.dim)
        return full_shard(vector * tokens_of(self.embedder) + first, self.recipe.shard_rows)

    def open_text(self) -> TokenFeed:
        """Open what was read and cut."""
        return TokenFeed(Spool.open(self.transaction.folder), self.embedder, self.scratch.folder / SAMPLED)

    def ready_feed(self, embeddings: Any, ids: Any, shard_rows: int) -> Feed:
        """Pair the token embeddings with their documents."""
        opened = open_tokens(embeddings, ids)
        if self.embedder is not None and self.embedder.dim != opened.dim:
            raise InvalidArgumentError(
                f"The token embeddings have {opened.dim} dimensions, but the model has {self.embedder.dim}; "
                "name the model that made them."
            )
        reader = None if self.source is None else read(self.source, aligned=True)
        sizes = self.recipe.compressor().code_sizes_at(opened.dim)
        return ReadyTokenFeed(opened, reader, shard_rows, sizes, SHARD_BYTES)

    def fitted(self, feed: Any) -> Any:
        """Return the compressor, fitted on a seeded sample of passages; saved before anything is encoded with it."""
        body, folder = self.scratch.body, self.transaction.folder
        compressor: MultiVectorCompressor = self.recipe.compressor()
        most = min(self.recipe.sample, feed.rows) if learns(compressor) else min(UNFITTED_SAMPLE, feed.rows)
        n = sampled_passages(feed.bytes_each, most)
        needed = int(getattr(compressor.first, "minimum_documents", 1))
        if n < needed:
            raise InvalidArgumentError(
                f"The first stage {compressor.first_stage} needs at least {needed} passages to fit. Got {n}. "
                "Add documents, or leave the first stage out: every passage is then scored by MaxSim."
            )
        rows = np.sort(np.random.default_rng(self.recipe.seed).choice(feed.rows, n, replace=False))
        tokens: TokenEmbeddings = self.engine.sample(self, feed, rows)  # type: ignore[assignment]
        if "compressor" in body:
            file = read_file(body["compressor"], "compressor")
            compressor.load_state(safetensors.numpy.load((folder / file.name).read_bytes()))
        else:
            tokens = tokens.normalized() if self.normalize else tokens
            self.progress("fit", 0, 1)
            compressor.fit(tokens, seed=self.recipe.seed)
            self.progress("fit", 1, 1)
            codes = compressor.encode(tokens[:MEASURED])
            size = full_shard(max(1, round(codes.nbytes / max(1, len(codes)))), self.recipe.shard_rows)
            saved = asdict(save_compressor(folder, compressor))
            self.scratch.save(spec=compressor.codec, choice="", rows=size, compressor=saved)
        feed.cuts = merged_cuts(feed.cuts, body["rows"])
        return compressor

    def described(self, compressor: Any) -> dict[str, Any]:
        """Return the fields of the manifest that the compressor decides."""
        return {
            "spec": compressor.codec,
            "layout": str(compressor.token_codec.layout),
            "multi_vector": multi_vector_entry(compressor),
            "format": MULTI_VECTOR_FORMAT,
        }

    def finish(self, manifest: Manifest, feed: Feed, compressor: Any) -> Manifest:
        """Fill in what a new manifest says besides its shards, and note passages that no search will find."""
        shards = [self.transaction.shard(entry) for entry in manifest.shards]
        empty = sum(int((np.diff(s.offsets) == 0).sum()) for s in shards if isinstance(s, TokenShard))
        if empty:
            note = f"{empty:,} passages have no vectors: they are kept, but MaxSim does not find them."
            self.scratch.body["notes"] = [*self.scratch.body["notes"], note]
        return super().finish(manifest, feed, compressor)


def learns(compressor: MultiVectorCompressor) -> bool:
    """Tell whether fitting looks at the data."""
    codecs = [compressor.token_codec, *([] if compressor.first_codec is None else [compressor.first_codec])]
    stages = [s for codec in codecs for s in (codec.stages if isinstance(codec, Chain) else [codec])]
    return any(stage.state_names for stage in [*compressor.pooling, *stages])
