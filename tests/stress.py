"""One writer and many readers: ``python -m tests.stress --seconds 300 --readers 8``.

The writer adds, replaces, deletes and compacts; every commit leaves whole groups of documents, each of one version. The
readers open, refresh and search in processes of their own, and check that what they see is one generation: every group
is there once and of one version, and searches find exactly what the documents say. Prints JSON.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import ragq
from tests.indexes import expected_files, on_disk, small_shards

GROUPS, MEMBERS, DIM = 40, 8, 16
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None


def vector(group: int, version: int) -> np.ndarray:
    """The embedding of every document of a group at a version."""
    x = np.random.default_rng(group).standard_normal(DIM).astype(np.float32)
    x[0] += 0.01 * (version % 50)
    return x


def group_of(group: int, version: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    records = [
        {"id": f"g{group}-{i}", "text": f"group {group} version {version}", "group": group, "version": version}
        for i in range(MEMBERS)
    ]
    return records, np.repeat(vector(group, version)[None], MEMBERS, axis=0)


def handles() -> tuple[int, float]:
    """Return this process's open files and mapped index files, and its resident megabytes."""
    maps = Path("/proc/self/maps").read_text().count(".arrow")
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    return len(os.listdir("/proc/self/fd")) + maps, resident  # noqa: PTH208


def consistent(index: ragq.Index, rng: random.Random) -> int:
    """Check that what an index shows is one generation; return its number."""
    groups: dict[int, list[int]] = {}
    for document in index:
        groups.setdefault(document.metadata["group"], []).append(document.metadata["version"])
    assert all(len(versions) == MEMBERS and len(set(versions)) == 1 for versions in groups.values()), groups
    assert len(index) == MEMBERS * len(groups)
    for group in rng.sample(sorted(groups), min(3, len(groups))):
        version = groups[group][0]
        hits = index.hits(vector(group, version)[None], MEMBERS)[0]
        assert {hit.document_id for hit in hits} == {f"g{group}-{i}" for i in range(MEMBERS)}
        assert {hit.metadata["version"] for hit in hits} == {version}
        filtered = index.hits(vector(0, 0)[None], 2 * MEMBERS, {"group": group})[0]
        assert len(filtered) == MEMBERS and {hit.metadata["version"] for hit in filtered} == {version}
        assert len(index.get([f"g{group}-{i}" for i in range(MEMBERS)])) == MEMBERS
    return index.manifest.generation


def reader(path: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Read until the end; return what was seen and how handles and memory went."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    generations: set[int] = set()
    samples: list[tuple[int, float]] = []
    checks = 0
    before = handles()[0]
    index = ragq.open(path)
    while time.monotonic() < end:
        for _ in range(rng.randrange(1, 4)):  # what is held stays as it is, whatever the writer does
            generations.add(consistent(index, rng))
            checks += 1
        if rng.random() < 0.3:
            index.close()
            index = ragq.open(path)
        else:
            index.refresh()
        samples.append(handles())
    index.close()
    del index
    gc.collect()
    third = max(1, len(samples) // 3)
    early, late = samples[:third], samples[-third:]
    return {
        "checks": checks,
        "generations": len(generations),
        "handles": [before, max(h for h, _ in samples), handles()[0]],  # at first, at most (as shards are), after close
        "megabytes": [round(max(m for _, m in early), 1), round(max(m for _, m in late), 1)],
    }


def write(path: Path, seconds: float, seed: int = 0) -> dict[str, int]:
    """Change an index until the end; return how often."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    done = {"add": 0, "delete": 0, "compact": 0, "structure": 0}
    versions = dict.fromkeys(range(GROUPS), 0)
    with small_shards(64), ragq.open(path, mode="w", lock_timeout=5) as index:
        while time.monotonic() < end:
            kind = rng.random()
            if kind < 0.65 or len(versions) < GROUPS // 2:
                chosen = rng.sample(range(GROUPS), 3)
                records: list[dict[str, Any]] = []
                parts = []
                for group in chosen:
                    versions[group] = versions.get(group, 0) + 1
                    more, x = group_of(group, versions[group])
                    records, parts = [*records, *more], [*parts, x]
                index.add(records, embeddings=np.concatenate(parts))
                done["add"] += 1
            elif kind < 0.85:
                group = rng.choice(sorted(versions))
                del versions[group]
                index.delete(where={"group": group})
                done["delete"] += 1
            elif kind < 0.97 or len(index) < 200:
                index.compact()
                done["compact"] += 1
            else:
                index.restructure(rng.choice(["ivf", "none"]), nlist=4, recall=1.0)
                done["structure"] += 1
    return done


def stress(seconds: float, readers: int) -> dict[str, Any]:
    """Run a writer with readers in other processes; return what they saw."""
    with tempfile.TemporaryDirectory(dir=FAST) as root:
        path = Path(root) / "index"
        made = [group_of(group, 0) for group in range(GROUPS)]
        records = [record for more, _ in made for record in more]
        ragq.build(records, path, embeddings=np.concatenate([x for _, x in made]), codec="F32", shard_rows=64).close()
        command = [sys.executable, "-m", "tests.stress", "--path", str(path), "--seconds", str(seconds)]
        processes = [
            subprocess.Popen([*command, "--seed", str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for i in range(readers)
        ]
        done = write(path, seconds)
        answers = []
        for process in processes:
            out, errors = process.communicate(timeout=seconds + 60)
            assert process.returncode == 0, errors[-2000:]
            answers.append(json.loads(out))
        with ragq.open(path, mode="w") as index:
            index.compact()
            index.delete(["nobody"])
            index.verify()
            generation = index.manifest.generation
        left = sorted(on_disk(path) - expected_files(path))
        return {"seconds": seconds, "writer": done, "generation": generation, "left_over": left, "readers": answers}


@click.command()
@click.option("--seconds", default=300.0)
@click.option("--readers", default=8)
@click.option("--path", type=click.Path(path_type=Path))
@click.option("--seed", default=0)
def main(seconds: float, readers: int, path: Path | None, seed: int) -> None:
    click.echo(json.dumps(stress(seconds, readers) if path is None else reader(path, seconds, seed), indent=1))


if __name__ == "__main__":
    main()
