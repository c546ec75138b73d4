"""No reader crashes, hangs, takes a gigabyte, leaves the index, or believes what is wrong.

``RAGQ_FUZZ=100000 pytest -m slow tests/fuzz`` runs so many inputs over all targets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

COUNT = int(os.environ.get("RAGQ_FUZZ", "0"))


def fuzz(count: int) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.runner", "--count", str(count)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["target"] for result in results] == list(TARGETS)
    return results


@pytest.mark.slow
def test_a_few_hundred_inputs_find_nothing() -> None:
    assert [line for result in fuzz(400) for line in result["found"]] == []


@pytest.mark.slow
def test_many_inputs_find_nothing() -> None:
    results = fuzz(COUNT or 2000)
    assert sum(result["inputs"] for result in results) >= 0.95 * (COUNT or 2000)
    assert [line for result in results for line in result["found"]] == []


def test_a_finding_is_reported_with_the_input_that_made_it(tmp_path: Path) -> None:
    code = (
        "import os, time, signal\n"
        "from tests.fuzz import runner\n"
        "runner.HANG_SECONDS = 0.2\n"
        "def prepare(folder):\n"
        "    n = [0]\n"
        "    def check(rng):\n"
        "        i = n[0] = n[0] + 1\n"
        "        if rng.random() < 0: pass\n"
        "    return check\n"
        "def crash(folder):\n"
        "    inputs = iter(range(100))\n"
        "    def check(rng):\n"
        "        value = rng.random()\n"
        "        if value < 0.1: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "        if value < 0.2: time.sleep(9)\n"
        "        if value < 0.3: raise KeyError('x')\n"
        "        if value < 0.4: bytes(3 << 30)\n"
        "    return check\n"
        "print(len(runner.run('good', prepare, 50).found))\n"
        "print('\\n'.join(runner.run('bad', crash, 12).found))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    good, *found = done.stdout.splitlines()
    assert good == "0" and done.returncode == 0, done.stderr
    text = "\n".join(found)
    assert "hangs" in text and "status -11" in text and "KeyError" in text and "MemoryError" in text
