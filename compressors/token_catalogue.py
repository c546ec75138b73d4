"""What multi-vector codecs would cost: the table behind ``ragq codecs --multi-vector``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ragq.checks import check_int
from ragq.compressors.base import MAX_DIM
from ragq.compressors.multivector import OFFSET_BYTES, MultiVectorCompressor
from ragq.compressors.pooling import POOL, PRUNE, sizes
from ragq.errors import InvalidArgumentError

__all__ = ["TokenOffer", "token_catalogue"]

# codec -> first stage; "{6}" is a sixth of the dimensions
MENU = [
    ("F32", ""),
    ("F16", ""),
    ("FP8", ""),
    ("POOL33.3%,FP8", ""),
    ("POOL32,FP8", ""),
    ("POOL33.3%,PLAID1024x2", "CENTROIDS1024"),
    ("POOL33.3%,PQ{6}x8", "MUVERA(20,4,8),PQ320x8"),
    ("POOL17,TQ4", "LEMUR640,PQ320x8"),
    ("POOL32,PQ{6}x8", "CENTROIDS1024"),
    ("POOL9%,PQ{6}x8", "CENTROIDS1024"),
    ("POOL9%,PQ{6}x8", "LEMUR640,PQ160x8"),
    ("POOL8,PQ{6}x8", "CENTROIDS1024"),
    ("PRUNE33.3%,PQ{6}x8", "CENTROIDS1024"),
    ("POOL33.3%,HPC256", "CENTROIDS1024"),
]


@dataclass(frozen=True)
class TokenOffer:
    """A codec of token embeddings with a first stage, and their price.

    Attributes
    ----------
    codec : str
    first_stage : str or None
    vectors : int
        That stay of a document.
    document_bytes : int
        Vectors times their bytes, the first-stage code, and an offset; a fitted state comes on top, once.
    ratio : float
        How many times smaller than all tokens as float32.
    """

    codec: str
    first_stage: str | None
    vectors: int
    document_bytes: int
    ratio: float


def token_catalogue(dim: int, tokens: int, budget: int | None = None) -> list[TokenOffer]:
    """Return multi-vector codecs worth knowing, the largest first.

    Parameters
    ----------
    dim : int
        Dimensions of a token embedding.
    tokens : int
        Of a document.
    budget : int, optional
        Leave out what takes more bytes a document.
    """
    check_int(dim, "dim", 1, MAX_DIM)
    check_int(tokens, "tokens", 1)
    offers = [offer for codec, first in MENU if (offer := price(codec, first, dim, tokens))]
    fitting = [offer for offer in offers if budget is None or offer.document_bytes <= budget]
    return sorted(fitting, key=lambda offer: -offer.document_bytes)


def price(codec: str, first: str, dim: int, tokens: int) -> TokenOffer | None:
    """Price a codec; None where it cannot work with these dimensions."""
    if "{6}" in codec and dim % 6 and dim % 8:
        return None
    parts = dim // 6 if dim % 6 == 0 else dim // 8
    try:
        compressor = MultiVectorCompressor.from_spec(codec.replace("{6}", str(parts)), first or None)
        size, first_size = compressor.code_sizes_at(dim)
    except InvalidArgumentError:
        return None
    kept = np.array([tokens], np.int64)
    for pooling in compressor.pooling:
        if isinstance(pooling, (POOL, PRUNE)):
            kept = sizes(pooling.size, kept)
    vectors = int(kept[0])
    total = vectors * size + first_size + OFFSET_BYTES
    return TokenOffer(compressor.codec, compressor.first_stage, vectors, total, 4 * dim * tokens / total)
