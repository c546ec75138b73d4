"""Laws of the command line: exit codes, JSON for machines, an example in every help page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ragq
from ragq.cli import COMMANDS
from tests.cli.test_bad_input import Run, old, run

__all__ = ["old", "run"]


def test_a_corpus_from_index_to_compact(run: Run, old: Path) -> None:
    ready = ("corpus.jsonl", "--embeddings", "x.npy")
    code, out, _ = run("index", *ready, "-o", "new.ragq", "--codec", "FP8", "--json")
    assert code == 0 and json.loads(out) | {"documents": 6, "spec": "FP8"} == json.loads(out)
    assert json.loads(run("delete", "new.ragq", "d1", "d2", "unknown", "--json")[1]) == {"deleted": 2, "documents": 4}
    assert json.loads(run("delete", "new.ragq", "--where", '{"n": {"$gte": 5}}', "--json")[1])["deleted"] == 1
    assert json.loads(run("compact", "new.ragq", "--json")[1])["changed"] is True
    assert json.loads(run("compact", "new.ragq", "--json")[1])["changed"] is False
    added = json.loads(run("add", "new.ragq", *ready, "--json")[1])
    assert (added["added"], added["replaced"], added["documents"]) == (6, 3, 6)
    assert json.loads(run("verify", "new.ragq", "--json")[1])["ok"] is True
    info = json.loads(run("info", "new.ragq", "--json")[1])
    assert (info["documents"], info["code_bytes"], info["dim"]) == (6, 8, 8)
    for command in (
        ["delete", "new.ragq", "d0"],
        ["compact", "new.ragq"],
        ["verify", "new.ragq"],
        ["info", "new.ragq"],
    ):
        code, out, _ = run(*command)
        assert code == 0 and "new.ragq" in out
    assert run("index", *ready, "-o", "new.ragq")[0] == 0
    assert len(ragq.open("new.ragq")) == 6


def test_duplicates_are_counted_for_the_user(run: Run, old: Path) -> None:
    Path("twice.jsonl").write_text("".join(json.dumps({"id": f"d{i % 4}", "text": str(i)}) + "\n" for i in range(6)))
    code, _, err = run("index", "twice.jsonl", "--embeddings", "x.npy", "-o", "new.ragq")
    assert code == 0 and "Duplicates: 2 documents gave way" in err
    assert [d.text for d in ragq.open("new.ragq")] == ["2", "3", "4", "5"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["serach", "x", "y"],
        ["index"],
        ["index", "x", "--metric", "manhattan"],
        ["search", "x"],
        ["search", "x", "y", "-k", "0"],
        ["delete", "x"],
        ["delete", "x", "a", "--where", "{}"],
        ["info"],
        ["index", "x", "--unknown"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_exits_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert "Error: " in err and "Traceback" not in err


def test_a_near_name_is_offered(run: Run) -> None:
    assert "Did you mean 'search'?" in run("serach")[2]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_help_page_has_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert re.search(rf"^\s+ragq {command} \S|^\s+ragq {command}$", out, re.MULTILINE), out


def test_help_and_version_exit_0(run: Run) -> None:
    assert run("--help")[0] == 0
    assert all(name in run("-h")[1] for name in COMMANDS)
    assert ragq.__version__ in run("--version")[1]


def test_an_interrupted_build_says_how_to_go_on(run: Run, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command = ("index", "corpus.jsonl", "--embeddings", "x.npy", "-o", "new.ragq")
    with monkeypatch.context() as patch:
        patch.setattr("ragq.transaction.Transaction.commit", interrupted)
        code, out, err = run(*command)
    assert (code, out) == (1, "") and "ragq index corpus.jsonl -o new.ragq --resume" in err
    assert run(*command, "--resume")[0] == 0
    assert len(ragq.open("new.ragq")) == 6


def test_the_installed_command_ends_quietly_when_nobody_reads_on(old: Path, tmp_path: Path) -> None:
    code = "from ragq.cli import main; main()"
    command = [sys.executable, "-c", code, "info", str(old), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 1)
    assert np.load(tmp_path / "x.npy").shape == (6, 8)
