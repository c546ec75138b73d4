"""Compile every Triton kernel ahead of time and say what each takes of the GPU; no GPU is needed.

    python -m ragq.retrievers.kernels.compile_gpu [--json] [--target sm_80 --target gfx942]

For NVIDIA the numbers are ptxas's own (``-v`` on the PTX that Triton made); for AMD they are read from the metadata in
the assembly. Shared memory is what Triton allots at launch. A register that does not fit is spilled to memory and
counted apart: a kernel with spills is too large a tile.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click

from ragq.errors import RagqError
from ragq.retrievers.kernels.triton_kernels import FORMS, VALUES, maxsim_kernel, scan_kernel
from ragq.retrievers.kernels.triton_scan import choose_tile

__all__ = ["CASES", "TARGETS", "Usage", "compile_case", "main"]

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}

PTXAS_OPTIONS = ["-v", "-lineinfo", "--regAllocOptLevel=2"]  # Triton 3.9's own, and -v

POINTERS = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "query", "rest", "levels"]
SHARED = {"gain": "*fp32", "scale": "*fp16", "shift": "*fp16", "weight": "*fp32", "bias": "*fp32", "mask": "*u8"}
RANGE = {"out": "*i64", "start": "i64", "n_rows": "i32", "n_queries": "i32", "tiles": "i32"}
TOKENS = {"out": "*i64", "offsets": "*i64", "q_offsets": "*i64", "token_mask": "*u8", "start": "i64", "n_docs": "i32"}


@dataclass(frozen=True)
class Case:
    """A kernel at the shape that serves 384 dimensions: column, query and level types, then the constants."""

    form: str
    codes: str
    query: str
    width: int
    value: str = "half"
    bits: int = 1
    blocked: bool = False
    queries: int = 1
    documents: bool = False


CASES = {
    "hamming": Case("hamming", "*i32", "*i32", 12),
    "hamming_x8": Case("hamming", "*i32", "*i32", 12, queries=8),
    "lut4": Case("lut4", "*u8", "*fp32", 48, blocked=True),
    "lut4_x8": Case("lut4", "*u8", "*fp32", 48, blocked=True, queries=8),
    "lut8": Case("lut8", "*u8", "*fp32", 24, blocked=True),
    "lut8_x8": Case("lut8", "*u8", "*fp32", 24, blocked=True, queries=8),
    "planes": Case("planes", "*u8", "*fp16", 48, bits=4, blocked=True),
    "planes_levels": Case("planes", "*u8", "*fp32", 48, "float_levels", 4, True),
    "dense_i8": Case("dense", "*i8", "*fp16", 384),
    "dense_f8": Case("dense", "*u8", "*fp16", 384, "e4m3"),
    "dense_f16": Case("dense", "*fp16", "*fp16", 768),
    "dense_f32": Case("dense", "*fp32", "*fp32", 1536, "float"),
    "maxsim_f16": Case("dense", "*fp16", "*fp16", 768, documents=True),
    "maxsim_i8": Case("dense", "*i8", "*fp16", 384, documents=True),
}


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes.

    Attributes
    ----------
    registers : int
        Vector registers a thread.
    spilled : int
        Registers (AMD) or bytes (NVIDIA) a thread that did not fit.
    shared : int
        Bytes of shared memory a program.
    threads : int
        Threads a program.
    code : int
        Bytes of the binary.
    """

    kernel: str
    target: str
    registers: int
    spilled: int
    shared: int
    threads: int
    code: int


