"""The specs that a sweep tries when none is named, and the one that a budget picks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import from_spec
from ragq.compressors.base import Chain, Compressor, Quantizer, Stage, Transform
from ragq.compressors.catalogue import catalogue, price
from ragq.compressors.registry import stage_classes
from ragq.compressors.spec import fields
from ragq.errors import InvalidArgumentError
from ragq.eval.tables import BASELINE

__all__ = ["candidates", "menu", "parse_budgets", "pick"]

BITS = [quarters / 4 for quarters in range(36, 0, -1)]  # a dimension
CODE_BITS = (4, 8)  # what kernels are fast at
AFTER_REDUCTION = "FP8"


def parse_budgets(text: str) -> list[int]:
    """Read ``384,192,96``; raise `InvalidArgumentError` on anything but whole numbers of bytes above 0."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidArgumentError(f"--budget must be bytes a vector such as 384,192,96,48,24. Got '{text}'.")
    return sorted({int(part) for part in parts}, reverse=True)


def menu(dim: int) -> list[str]:
    """Return the specs that ``ragq codecs`` lists at `dim` dimensions, float32 first."""
    return list(dict.fromkeys([BASELINE, *(offer.spec for offer in catalogue(dim))]))


def candidates(dim: int, budgets: Sequence[int]) -> list[str]:
    """Return the specs to try at each budget, float32 first.

    Of every form of every registered codec, the largest code within the budget is taken if it fills three quarters of
    it, unless the codec's own menu ends below the budget. Reductions (PCA, MRL, …) are tried before FP8; the menu's
    specs of that size are tried too. A new codec needs nothing here.

    Parameters
    ----------
    dim : int
    budgets : sequence of int
        Code bytes.
    """
    offered = [[from_spec(spec)] for spec in menu(dim)]
    chosen = {BASELINE: None}
    for budget in budgets:
        for options in [*_forms(dim, budget), *offered]:
            sizes = [(_size(codec, dim), codec) for codec in options]
            fitting = [(size, codec) for size, codec in sizes if 0.75 * budget < size <= budget]
            if fitting:
                chosen[str(max(fitting, key=lambda pair: pair[0])[1])] = None
    return list(chosen)


def _forms(dim: int, budget: int) -> Iterator[list[Compressor]]:
    """Yield, for each form of each codec, the compressors to choose from, the largest numbers first."""
    near = {int(share * budget) - less for share in (0.5, 1, 2) for less in range(9)}
    counts = sorted((n for n in near if n > 0), reverse=True)
    for cls in stage_classes():
        prices = [offer.code_bytes for template in cls.menu if (offer := price(template, dim)) is not None]
        if prices and budget > max(prices):
            continue  # its own menu ends below: it would be slow, and no better
        for form in cls.forms:
            names = fields(form)
            first: Sequence[float] = BITS if names and "bits" in names[0] else counts
            for rest in product(CODE_BITS, repeat=max(0, len(names) - 1)):  # such as the bits of PQ{m}x{bits}
                filled = [dict(zip(names, (value, *rest), strict=True)) for value in first] if names else [{}]
                stages = [stage for each in filled if (stage := _build(cls, each)) is not None]
                yield [chain for stage in stages if (chain := _compressor(stage, dim)) is not None]


def _build(cls: type[Stage], arguments: dict[str, float]) -> Stage | None:
    """Build a stage; None where the arguments are impossible."""
    whole = {name: int(value) if value == int(value) else value for name, value in arguments.items()}
    try:
        return cls(**whole)
    except (InvalidArgumentError, TypeError):
        return None


def _compressor(stage: Stage, dim: int) -> Compressor | None:
    """Return a quantizer itself, and a reduction to fewer dimensions before FP8; None for other transforms."""
    if isinstance(stage, Compressor):
        return stage
    assert isinstance(stage, Transform)
    try:
        smaller = stage._at(dim).dim_out <= 0.8 * dim
    except InvalidArgumentError:
        return None
    last = from_spec(AFTER_REDUCTION)
    assert isinstance(last, Quantizer)
    return Chain([stage], last) if smaller else None


def _size(codec: Compressor, dim: int) -> int:
    """Return the code bytes of a codec; 0 when it cannot work at `dim` dimensions."""
    try:
        return codec.code_size_at(dim)
    except InvalidArgumentError:
        return 0


def pick(documents: NDArray[np.float32], budget: int, *, metric: str = "cosine", seed: int = 0) -> tuple[str, str]:
    """Return the spec that ``ragq index --budget`` chooses for these embeddings, and why.

    Judgements play no part: the choice is `ragq.compressors.suggest` on the sample that indexing draws.
    """
    from ragq.checks import normalized
    from ragq.compressors.suggest import suggest
    from ragq.pipelines.build import SAMPLE

    rows = np.sort(np.random.default_rng(seed).choice(len(documents), min(SAMPLE, len(documents)), replace=False))
    sample = np.ascontiguousarray(documents[rows], np.float32)
    x = normalized(sample) if metric == "cosine" else sample
    choice = suggest(x, budget, count=len(documents), seed=seed)
    return choice.spec, choice.reason
