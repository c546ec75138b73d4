"""Time indexing ready embeddings: ``python -m tests.index_speed --codec INT8 --rows 100000 --rows 1000000``.

The embeddings are seeded noise around those of ``shared/data/scale``, in float16 and normalised, in a file under
FOLDER that is kept for the next run; a document is an id alone. Each build runs in a process of its own, ``--engine
ray`` with two workers. Prints one JSON object a build: seconds, microseconds a row with and without what comes before
the first row, and the peak of the process's memory.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

STEP = 50_000


def embeddings(folder: Path, rows: int, scale: Path) -> Path:
    """Return a file of so many embeddings, made when it is not there."""
    path = folder / f"x{rows}.npy"
    if not path.exists():
        known = np.load(scale, mmap_mode="r")
        out = np.lib.format.open_memmap(path.with_suffix(".tmp"), "w+", np.float16, (rows, known.shape[1]))
        rng = np.random.default_rng(0)
        for start in range(0, rows, STEP):
            stop = min(start + STEP, rows)
            x = known[np.arange(start, stop) % len(known)].astype(np.float32)
            x += 0.02 * rng.standard_normal(x.shape, dtype=np.float32)
            out[start:stop] = x / np.linalg.norm(x, axis=1, keepdims=True)
        out.flush()
        path.with_suffix(".txt").write_text("".join(f"d{i}\n" for i in range(rows)))
        path.with_suffix(".tmp").rename(path)
    return path


def build(x: Path, out: Path, codec: str, engine: str) -> dict[str, Any]:
    """Build once, in this process."""
    import ragq

    rows = len(np.load(x, mmap_mode="r"))
    options: dict[str, Any] = {"engine": "ray", "workers": 2} if engine == "ray" else {}
    begun: list[float] = []  # when the first row was written

    def progress(stage: str, done: int, total: int | None) -> None:
        if stage == "index" and not begun:
            begun.append(time.perf_counter())

    start = time.perf_counter()
    ragq.build(None, out, embeddings=x, ids=x.with_suffix(".txt"), codec=codec, progress=progress, **options).close()
    end = time.perf_counter()
    return {
        "codec": codec,
        "engine": engine,
        "rows": rows,
        "seconds": round(end - start, 2),
        "us_a_row": round((end - start) / rows * 1e6, 2),
        "us_a_row_written": round((end - begun[0]) / rows * 1e6, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option(
    "--scale", type=click.Path(exists=True, path_type=Path), default="../shared/data/scale/minilm-101k.f16.npy"
)
@click.option("--codec", default="INT8")
@click.option("--engine", "engines", type=click.Choice(["local", "ray"]), multiple=True, default=("local",))
@click.option("--rows", "sizes", multiple=True, type=int, default=(100_000, 1_000_000))
@click.option("--once", is_flag=True, hidden=True)
def main(folder: Path, scale: Path, codec: str, engines: tuple[str, ...], sizes: tuple[int, ...], once: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for rows in sizes:
        x = embeddings(folder, rows, scale)
        for engine in engines:
            if once:
                click.echo(json.dumps(build(x, folder / "index", codec, engine)))
            else:
                command = [sys.executable, "-m", "tests.index_speed", "--folder", str(folder), "--scale", str(scale)]
                command += ["--codec", codec, "--engine", engine, "--rows", str(rows), "--once"]
                shutil.rmtree(folder / "index", ignore_errors=True)
                subprocess.run(command, check=True)
    shutil.rmtree(folder / "index", ignore_errors=True)


if __name__ == "__main__":
    main()
