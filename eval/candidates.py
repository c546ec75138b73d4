"""The specs that a sweep tries when none is named, and the one that a budget picks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ragq.compressors import from_spec
from ragq.compressors.base import Transform
from ragq.compressors.catalogue import catalogue
from ragq.compressors.registry import stage_classes
from ragq.compressors.spec import fields
from ragq.errors import InvalidArgumentError
from ragq.eval.tables import BASELINE

__all__ = ["candidates", "menu", "parse_budgets", "pick"]

SMALL = (0.5, *range(1, 10))  # bits and the like
QUANTIZERS = ("FP8", "INT4")  # what reductions to fewer dimensions end in


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
    it; reductions (PCA, MRL, …) are tried before FP8 and INT4; and so are the specs that the registry's menu has there.
    A new codec needs nothing here.

    Parameters
    ----------
    dim : int
    budgets : sequence of int
        Code bytes.
    """
    offered = menu(dim)
    chosen = {BASELINE: None}
    for budget in budgets:
        for options in [*_forms(dim, budget), *([spec] for spec in offered)]:
            sizes = {spec: size for spec in options if (size := _size(spec, dim)) is not None}
            fitting = [spec for spec, size in sizes.items() if 0.75 * budget < size <= budget]
            if fitting:
                chosen[str(from_spec(max(fitting, key=sizes.__getitem__)))] = None
    return list(chosen)


def _forms(dim: int, budget: int) -> Iterator[list[str]]:
    """Yield, for each form of each codec, the spellings to choose from, the largest numbers first."""
    near = {int(share * budget) - less for share in (0.5, 1, 2) for less in range(9)}
    counts = sorted((n for n in near if n > 0), reverse=True)
    for cls in stage_classes():
        for form in cls.forms:
            names = fields(form)
            if issubclass(cls, Transform):
                if len(names) == 1:
                    heads = [form.format(**{names[0]: n}) for n in counts if n <= 0.8 * dim]
                    yield from ([f"{head},{quantizer}" for head in heads] for quantizer in QUANTIZERS)
            elif not names:
                yield [form]
            else:
                first = SMALL if "bits" in names[0] else counts
                for rest in product(SMALL, repeat=len(names) - 1):  # such as the bits of PQ{m}x{bits}
                    yield [_spell(form, names, (value, *rest)) for value in first]


def _spell(form: str, names: Sequence[str], values: Sequence[float]) -> str:
    return form.format(**{name: f"{value:g}" for name, value in zip(names, values, strict=True)})


def _size(spec: str, dim: int) -> int | None:
    """Return the code bytes of a spec; None when it cannot work at `dim` dimensions."""
    try:
        return from_spec(spec).code_size_at(dim)
    except InvalidArgumentError:
        return None


def pick(documents: NDArray[np.float32], budget: int, *, metric: str = "cosine", seed: int = 0) -> tuple[str, str]:
    """Return the spec that ``ragq index --budget`` chooses for these embeddings, and why.

    Judgements play no part: the choice is `ragq.compressors.suggest` on the sample that indexing draws.
    """
    from ragq.compressors.suggest import suggest
    from ragq.pipelines.build import SAMPLE
    from ragq.pipelines.feeds import normalized

    rows = np.sort(np.random.default_rng(seed).choice(len(documents), min(SAMPLE, len(documents)), replace=False))
    sample = np.ascontiguousarray(documents[rows], np.float32)
    choice = suggest(normalized(sample) if metric == "cosine" else sample, budget, seed=seed)
    return choice.spec, choice.reason
