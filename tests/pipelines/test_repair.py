"""`verify --deep` names every damaged file, and `repair` leaves an index that is whole and holds only the truth."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import ragq
from ragq.cli.repair import repair as repair_command
from ragq.cli.verify import verify as verify_command
from ragq.errors import CorruptIndexError, IndexLockedError, InvalidArgumentError
from ragq.manifest import MANIFEST, FileEntry, Manifest
from ragq.pipelines.checkup import checkup
from ragq.pipelines.mending import MENDABLE, mend_bit
from ragq.pipelines.repair import repair
from ragq.shards import IDS_SCHEMA, write_batch, write_deletes
from ragq.storage import WriterLock, file_digest, write_bytes
from ragq.tokens import TokenEmbeddings
from tests.indexes import content, documents, expected_files, on_disk, small_shards

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None


def vectors(first: int, n: int) -> np.ndarray:
    return np.random.default_rng(first).standard_normal((n, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, Path]]:
    """Small indexes of each kind, with replaced and deleted documents in several shards."""
    with tempfile.TemporaryDirectory(dir=FAST) as root:
        lists = Path(root) / "lists"
        options = {"codec": "PCA4,FP8", "shard_rows": 6}
        ragq.build(documents(18), lists, embeddings=vectors(0, 18), **options).close()
        with small_shards(6), ragq.open(lists, mode="w") as index:
            index.restructure("ivf", nlist=3, neighbours=2, seed=5)
            index.add(documents(7, 4), embeddings=vectors(4, 7))
            index.delete(["d13"])
        tokens = Path(root) / "tokens"
        many = TokenEmbeddings.from_list([vectors(i, 1 + i % 3) for i in range(9)])
        ragq.build(
            documents(9), tokens, embeddings=many, multi_vector=True, codec="INT8", metric="ip", shard_rows=4
        ).close()
        with ragq.open(tokens, mode="w") as index:
            index.delete(["d2"])
        for path in (lists, tokens):
            assert checkup(path) == []
        yield {"lists": lists, "tokens": tokens}


def names(path: Path) -> list[str]:
    return sorted(on_disk(path) - {"write.lock"})


def flip(path: Path, where: float, value: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= value
    path.write_bytes(data)


def truth(path: Path) -> dict[str, tuple]:
    with ragq.open(path) as index:
        return {document[0]: document for document in content(index)}


def shard_of(path: Path, name: str) -> str | None:
    manifest = Manifest.load(path / MANIFEST, (path / MANIFEST).read_bytes())
    return next((s.id for s in manifest.shards if name in {file.name for file in s.files}), None)


def check_repaired(path: Path, before: dict[str, tuple], **how: Path) -> None:
    """Repair, and compare what is left with what there was."""
    files = {name: file_digest(path / name) for name in on_disk(path)}
    try:
        planned = repair(path)
    except CorruptIndexError as error:
        assert "bring" in str(error)
        planned = None
    assert {name: file_digest(path / name) for name in on_disk(path)} == files, "a dry run changed something"
    if planned is None:
        with pytest.raises(CorruptIndexError):
            repair(path, apply=True)
        assert {n: file_digest(path / n) for n in files if n != "write.lock"} == {
            n: digest for n, digest in files.items() if n != "write.lock"
        }
        return
    done = repair(path, apply=True, **how)
    assert checkup(path) == []
    after = truth(path)
    dropped = {name for action in done.actions for name in action.ids}
    unknown = sum(action.unknown for action in done.actions)
    assert all(before[name] == document for name, document in after.items()), "what was never there is there now"
    lost = set(before) - set(after)
    assert len(lost - dropped) <= unknown
    assert unknown or lost <= dropped
    with ragq.open(path, mode="w") as index:  # it can be searched and written to
        if index.manifest.multi_vector is None:
            index.search_embeddings(vectors(0, 2), 3)
            index.add([{"id": "new", "text": "new"}], embeddings=vectors(50, 1))
            assert "new" in index
        else:
            assert len(index.search_embeddings([vectors(0, 2)], 3)) == 1


KINDS = st.sampled_from(["lists", "tokens"])


@settings(max_examples=50, deadline=None)
@given(kind=KINDS, data=st.data())
def test_any_flipped_byte_is_found_with_its_file_and_shard(
    made: dict[str, Path], kind: str, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(names(made[kind])))
    path = made[kind] / name
    whole = path.read_bytes()
    try:
        flip(path, data.draw(st.floats(0, 1, exclude_max=True)), data.draw(st.integers(1, 255)))
        found = checkup(made[kind])
        assert name in {finding.file for finding in found}
        if name != MANIFEST:
            assert [finding.file for finding in found] == [name]
            assert found[0].shard == shard_of(made[kind], name)
            assert str(path) in found[0].message
    finally:
        path.write_bytes(whole)


def damage_and_repair(whole: Path, data: st.DataObject) -> None:
    before = truth(whole)
    with tempfile.TemporaryDirectory(dir=FAST) as root:
        path = Path(shutil.copytree(whole, Path(root) / "index"))
        for _ in range(data.draw(st.integers(1, 3))):
            name = data.draw(st.sampled_from(names(whole)))
            kind = data.draw(st.sampled_from(["flip", "flip", "empty", "gone"]))
            if kind == "flip" and (path / name).exists() and (path / name).stat().st_size:
                flip(path / name, data.draw(st.floats(0, 1, exclude_max=True)), data.draw(st.integers(1, 255)))
            elif name != MANIFEST:
                (path / name).write_bytes(b"")
                if kind == "gone":
                    (path / name).unlink()
        if checkup(path):
            check_repaired(path, before)


@settings(max_examples=10, deadline=None)
@given(kind=KINDS, data=st.data())
def test_a_repair_never_makes_things_worse(made: dict[str, Path], kind: str, data: st.DataObject) -> None:
    damage_and_repair(made[kind], data)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(kind=KINDS, data=st.data())
def test_many_repairs_never_make_things_worse(made: dict[str, Path], kind: str, data: st.DataObject) -> None:
    damage_and_repair(made[kind], data)


def files_of(path: Path, part: str) -> list[FileEntry]:
    manifest = Manifest.load(path / MANIFEST, (path / MANIFEST).read_bytes())
    if part == "structure":
        assert manifest.structure is not None
        return list(manifest.structure.files.values())
    if part == "deletes":
        return [shard.deletes.file for shard in manifest.shards if shard.deletes]
    return [getattr(shard, part) for shard in manifest.shards]


def damaged(path: Path, file: FileEntry) -> None:
    """Replace what a file holds, so that no bit turned back can mend it."""
    (path / file.name).write_bytes(bytes(reversed((path / file.name).read_bytes())))


@pytest.fixture()
def lists(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["lists"], tmp_path / "index"))


def test_a_lookup_is_made_anew(lists: Path) -> None:
    before = truth(lists)
    for file in files_of(lists, "ids"):
        damaged(lists, file)
    done = repair(lists, apply=True)
    assert {(a.what, a.part) for a in done.actions} == {("rebuild", "ids")}
    assert truth(lists) == before and checkup(lists) == []
    with ragq.open(lists) as index:
        assert [d.id for d in index.get(list(before))] == list(before)


def test_a_structure_is_built_anew(lists: Path) -> None:
    damaged(lists, files_of(lists, "structure")[0])
    (lists / files_of(lists, "structure")[-1].name).unlink()
    done = repair(lists, apply=True)
    assert [(a.what, a.part) for a in done.actions] == [("rebuild", "structure")]
    with ragq.open(lists) as index:
        assert index.manifest.structure is not None and index.manifest.structure.kind == "ivf"
        assert index.manifest.structure.parameters["nlist"] == 3
        assert index.manifest.structure.parameters["neighbours"] == 2
        assert index.manifest.structure.parameters["asked"]["seed"] == 5
    assert checkup(lists) == []


def test_replaced_documents_stay_replaced_and_deleted_ones_never_come_back(lists: Path) -> None:
    before = truth(lists)
    replaced, explicit = files_of(lists, "deletes")[0], files_of(lists, "deletes")[-1]
    damaged(lists, replaced)
    assert [(a.what, a.part) for a in repair(lists, apply=True).actions] == [("rebuild", "deletes")]
    assert truth(lists) == before
    damaged(lists, files_of(lists, "deletes")[-1])
    done = repair(lists, apply=True)
    assert [a.what for a in done.actions] == ["drop"]
    assert set(before) - set(truth(lists)) <= set(done.actions[0].ids) and "d13" not in truth(lists)
    assert explicit.name not in on_disk(lists)


@pytest.mark.parametrize("part", ["codes", "docs"])
def test_a_shard_that_is_lost_is_dropped_with_its_ids(lists: Path, tmp_path: Path, part: str) -> None:
    before = truth(lists)
    damaged(lists, files_of(lists, part)[1])
    done = repair(lists, apply=True, salvage=tmp_path / "lost.jsonl")
    lost = set(before) - set(truth(lists))
    assert lost and len(lost) <= len(done.actions[0].ids) + done.actions[0].unknown
    assert [a.what for a in done.actions] == ["drop"]
    if part == "codes":
        assert lost <= set(done.actions[0].ids) and done.actions[0].unknown == 0
        saved = [json.loads(line) for line in (tmp_path / "lost.jsonl").read_text().splitlines()]
        assert {record["id"] for record in saved} == lost
        with ragq.open(lists, mode="w") as index:
            index.add(saved, embeddings=vectors(1, len(saved)))
        assert truth(lists) == before
    with pytest.raises(InvalidArgumentError, match="exists"):
        repair(lists, apply=True, salvage=lists / MANIFEST)


def test_without_the_fitted_state_or_the_manifest_nothing_is_done(lists: Path) -> None:
    state = Manifest.load(lists / MANIFEST, (lists / MANIFEST).read_bytes()).compressor
    whole = (lists / state.name).read_bytes()
    damaged(lists, state)
    with pytest.raises(CorruptIndexError, match="no code has a meaning"):
        repair(lists, apply=True)
    write_bytes(lists / state.name, whole)
    assert checkup(lists) == []
    (lists / MANIFEST).write_text("{}")
    with pytest.raises(CorruptIndexError, match="cannot be put right"):
        repair(lists, apply=True)
    assert (lists / MANIFEST).read_text() == "{}"


@pytest.mark.parametrize("old,new", [("\n ", "\n\t"), ('"checksum": "', '"checksum": "0'), ('"cosine"', '"cosing"')])
def test_a_manifest_is_put_right_as_its_checksum_proves(lists: Path, old: str, new: str) -> None:
    path = lists / MANIFEST
    whole = path.read_text()
    changed = whole.replace(old, new, 1)
    if "checksum" in old:
        digit = "1" if whole.split(old)[1][0] != "1" else "2"
        changed = whole.replace(old + whole.split(old)[1][0], old + digit)
    path.write_text(changed)
    assert [finding.file for finding in checkup(lists)] == [MANIFEST]
    repair(lists)
    assert path.read_text() == changed
    repair(lists, apply=True)
    assert path.read_text() == whole


def test_a_digest_in_the_manifest_is_put_right_by_the_file_that_has_it(lists: Path) -> None:
    path = lists / MANIFEST
    whole = path.read_text()
    digest = files_of(lists, "codes")[0].xxh3
    path.write_text(whole.replace(digest, digest[::-1], 1))
    repair(lists, apply=True)
    assert path.read_text() == whole


def test_a_bit_is_turned_back_in_small_files_only() -> None:
    import xxhash

    data = bytes(range(256)) * 8
    digest = xxhash.xxh3_128_hexdigest(data)
    assert mend_bit(data[:100] + bytes([data[100] ^ 16]) + data[101:], digest) == data
    assert mend_bit(data[:100] + bytes([data[100] ^ 17]) + data[101:], digest) is None
    assert mend_bit(bytes(MENDABLE + 1), digest) is None


# Files that are whole, and lie


def commit(path: Path, change: Callable[[Path, Manifest], Manifest]) -> None:
    manifest = Manifest.load(path / MANIFEST, (path / MANIFEST).read_bytes())
    write_bytes(path / MANIFEST, change(path, manifest).dump())


def with_first(manifest: Manifest, **changes: object) -> Manifest:
    return replace(manifest, shards=(replace(manifest.shards[0], **changes), *manifest.shards[1:]))  # type: ignore[arg-type]


def foreign_ids(path: Path, manifest: Manifest) -> Manifest:
    shard = manifest.shards[0]
    batch = pa.ipc.open_file(path / shard.ids.name).get_batch(0)
    arrays = [pa.array(np.sort(batch.column(0).to_numpy() ^ 1)), batch.column(1)]
    entry = write_batch(path, shard.ids.name, pa.record_batch(arrays, schema=IDS_SCHEMA))
    return with_first(manifest, ids=entry)


def wrong_counts(path: Path, manifest: Manifest) -> Manifest:
    deletes = manifest.shards[0].deletes
    assert deletes is not None
    return with_first(manifest, deletes=replace(deletes, documents=deletes.documents - 1))


def undeleted(path: Path, manifest: Manifest) -> Manifest:
    return with_first(manifest, deletes=None)


def other_deletes(path: Path, manifest: Manifest) -> Manifest:
    shard = manifest.shards[0]
    deleted = np.zeros(shard.rows, bool)
    deleted[0] = True
    return with_first(manifest, deletes=write_deletes(path, shard, 99, deleted, 2))


@pytest.mark.parametrize("change", [foreign_ids, wrong_counts, undeleted, other_deletes])
def test_files_that_contradict_each_other_are_found(lists: Path, change: Callable[[Path, Manifest], Manifest]) -> None:
    commit(lists, change)
    assert checkup(lists)


def test_nothing_to_repair(lists: Path) -> None:
    files = names(lists)
    done = repair(lists, apply=True)
    assert (done.applied, done.findings, done.actions) == (False, (), ())
    assert names(lists) == files


def test_a_repair_waits_for_no_writer(lists: Path) -> None:
    damaged(lists, files_of(lists, "ids")[0])
    with WriterLock(lists), pytest.raises(IndexLockedError):
        repair(lists, apply=True)
    assert checkup(lists)


def test_the_commands(lists: Path) -> None:
    run = CliRunner().invoke
    assert run(verify_command, [str(lists), "--deep"]).exit_code == 0
    assert "nothing to repair" in run(repair_command, [str(lists)]).output
    damaged(lists, files_of(lists, "codes")[0])
    damaged(lists, files_of(lists, "ids")[1])
    found = run(verify_command, [str(lists), "--deep"])
    assert found.exit_code == 1
    assert files_of(lists, "codes")[0].name in found.output and files_of(lists, "ids")[1].name in found.output
    listed = json.loads(run(verify_command, [str(lists), "--deep", "--json"]).stdout)
    assert not listed["ok"] and len(listed["findings"]) == 2
    planned = run(repair_command, [str(lists)])
    assert planned.exit_code == 0 and "Nothing was changed" in planned.output and "d0" in planned.output
    assert run(repair_command, [str(lists), "--yes"]).output.endswith("Done.\n")
    assert run(verify_command, [str(lists), "--deep"]).exit_code == 0
    with ragq.open(lists, mode="w") as index:
        index.delete(["d3"])
    assert on_disk(lists) == expected_files(lists)
