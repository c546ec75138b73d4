"""What every codec would cost at a dimension: the table behind ``ragq codecs``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ragq.checks import check_int
from ragq.compressors.base import MAX_DIM, Chain, Transform
from ragq.compressors.registry import stage_classes
from ragq.compressors.spec import from_spec
from ragq.errors import InvalidArgumentError

__all__ = ["Offer", "catalogue"]


@dataclass(frozen=True)
class Offer:
    """A spec and its price.

    Attributes
    ----------
    spec : str
    code_bytes : int
        Bytes that a vector adds; a fitted state, shared by all vectors, comes on top.
    bits_per_dim : float
        The same, divided over the dimensions of the embedding.
    ratio : float
        How many times smaller than float32.
    summary : str
        What the spec's distinguishing stage does, in a line.
    """

    spec: str
    code_bytes: int
    bits_per_dim: float
    ratio: float
    summary: str


def catalogue(dim: int, budget: int | None = None) -> list[Offer]:
    """Return the specs worth knowing at `dim` dimensions, the largest codes first.

    Parameters
    ----------
    dim : int
        Dimensions of the embeddings.
    budget : int, optional
        Leave out what takes more bytes a vector.
    """
    check_int(dim, "dim", 1, MAX_DIM)
    offers = []
    for cls in stage_classes():
        menu = cls.menu or (() if issubclass(cls, Transform) else cls.examples[:1])
        for template in menu:
            if offer := price(template, dim):
                offers.append(offer)
    fitting = [offer for offer in offers if budget is None or offer.code_bytes <= budget]
    return sorted(fitting, key=lambda offer: -offer.code_bytes)


def price(template: str, dim: int) -> Offer | None:
    """Price a spec whose ``{n}`` stand for ``dim / n``; None where that is no integer or the spec cannot work."""
    divisors = [int(number) for number in re.findall(r"\{(\d+)\}", template)]
    if any(dim % divisor for divisor in divisors):
        return None
    spec = re.sub(r"\{(\d+)\}", lambda match: str(dim // int(match[1])), template)
    try:
        compressor = from_spec(spec)
        size = compressor.code_size_at(dim)
    except InvalidArgumentError:
        return None
    stage = compressor.stages[0] if isinstance(compressor, Chain) else compressor
    summary = (type(stage).__doc__ or "").partition("\n")[0].rstrip(".")
    return Offer(str(compressor), size, 8 * size / dim, 4 * dim / size, summary)