def signature(case: Case) -> tuple[dict[str, str], dict[str, Any], int]:
    """Return the argument types, the constants and the warps of a case, k = 10, with a mask and both factors."""
    levels = "*fp16" if case.value == "half_levels" else "*fp32"
    types = [case.codes] * 8 + [case.query, case.query, levels]
    arguments = dict(zip(POINTERS, types, strict=True)) | SHARED | (TOKENS if case.documents else RANGE)
    constants: dict[str, Any] = {
        "FORM": FORMS[case.form], "DIM": 384, "WIDTH": case.width, "BITS": case.bits, "VALUE": VALUES[case.value],
        "BLOCKED": case.blocked, "FACTORS": 2, "MASKED": True,
    }  # fmt: skip
    tile = choose_tile(case.form, case.value, case.queries, 10**6, 16)
    if case.documents:
        tile |= {"Q": 16, "N": 64, "D": 16}
        constants |= {"TOKENS_MASKED": True}
    warps = tile.pop("num_warps")
    constants |= tile
    return arguments | dict.fromkeys(constants, "constexpr"), constants, warps


def compile_case(name: str, target: str) -> Usage:
    """Compile one kernel for one target.

    Parameters
    ----------
    name : str
        A key of `CASES`.
    target : str
        A key of `TARGETS`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    case = CASES[name]
    types, constants, warps = signature(case)
    kernel = maxsim_kernel if case.documents else scan_kernel
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": warps})
    meta = compiled.metadata
    threads = meta.num_warps * meta.warp_size
    if "ptx" in compiled.asm:
        registers, spilled = ptx_usage(compiled.asm["ptx"], target)
        code = len(compiled.asm["cubin"])
    else:
        registers, spilled = amd_usage(compiled.asm["amdgcn"])
        code = len(compiled.asm["hsaco"])
    return Usage(name, target, registers, spilled, meta.shared, threads, code)


def ptx_usage(ptx: str, target: str) -> tuple[int, int]:
    """Return registers a thread and bytes spilled, as ptxas reports them for `ptx`."""
    from triton import knobs

    tool = knobs.nvidia.ptxas_blackwell if target == "sm_90" else knobs.nvidia.ptxas  # as Triton itself chooses
    name = f"{target}a" if target == "sm_90" else target
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        command = [tool.path, *PTXAS_OPTIONS, f"--gpu-name={name}", str(source), "-o", str(binary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RagqError(f"ptxas failed on {target}: {done.stderr.strip()}")
    return number(r"Used (\d+) registers", done.stderr), number(r"(\d+) bytes spill stores", done.stderr)


def amd_usage(assembly: str) -> tuple[int, int]:
    """Return vector registers a thread and how many were spilled, from the metadata behind the assembly."""
    return number(r"\.vgpr_count:\s+(\d+)", assembly), number(r"\.vgpr_spill_count:\s+(\d+)", assembly)


def number(pattern: str, text: str) -> int:
    """Return the number that `pattern` finds in `text`."""
    found = re.search(pattern, text)
    if found is None:
        raise RagqError(f"The compiler's report holds no '{pattern}'; this version of Triton reports otherwise.")
    return int(found[1])


def usages(kernels: tuple[str, ...], targets: tuple[str, ...]) -> Iterator[Usage]:
    """Compile kernels for targets, all by default."""
    for name in kernels or tuple(CASES):
        for target in targets or tuple(TARGETS):
            yield compile_case(name, target)


@click.command()
@click.option("--kernel", "kernels", multiple=True, type=click.Choice(list(CASES)), help="Only this one; repeatable.")
@click.option("--target", "targets", multiple=True, type=click.Choice(list(TARGETS)), help="Only this one; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def main(kernels: tuple[str, ...], targets: tuple[str, ...], as_json: bool) -> None:
    """Compile the Triton kernels ahead of time and print their registers and shared memory.

    Example: python -m ragq.retrievers.kernels.compile_gpu --target sm_90
    """
    found = []
    columns = [field.name for field in fields(Usage)]
    if not as_json:
        click.echo(" ".join(f"{name:>13s}" for name in columns))
    for usage in usages(kernels, targets):
        found.append(asdict(usage))
        if not as_json:
            click.echo(" ".join(f"{getattr(usage, name):>13}" for name in columns))
    if as_json:
        click.echo(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
