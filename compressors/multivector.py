"""Multi-vector codecs: what becomes of a document's token embeddings.

Two specs describe one. The codec is stages that choose or merge the vectors of each document, then any codec of single
vectors for what is left: ``POOL32,PQ32x8``. The first stage, which finds candidates, is an encoding of whole documents
and a codec for it: ``MUVERA(20,4,8),PQ256x8``; it sees all tokens, before any are merged.

A score is MaxSim, ``sum over the query's tokens of the best inner product with a vector of the document``, queries in
float32 and documents decoded.

Bytes per document: vectors kept times the codec's bytes, the first stage's bytes, and 4 for an offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ragq.compressors.base import Compressor, Stage
from ragq.compressors.centroids import CENTROIDS
from ragq.compressors.lemur import LEMUR
from ragq.compressors.muvera import MUVERA
from ragq.compressors.pooling import CARVE, MAP, POOL, PRUNE, Pooling
from ragq.compressors.scorers import Scorer
from ragq.compressors.spec import from_spec, read_stage, split_stages
from ragq.compressors.token_codecs import HPC, PLAID
from ragq.compressors.tokens import TokenStage, check_tokens
from ragq.errors import CorruptIndexError, InvalidArgumentError, NotFittedError
from ragq.token_shards import OFFSET_BYTES
from ragq.tokens import MultiVectorCodes, TokenEmbeddings

__all__ = ["OFFSET_BYTES", "EncodedFirst", "FirstStage", "MultiVectorCompressor"]

POOLING = (POOL, PRUNE, CARVE, MAP)
TOKEN_CODECS = (PLAID, HPC)  # beside those of single vectors
State = dict[str, NDArray[Any]]


def leading(text: str, classes: Sequence[type[Stage]]) -> tuple[list[TokenStage], str]:
    """Return the stages of `classes` that a spec begins with, and the rest of the text."""
    stages: list[TokenStage] = []
    try:
        parts = split_stages(text)
    except ValueError:  # from_spec says what is wrong with the parentheses
        return [], text
    for position, part in parts:
        try:
            stage = read_stage(part, classes)
        except InvalidArgumentError as error:
            reason = str(error).rstrip(".")
            raise InvalidArgumentError(
                f"Bad spec {text!r} at position {position + 1}: {part!r} is impossible: {reason}."
            ) from None
        if not isinstance(stage, TokenStage):
            return stages, text[position:]
        stages.append(stage)
    return stages, ""


def token_codec(text: str) -> Compressor:
    """Read the codec of single vectors, or one of `TOKEN_CODECS`."""
    stage = read_stage(text.strip(), TOKEN_CODECS)
    return stage if isinstance(stage, Compressor) else from_spec(text)


def split_state(state: State, names: Sequence[str], owner: object) -> dict[str, State]:
    """Sort arrays named ``<part>.<name>`` by part."""
    parts: dict[str, State] = {name: {} for name in names}
    for key, array in state.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise CorruptIndexError(f"The state of {owner} has the parts {list(parts)}. Got an array named '{key}'.")
        parts[part][name] = array
    return parts


class EncodedFirst:
    """A first stage of fixed-dimensional encodings and a codec of single vectors for them.

    Attributes
    ----------
    encoder : MUVERA or LEMUR
    codec : Compressor
        Of the encodings; a document's first-stage code is a row of it, scanned as any other.
    """

    def __init__(self, encoder: MUVERA | LEMUR, codec: Compressor) -> None:
        self.encoder = encoder
        self.codec = codec

    def __str__(self) -> str:
        return f"{self.encoder},{self.codec}"

    def fit(self, tokens: TokenEmbeddings, *, queries: TokenEmbeddings | None = None, seed: int = 0) -> Self:
        """Draw the encoder and fit the codec on the encodings of a sample."""
        self.encoder.fit(tokens, queries=queries, seed=seed)
        known = None if queries is None else self.encoder.encode_queries(queries)
        self.codec.fit(self.encoder.encode_documents(tokens), queries=known, seed=seed)
        return self

    @property
    def minimum_documents(self) -> int:
        """Documents that `fit` needs."""
        return self.codec.minimum_rows

    def encode(self, tokens: TokenEmbeddings) -> NDArray[np.uint8]:
        """Return the codes of documents, `(n, code_size)`."""
        return self.codec.encode(self.encoder.encode_documents(tokens))

    def scorer(self, queries: TokenEmbeddings) -> Scorer:
        """Prepare queries to score first-stage codes by the inner product."""
        return self.codec.scorer(self.encoder.encode_queries(queries))

    @property
    def state(self) -> State:
        parts = {"encoder": self.encoder.state, "codec": self.codec.state}
        return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    def load_state(self, state: State) -> Self:
        parts = split_state(state, ("encoder", "codec"), self)
        self.encoder.load_state(parts["encoder"])
        self.codec.load_state(parts["codec"])
        if self.codec.dim != self.encoder.dim_out:
            raise CorruptIndexError(
                f"In the state of {self}, the encoder gives {self.encoder.dim_out} dimensions and the codec takes "
                f"{self.codec.dim}."
            )
        return self


FirstStage = EncodedFirst | CENTROIDS
"""What finds candidates: a fixed-size code a document, and a scorer for it."""


def first_from_spec(text: str) -> FirstStage:
    """Read ``MUVERA(...),<codec>`` or ``LEMUR<dims>,<codec>``, without a codec in float32, or ``CENTROIDS<n>``."""
    stages, rest = leading(text, [MUVERA, LEMUR, CENTROIDS])
    if len(stages) == 1:
        if isinstance(stages[0], (MUVERA, LEMUR)):
            return EncodedFirst(stages[0], from_spec(rest or "F32"))
        if isinstance(stages[0], CENTROIDS) and not rest:
            return stages[0]
    raise InvalidArgumentError(
        f"Bad first stage {text!r}: it must be MUVERA or LEMUR and a codec, as in 'LEMUR320,PQ160x8', or "
        "'CENTROIDS1024'."
    )


class MultiVectorCompressor:
    """Token embeddings to codes, and queries prepared for them.

    Parameters
    ----------
    pooling : list of Pooling
        What chooses or merges the vectors of each document, in order.
    token_codec : Compressor
        Of each vector that is left.
    first : FirstStage, optional
        What finds candidates; without one every document is scored by MaxSim.
    """

    def __init__(self, pooling: list[Pooling], token_codec: Compressor, first: FirstStage | None = None) -> None:
        self.pooling = pooling
        self.token_codec = token_codec
        self.first = first
        self.dim_: int | None = None

    @classmethod
    def from_spec(cls, codec: str, first_stage: str | None = None) -> Self:
        """Build the compressor that two specs name; not fitted.

        Parameters
        ----------
        codec : str
            ``POOL32,PQ32x8``; a spec of pooling stages alone keeps the vectors as float32.
        first_stage : str, optional
            ``MUVERA(20,4,8),PQ256x8``.

        Raises
        ------
        InvalidArgumentError
            An unknown or impossible stage.
        """
        if not isinstance(codec, str) or not codec.strip():
            raise InvalidArgumentError(f"A spec must be text such as 'POOL32,PQ32x8'. Got {codec!r}.")
        stages, rest = leading(codec, POOLING)
        pooling = [stage for stage in stages if isinstance(stage, Pooling)]
        first = None if first_stage is None else first_from_spec(first_stage)
        return cls(pooling, token_codec(rest or "F32"), first)

    @property
    def codec(self) -> str:
        """The spec of the vectors' codec."""
        return ",".join(map(str, [*self.pooling, self.token_codec]))

    @property
    def first_stage(self) -> str | None:
        """The spec of the first stage."""
        return None if self.first is None else str(self.first)

    @property
    def first_codec(self) -> Compressor | CENTROIDS | None:
        """What has the layout and the size of the first-stage codes that a shard stores."""
        return self.first.codec if isinstance(self.first, EncodedFirst) else self.first

    def __str__(self) -> str:
        return self.codec if self.first is None else f"{self.codec} after {self.first}"

    def __repr__(self) -> str:
        return f"MultiVectorCompressor.from_spec({self.codec!r}, {self.first_stage!r})"

    @property
    def dim(self) -> int:
        """Dimensions of a token embedding; known after `fit`."""
        if self.dim_ is None:
            raise NotFittedError(f"{self} is not fitted yet. Call fit(tokens) first, or open a saved index.")
        return self.dim_

    @property
    def code_size(self) -> int:
        """Bytes of each vector that is kept."""
        return self.token_codec.code_size

    @property
    def first_code_size(self) -> int:
        """Bytes of a document's first-stage code, 0 without a first stage."""
        return 0 if self.first_codec is None else self.first_codec.code_size

    def code_sizes_at(self, dim: int) -> tuple[int, int]:
        """Return `code_size` and `first_code_size` as embeddings of `dim` dimensions will have them, before any `fit`.

        Raises
        ------
        InvalidArgumentError
            The config cannot work with `dim` dimensions.
        """
        first = self.first
        if isinstance(first, EncodedFirst):
            size = first.codec.code_size_at(first.encoder._at(dim).dim_out)
        else:
            size = 0 if first is None else first.code_size
        return self.token_codec.code_size_at(dim), size

    def bytes_per_document(self, codes: MultiVectorCodes) -> float:
        """Return what a document adds on average: its vectors, its first-stage code and an offset, in bytes."""
        return codes.nbytes / max(1, len(codes)) + OFFSET_BYTES

    def fit(self, tokens: TokenEmbeddings, *, queries: TokenEmbeddings | None = None, seed: int = 0) -> Self:
        """Learn from the token embeddings of a sample of documents.

        Parameters
        ----------
        tokens : TokenEmbeddings
            Of as many documents as the first stage's codec needs rows, with as many vectors as the token codec needs.
        queries : TokenEmbeddings, optional
            Token embeddings of queries, for the codecs that use them.
        seed : int
            The same data and seed give the same state.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            Too few documents or tokens, or queries of another dimension.
        """
        check_tokens(tokens)
        if queries is not None:
            check_tokens(queries, tokens.dim, name="queries")
        self.dim_ = None
        kept, known = tokens, queries
        for stage in self.pooling:
            kept = stage.fit(kept, queries=queries, seed=seed).apply(kept)
            queries = None if queries is None else stage.apply_queries(queries)
        self.token_codec.fit(kept.values, queries=None if queries is None else queries.values, seed=seed)
        if self.first is not None:
            self.first.fit(tokens, queries=known, seed=seed)
        self.dim_ = tokens.dim
        return self

    def pool(self, tokens: TokenEmbeddings) -> TokenEmbeddings:
        """Return the vectors that are kept of each document, not yet coded."""
        check_tokens(tokens, self.dim)
        for stage in self.pooling:
            tokens = stage.apply(tokens)
        return tokens

    def encode(self, tokens: TokenEmbeddings) -> MultiVectorCodes:
        """Compress documents, each by itself.

        Parameters
        ----------
        tokens : TokenEmbeddings
            A document may have no tokens; it then has no codes, and no search returns it.
        """
        kept = self.pool(tokens)
        first = None if self.first is None else self.first.encode(tokens)
        return MultiVectorCodes(self.token_codec.encode(kept.values), kept.offsets, first)

    def decode(self, codes: MultiVectorCodes) -> TokenEmbeddings:
        """Reconstruct the vectors that are kept."""
        return TokenEmbeddings(self.token_codec.decode(codes.codes), codes.offsets)

    def prepare_queries(self, queries: TokenEmbeddings) -> TokenEmbeddings:
        """Return the vectors that stand for queries in MaxSim."""
        check_tokens(queries, self.dim, name="queries")
        for stage in self.pooling:
            queries = stage.apply_queries(queries)
        return queries

    @property
    def _parts(self) -> dict[str, Any]:
        stages = {f"pool{i}": stage for i, stage in enumerate(self.pooling)}
        return {**stages, "tokens": self.token_codec, **({} if self.first is None else {"first": self.first})}

    @property
    def state(self) -> State:
        """The fitted arrays by name."""
        arrays: State = {"dim_": np.array([self.dim], np.int64)}
        for part, owner in self._parts.items():
            arrays |= {f"{part}.{name}": array for name, array in owner.state.items()}
        return arrays

    def load_state(self, state: State) -> Self:
        """Take over arrays that `state` gave.

        Raises
        ------
        CorruptIndexError
            An array is missing, unexpected, or not what the specs make of it; the compressor is then unfitted.
        """
        self.dim_ = None
        arrays = dict(state)
        dim = np.asarray(arrays.pop("dim_", np.zeros(0)))
        if dim.dtype != np.int64 or dim.shape != (1,) or int(dim[0]) < 1:
            raise CorruptIndexError(f"'dim_' of {self} must be one positive int64. Got {dim.dtype} {dim}.")
        parts = split_state(arrays, list(self._parts), self)
        for name, owner in self._parts.items():
            owner.load_state(parts[name])
        first = self.first.encoder if isinstance(self.first, EncodedFirst) else self.first
        for stage in [*self.pooling, self.token_codec, *([] if first is None else [first])]:
            if stage.dim != int(dim[0]):
                raise CorruptIndexError(
                    f"The state of {self} has {int(dim[0])} dimensions, that of {stage} {stage.dim}."
                )
        self.dim_ = int(dim[0])
        return self
