"""The rooms of the design: what may import what, and what is not imported at all until it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["cli", "eval", "pipelines", "retrievers", "compressors", "ragq"]  # each may import those after it
HEAVY = {"torch", "sentence_transformers", "transformers", "faiss", "mteb", "ray", "matplotlib", "langchain_core"}


def modules() -> list[Path]:
    return [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down_the_rooms_only(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    above = ROOMS[: ROOMS.index(room)]
    if file == ROOT / "ragq" / "__init__.py":
        return  # the public API: it names the rooms, and imports them when they are used
    for name in imported(ast.parse(file.read_text())):
        parts = name.split(".")
        assert not (parts[0] == "ragq" and len(parts) > 1 and parts[1] in above), f"{file} imports {name}"
        assert parts[0] != "tests"


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_is_longer_than_a_few_screens(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 460


def loaded(code: str, tmp_path: Path) -> set[str]:
    """Return the modules that a fresh Python has loaded after some code."""
    end = "import sys; print('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{end}"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_import_ragq_is_light(tmp_path: Path) -> None:
    assert not loaded("import ragq", tmp_path) & (HEAVY | {"numpy", "pyarrow"})


def test_help_is_light(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.argv = ['ragq', '--help']\nfrom ragq.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert not loaded(code, tmp_path) & (HEAVY | {"numpy", "pyarrow", "rich"})


def test_a_search_of_ready_embeddings_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import numpy as np, ragq\n"
        "x = np.eye(4, dtype='float32')\n"
        "index = ragq.build(None, 'i', embeddings=x, ids=list('abcd'))\n"
        "index.add([{'id': 'e', 'text': 'e'}], embeddings=x[:1])\n"
        "assert index.search_embeddings(x[1]).ids[0, 0] == 'b'"
    )
    assert not loaded(code, tmp_path) & HEAVY
