"""Run a target on many inputs in forked children, so that a crash, a hang or too much memory is a finding, not the end.

``python -m tests.fuzz.runner --count 100000`` runs every target; ``--target filters --first 1234 --count 1`` repeats
one input. Prints one JSON object a target: inputs, seconds, peak megabytes above the start, and what was found.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from tests.fuzz.guard import guarded

HANG_SECONDS = 5.0
MEMORY = 1 << 30
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
Check = Callable[[random.Random], None]


@dataclass
class Result:
    target: str
    inputs: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0
    found: list[str] = field(default_factory=list)


def run(name: str, prepare: Callable[[Path], Check], count: int, first: int = 0) -> Result:
    """Check inputs `first` to `first + count` of a target; input i is made from the seed ``name:i``."""
    result, started = Result(name, count), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=FAST) as root, tempfile.TemporaryFile("w+") as log:
        shared = mmap.mmap(-1, 16)
        at, end, again = first, first + count, -1
        guarded(None)
        check = prepare(Path(root))
        while at < end and len(result.found) < 20:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    work(name, check, at, end, shared, log)
                    status = 0
                finally:
                    log.flush()
                    os._exit(status)
            _, raw = os.waitpid(child, 0)
            status = os.waitstatus_to_exitcode(raw)
            reached = int.from_bytes(shared[:8], "little")
            result.peak_mb = max(result.peak_mb, int.from_bytes(shared[8:], "little") / 1024)
            if status == 0:
                break
            if status == -signal.SIGALRM and again != reached:
                at = again = reached  # once more: the whole machine may have stood still
                continue
            how = "hangs" if status == -signal.SIGALRM else f"ends with status {status}"
            result.found.append(f"{name}:{reached} {how}")
            at = reached + 1
        log.seek(0)
        result.found += [line.rstrip("\n") for line in log][:20]
    result.seconds = round(time.perf_counter() - started, 1)
    return result


def work(name: str, check: Check, first: int, end: int, shared: mmap.mmap, log: Any) -> None:
    """Check inputs in a child whose memory is bounded."""
    faulthandler.disable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + 2 * MEMORY, resource.RLIM_INFINITY))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(first, end):
        shared[:8] = i.to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            check(random.Random(f"{name}:{i}"))
        except BaseException as error:
            trace = traceback.extract_tb(error.__traceback__)
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(trace[-4:]))
            log.write(f"{name}:{i} {type(error).__name__}: {str(error).splitlines()[:1]} at {where}\n")
            log.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
        shared[8:] = peak.to_bytes(8, "little")
        if peak > MEMORY >> 10:
            log.write(f"{name}:{i} takes {peak >> 10} MB\n")
            return


@click.command()
@click.option("--count", default=1000, help="Inputs over all targets.")
@click.option("--first", default=0)
@click.option("--target", "names", multiple=True)
def main(count: int, first: int, names: tuple[str, ...]) -> None:
    from tests.fuzz.targets import TARGETS

    chosen = names or tuple(TARGETS)
    weights = sum(TARGETS[name][1] for name in chosen)
    for name in chosen:
        prepare, weight = TARGETS[name]
        result = run(name, prepare, max(1, count * weight // weights), first)
        print(json.dumps(vars(result)), flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
