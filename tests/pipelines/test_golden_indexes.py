"""Indexes written by an earlier version are read, searched, changed and checked as ever."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import ragq
from ragq.manifest import MANIFEST, READABLE, Manifest
from ragq.pipelines.checkup import checkup
from ragq.storage import file_digest
from tests.indexes import expected_files, on_disk
from tests.regenerate_golden_indexes import FOLDER, MAX_BYTES, PLANS, answers, tokens, vectors


def golden(name: str) -> tuple[Path, dict]:
    path = FOLDER / name
    if not (path / "manifest.json").is_file():
        pytest.fail(f"{path.name} is missing; write it with: python -m tests.regenerate_golden_indexes {name}")
    return path, json.loads(path.with_suffix(".json").read_text())


def digests(path: Path) -> dict[str, str]:
    return {name: file_digest(path / name) for name in on_disk(path)}


@pytest.mark.parametrize("name", sorted(PLANS))
def test_a_golden_index_answers_as_ever(name: str) -> None:
    path, expected = golden(name)
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) <= MAX_BYTES
    before = digests(path)
    with ragq.open(path) as index:
        assert index.manifest.format == expected["format"]
        assert Manifest.load(path / MANIFEST, index.manifest.dump()) == index.manifest
        assert [document.id for document in index] == expected["documents"]
        found = answers(index, index.manifest.multi_vector is not None)
        for hits, right in zip(found, expected["answers"], strict=True):
            assert [hit[0] for hit in hits] == [hit[0] for hit in right]
            assert [hit[1] for hit in hits] == pytest.approx([hit[1] for hit in right], abs=2e-4)
        assert [d.id for d in index.get(["d3", "d0", "d299"])] == ["d3", "d299"]
        assert index.verify() > 0
    assert checkup(path) == []
    assert digests(path) == before, "reading wrote something"


@pytest.mark.parametrize("name", sorted(PLANS))
def test_a_golden_index_can_be_written_to(name: str, tmp_path: Path) -> None:
    source, expected = golden(name)
    path = Path(shutil.copytree(source, tmp_path / name))
    with ragq.open(path, mode="w") as index:
        more = tokens(1, 7) if index.manifest.multi_vector is not None else vectors(1, 7)
        index.add([{"id": "new", "text": "new"}], embeddings=more)
        assert index.delete(["d5"]) == 1
        index.compact()
        names = [name for name in expected["documents"] if name != "d5"]
        assert [document.id for document in index] == [*names, "new"]
    assert checkup(path) == []
    with ragq.open(path, mode="w") as index:
        index.delete(["nobody"])
    assert on_disk(path) == expected_files(path)


def test_a_golden_index_is_read_from_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    source, expected = golden("rows")
    path = Path(shutil.copytree(source, tmp_path / "rows"))
    for folder in (path, *(p for p in path.rglob("*") if p.is_dir())):
        os.chmod(folder, 0o555)  # noqa: PTH101
    try:
        with ragq.open(path) as index:
            assert len(index) == len(expected["documents"])
    finally:
        for folder in (path, *(p for p in path.rglob("*") if p.is_dir())):
            os.chmod(folder, 0o755)  # noqa: PTH101


def test_there_is_one_of_every_format_and_layout() -> None:
    formats, layouts = set(), set()
    for name in PLANS:
        with ragq.open(golden(name)[0]) as index:
            formats.add(index.manifest.format)
            layouts.add(str(index.manifest.layout).partition(":")[0])
    assert formats == set(READABLE)
    assert layouts == {"rows", "blocks", "nibbles", "planes"}
    assert {path.stem for path in FOLDER.iterdir()} == set(PLANS)
