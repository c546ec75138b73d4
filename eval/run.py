"""`ragq eval` as a function: load, embed once, sweep, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragq.errors import InvalidArgumentError
from ragq.eval.candidates import candidates, menu, pick
from ragq.eval.datasets import Dataset, load
from ragq.eval.metrics import MEASURES, parse_measure
from ragq.eval.report import Report, provenance
from ragq.eval.sweep import AGREEMENT, Result, Settings, sweep
from ragq.eval.systems import System, spec_systems
from ragq.eval.tables import BASELINE
from ragq.eval.vectors import Vectors, embed, ready

__all__ = ["extra_systems", "load_data", "run", "systems_for"]

Data = list[tuple[Dataset, Vectors]]


def load_data(
    sources: Sequence[str | Path],
    *,
    split: str = "test",
    queries: Path | None = None,
    qrels: Path | None = None,
    embeddings: str | None = None,
    model: Any = None,
    model_options: Mapping[str, Any] | None = None,
    tick: Callable[[str], None] = lambda line: None,
) -> Data:
    """Load data sets with their embeddings, ready or made once and cached.

    Parameters
    ----------
    sources : sequence of str or path
        See `ragq.eval.datasets`.
    split, queries, qrels
        See `ragq.eval.datasets.load`.
    embeddings : str, optional
        Name of ready embeddings, see `ragq.eval.vectors.ready`.
    model : optional
        What embeds otherwise, see `ragq.embedders.load_embedder`.
    model_options : mapping, optional
        For the embedder.
    tick : callable
        Called with a line of progress.

    Raises
    ------
    InvalidArgumentError
        No data set, or two of the same name.
    """
    datasets = [part for source in sources for part in load(source, split=split, queries=queries, qrels=qrels)]
    names = [dataset.name for dataset in datasets]
    if not names or len(set(names)) != len(names):
        raise InvalidArgumentError(
            f"Give at least one data set, each of another name. Got: {', '.join(names) or 'none'}."
        )
    for dataset in datasets:
        for line in dataset.warnings:
            tick(f"{dataset.name}: {line}")
    if embeddings is not None:
        return [(dataset, ready(dataset, embeddings, queries)) for dataset in datasets]
    from ragq.embedders import DEFAULT_MODEL, load_embedder

    embedder = load_embedder(model or DEFAULT_MODEL, **(model_options or {}))
    data = []
    for dataset in datasets:
        tick(f"{dataset.name}: {len(dataset.ids):,} documents, {len(dataset.queries):,} queries")
        data.append((dataset, embed(dataset, embedder)))
    return data


def systems_for(dim: int, specs: Sequence[str], budgets: Sequence[int], more: Sequence[System] = ()) -> list[System]:
    """Return what a sweep measures, each name once, float32 always.

    The specs given, else those of the budgets, and `more`; with none of the three, all that the registry offers.
    """
    chosen = list(specs) or (candidates(dim, budgets) if budgets else [] if more else menu(dim))
    named: dict[str, System] = {}
    for system in (*spec_systems([*chosen, BASELINE]), *more):
        named.setdefault(system.name, system)
    return list(named.values())


def extra_systems(dim: int, preset: str | None = None, compare: str | None = None) -> list[System]:
    """Return the systems of a preset (``rag-storage``) and of other libraries (``faiss,turbovec``)."""
    systems: list[System] = []
    if preset is not None:
        from ragq.eval.study import PRESETS

        if preset not in PRESETS:
            raise InvalidArgumentError(f"There is no preset '{preset}'. There: {', '.join(PRESETS)}.")
        systems += PRESETS[preset](dim)
    if compare is not None:
        from ragq.eval.compare import peer_systems

        systems += peer_systems([name.strip() for name in compare.split(",")], dim)
    return systems


def run(
    data: Data,
    specs: Sequence[str] = (),
    budgets: Sequence[int] = (),
    *,
    more: Sequence[System] = (),
    picking: bool = False,
    metric: str = "cosine",
    measure: str = "ndcg@10",
    seed: int = 0,
    out: Path | None = None,
    tick: Callable[[Result, bool], None] | None = None,
    **about: object,
) -> Report:
    """Sweep and report.

    Parameters
    ----------
    data : list of (Dataset, Vectors)
        From `load_data`.
    specs : sequence of str
        With none: candidates for `budgets`, or the registry's menu.
    budgets : sequence of int
        Code bytes a vector.
    more : sequence of System
        Reducers of the study, peers.
    picking : bool
        Measure only what each budget picks without judgements, as ``ragq index --budget`` does, and float32.
    metric, seed
        See `ragq.eval.sweep.Settings`.
    measure : str
        The main measure.
    out : Path, optional
        Folder of finished runs and of the report.
    tick : callable, optional
        Called after each run.
    **about
        More lines for the report's settings.
    """
    if measure not in AGREEMENT:
        parse_measure(measure)
    picks: dict[str, str] = {}
    if picking:
        for dataset, vectors in data:
            for budget in budgets:
                spec, reason = pick(vectors.documents, budget, metric=metric, seed=seed)
                picks[f"{dataset.name} within {budget} B"] = spec
                about |= {f"pick, {dataset.name} within {budget} B": f"{spec}: {reason}"}
        specs = list(dict.fromkeys(picks.values()))
    measures = tuple(dict.fromkeys([*MEASURES, *([] if measure in AGREEMENT else [measure])]))
    settings = Settings(metric=metric, seed=seed, measures=measures)
    systems = systems_for(data[0][1].dim, specs, budgets, more)
    results = sweep(systems, data, settings, out=out, tick=tick)
    origin = provenance(
        seed=seed, metric=metric, embeddings=", ".join(dict.fromkeys(v.model for _, v in data)), **about
    )
    report = Report(results, [dataset for dataset, _ in data], measure, seed, origin, picks)
    if out is not None:
        report.write(out)
    return report
