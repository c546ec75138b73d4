"""What the sources must not do, so that an index from a stranger stays data."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.test_architecture import ROOT, modules

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
TRUE_IS_WRONG = {"allow_pickle", "trust_remote_code", "shell", "autoload"}


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        assert not set(names) & FORBIDDEN_IMPORTS, f"{file}:{node.lineno}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_CALLS, f"{file}:{node.lineno}"
            for keyword in node.keywords:
                given_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                assert not (keyword.arg in TRUE_IS_WRONG and given_true), f"{file}:{node.lineno}"
            if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "torch.load":
                assert any(keyword.arg == "weights_only" for keyword in node.keywords), f"{file}:{node.lineno}"


def test_the_rules_can_fail(tmp_path: Path) -> None:
    for code in ("import pickle", "eval('1')", "f(allow_pickle=True)", "torch.load(f)"):
        (tmp_path / "bad.py").write_text(code)
        with pytest.raises(AssertionError):
            test_nothing_that_is_read_is_run(tmp_path / "bad.py")
