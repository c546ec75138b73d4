"""The commands over a multi-vector index, with the default model."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from ragq.cli import cli


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_folder_becomes_a_multi_vector_index(tmp_path: Path) -> None:
    folder, index = tmp_path / "docs", tmp_path / "docs.ragq"
    folder.mkdir()
    for name, text in {"cat": "The cat sat on the mat.", "sun": "The sun is a very hot star."}.items():
        (folder / f"{name}.txt").write_text(text)
    made = run("index", folder, "-o", index, "--multi-vector", "--codec", "POOL4,FP8", "--first-stage", "MUVERA(2,2,4)")
    assert "4.0 vectors a passage of 384 bytes" in made and "first stage" in made
    hits = json.loads(run("search", index, "which star is hot?", "--candidates", 2, "--json"))
    assert [hit["document_id"] for hit in hits] == ["sun.txt", "cat.txt"] and hits[0]["score"] > hits[1]["score"]
    facts = json.loads(run("info", index, "--json"))["multi_vector"]
    assert facts["vectors"] == 8 and facts["first_stage"].startswith("MUVERA(")
    assert "vectors_per_passage" in run("info", index)
    (folder / "more.txt").write_text("A third one.")
    run("add", index, folder)
    run("delete", index, "cat.txt")
    assert {h["document_id"] for h in json.loads(run("search", index, "star", "--json"))} == {"sun.txt", "more.txt"}
    run("verify", index)
