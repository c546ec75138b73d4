"""The Triton kernels: parity in the interpreter, compilation for three GPUs, and what happens without one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ragq.compressors.scorers import DenseScorer
from ragq.errors import InvalidArgumentError
from ragq.layouts import Block, Layout
from ragq.retrievers.device import DeviceScan


def run_python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=900,
        check=False,
    )


def test_the_kernels_equal_the_reference_in_the_interpreter():
    cases = Path(__file__).with_name("triton_cases.py")
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def compile_report(*arguments):
    done = run_python("-m", "ragq.retrievers.kernels.compile_gpu", *arguments)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()[1:]]


def test_kernels_compile_for_nvidia_and_amd_without_spilling_registers():
    rows = compile_report("--kernel", "lut4", "--target", "sm_80", "--target", "gfx942")
    assert [row[:2] for row in rows] == [["lut4", "sm_80"], ["lut4", "gfx942"]]
    for _, _, registers, spilled, shared, threads, code in rows:
        assert 0 < int(registers) <= 255 and int(spilled) == 0
        assert 0 < int(shared) <= 48 * 1024 and int(threads) in (128, 256) and int(code) > 0


@pytest.mark.slow
def test_every_kernel_compiles_for_every_target_and_spills_at_most_a_few_registers():
    rows = compile_report()
    assert len(rows) == 3 * len({row[0] for row in rows}) and {row[1] for row in rows} == {"sm_80", "sm_90", "gfx942"}
    assert [row for row in rows if int(row[3]) > 64] == []  # bytes: 16 of a thread's 128 to 255 registers


def test_without_a_gpu_the_error_says_what_to_do():
    scorer = DenseScorer(np.zeros(1, np.float32), np.ones((1, 4), np.float32), "i1")
    block = Block.from_codes(Layout("rows", 4), np.ones((3, 4), np.uint8))
    with pytest.raises(InvalidArgumentError, match="set TRITON_INTERPRET=1"):
        DeviceScan([block]).to("cpu")
    with pytest.raises(InvalidArgumentError, match=r"Call .to\('cuda'\) first"):
        DeviceScan([block]).search(scorer, 2)
