"""How long work reports: a callable that is told the stage, what is done and the total."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "progress_bar", "silent"]

Progress = Callable[[str, int, int | None], None]
"""``progress(stage, done, total)``: `done` of `total` items (None when unknown) of a stage such as ``embed``."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Report to nobody."""


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Progress]:
    """Show a bar with rate and time left on stderr; nothing when it is not a terminal.

    Yields
    ------
    Progress
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield silent
        return
    columns = (
        TextColumn("{task.description:>6}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        tasks = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, rate="")
            elapsed = bar.tasks[tasks[stage]].elapsed or 0
            rate = f"{done / elapsed:,.0f}/s" if elapsed > 1 else ""
            bar.update(tasks[stage], completed=done, total=total, rate=rate)

        yield report
