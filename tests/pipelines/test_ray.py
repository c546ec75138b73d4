"""The Ray engine writes the index that the local engine writes, also when workers die."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import ragq
from ragq.embedders import load_embedder
from ragq.errors import InvalidArgumentError
from ragq.pipelines.engines.work import Job, Worker
from ragq.pipelines.readers import read
from ragq.pipelines.spool import cuts_of
from ragq.remote import locate
from tests.indexes import content, documents, words_model
from tests.object_store import BUCKET, ObjectStore


def same_index(one: ragq.Index, other: ragq.Index, queries: np.ndarray) -> None:
    """Check that two indexes hold the same documents and codes, byte for byte, and find the same."""
    assert content(one) == content(other)
    for mine, theirs in zip(one.manifest.shards, other.manifest.shards, strict=True):
        assert [file.xxh3 for file in mine.files] == [file.xxh3 for file in theirs.files]
        assert mine.id == theirs.id or "." in theirs.id + mine.id  # a name in a store is marked by its writer
    assert one.manifest.compressor == other.manifest.compressor
    mine, theirs = (index.search_embeddings(queries, 10) for index in (one, other))
    assert (mine.ids == theirs.ids).all() and (mine.scores == theirs.scores).all()
    one.verify()


def write_jsonl(path: Path, n: int) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in documents(n)))
    return path


# what needs no cluster


def test_a_worker_writes_the_shards_of_the_local_engine(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 40)
    local = ragq.build(source, tmp_path / "local", model=words_model, codec="INT8", shard_rows=15)
    state = dict(local.compressor.state)
    fingerprint = load_embedder(words_model).fingerprint
    job = Job(tmp_path / "apart", str(tmp_path), words_model, {}, fingerprint, 0, spec="INT8", state=state)
    locate(tmp_path / "apart").mkdir()
    passages, counts, notes = Worker(job).read("passages-1.arrow", read(source))
    assert counts.read == 40 and notes == [] and passages.sum() == 40
    cuts = cuts_of([passages], 15)
    pieces = (("passages-1.arrow", 40),)
    job = Job(
        tmp_path / "apart", ".", words_model, {}, fingerprint, pieces=pieces, cuts=tuple(cuts),
        prefix="00000001", spec="INT8", state=state, normalize=True,
    )  # fmt: skip
    told: list[int] = []
    spans = list(zip([0, *cuts], cuts, strict=False))
    entries = [Worker(job).shard(number, *span, told.append) for number, span in reversed(list(enumerate(spans, 1)))]
    assert tuple(reversed(entries)) == local.manifest.shards
    assert told == [10, 15, 15]


@pytest.mark.parametrize("shard_rows", [1, 3, 7, 100])
def test_pieces_are_cut_as_a_whole_is(shard_rows: int) -> None:
    counts = np.random.default_rng(0).integers(1, 6, 50)
    cuts, rows = [0], 0
    for n in counts:  # a shard ends with the document that fills it
        if rows - cuts[-1] >= shard_rows:
            cuts.append(rows)
        rows += int(n)
    expected = [*cuts[1:], rows]
    for pieces in ([counts], np.array_split(counts, 7), [counts[:0], counts, counts[:0]]):
        assert cuts_of(pieces, shard_rows) == expected
    assert cuts_of([], shard_rows) == []


def test_the_parts_of_a_source_are_the_source(tmp_path: Path) -> None:
    (tmp_path / "files" / "sub").mkdir(parents=True)
    for i in range(9):
        (tmp_path / "files" / ("sub" if i % 2 else ".") / f"{i}.txt").write_text(f"text {i}")
    (tmp_path / "files" / ".hidden").write_text("no")
    (tmp_path / "records").mkdir()
    write_jsonl(tmp_path / "records" / "a.jsonl", 5)
    (tmp_path / "records" / "b.jsonl").write_text('{"id": 7, "text": "seven"}\n{"id": "e", "text": " "}\n')
    for name in ("files", "records"):
        whole, reader = read(tmp_path / name), read(tmp_path / name)
        expected = list(whole)
        found = []
        for part in reader.parts():
            found += list(part.part())
            reader.take_counts(part.counts, part.notes)
        assert found == expected
        assert (reader.counts.read, reader.counts.skipped) == (whole.counts.read, whole.counts.skipped)
        assert reader.notes == whole.notes


def test_engines_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'engine' must be one of local, ray. Got 'spark'"):
        ragq.build(["a"], tmp_path / "x", model=words_model, engine="spark")
    with pytest.raises(InvalidArgumentError, match="'workers' goes with engine='ray' only"):
        ragq.build(["a"], tmp_path / "x", model=words_model, workers=3)


# with a cluster of two workers


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of this process, so that not each build starts one."""
    from ragq.pipelines.engines.cluster import Cluster

    cluster = Cluster()
    yield
    cluster.close()


slow = pytest.mark.slow


@slow
def test_ready_embeddings_give_the_same_index(cluster: None, shared: Path, tmp_path: Path) -> None:
    scifact = shared / "beir" / "scifact"
    options = {"embeddings": scifact / "corpus.minilm.npy", "codec": "PCA64,PQ16x8", "shard_rows": 700}
    local = ragq.build(scifact, tmp_path / "local", **options)
    told: list[tuple[str, int, int | None]] = []
    progress = lambda *stage: told.append(stage)  # noqa: E731
    remote = ragq.build(scifact, tmp_path / "ray", engine="ray", workers=2, progress=progress, **options)
    same_index(remote, local, np.load(scifact / "queries.minilm.npy")[:50])
    assert told[-1] == ("index", 5183, 5183)
    assert remote.report.documents == local.report.documents == 5183


@slow
def test_embedding_gives_the_same_index(cluster: None, shared: Path, tmp_path: Path) -> None:
    lines = (shared / "beir" / "scifact" / "corpus.jsonl").read_text().splitlines()[:120]
    (tmp_path / "corpus").mkdir()
    for i in range(2):
        (tmp_path / "corpus" / f"{i}.jsonl").write_text("\n".join(lines[60 * i : 60 * i + 60]) + "\n")
    options = {"codec": "F16", "shard_rows": 50, "chunk_tokens": 200}
    local = ragq.build(tmp_path / "corpus", tmp_path / "local", **options)
    remote = ragq.build(tmp_path / "corpus", tmp_path / "ray", engine="ray", workers=2, **options)
    assert len(remote.manifest.shards) > 2
    same_index(remote, local, np.load(shared / "beir" / "scifact" / "queries.minilm.npy")[:50])
    assert remote.search("which drugs lower blood pressure?", 3) == local.search("which drugs lower blood pressure?", 3)


def dying_model(folder: Path, deaths: int) -> Callable[[Sequence[str]], np.ndarray]:
    """Return `words_model`, in a form that kills its process in the middle of a shard, so many times."""
    from tests.indexes import words_model as embed

    def model(texts: Sequence[str]) -> np.ndarray:
        if any(text.startswith("title 33") for text in texts):
            for i in range(deaths):
                try:
                    (folder / f"death-{i}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return embed(texts)

    return model


@slow
def test_the_death_of_a_worker_costs_only_its_shard(cluster: None, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", 60)
    local = ragq.build(source, tmp_path / "local", model=words_model, codec="F32", shard_rows=10)
    options = {"codec": "F32", "shard_rows": 10, "engine": "ray", "workers": 2}
    remote = ragq.build(source, tmp_path / "ray", model=dying_model(tmp_path, 2), **options)
    assert {path.name for path in tmp_path.glob("death-*")} == {"death-0", "death-1"}
    same_index(remote, local, words_model(["text 1", "of 2"]))
    left = {path.name for path in (tmp_path / "ray" / "shards").iterdir()}
    assert left == {Path(file.name).name for shard in remote.manifest.shards for file in shard.files}


@slow
def test_a_shard_that_kills_every_worker_is_given_up_and_the_rest_is_kept(cluster: None, tmp_path: Path) -> None:
    from ragq.errors import StorageError

    source = write_jsonl(tmp_path / "corpus.jsonl", 60)
    options = {"codec": "F32", "shard_rows": 10, "engine": "ray", "workers": 1}
    with pytest.raises(StorageError, match=r"has ended its worker 4 times.*Go on with --resume"):
        ragq.build(source, tmp_path / "ray", model=dying_model(tmp_path, 99), **options)
    with pytest.raises(InvalidArgumentError, match="is not finished"):
        ragq.open(tmp_path / "ray")
    body = json.loads((tmp_path / "ray" / "build" / "progress.json").read_text())
    assert 0 < len(body["shards"]) < 6


@slow
def test_errors_of_workers_are_those_of_the_local_engine(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    write_jsonl(tmp_path / "corpus" / "a.jsonl", 5)
    (tmp_path / "corpus" / "b.jsonl").write_text('{"id": "a", "text": "a"}\n{"id": "b"\n')
    with pytest.raises(InvalidArgumentError, match=r"b.jsonl:2: not valid JSON"):
        ragq.build(tmp_path / "corpus", tmp_path / "x", model=words_model, engine="ray")
    x = np.ones((20, 4), np.float32)
    x[13, 2] = np.nan
    with pytest.raises(InvalidArgumentError, match="The embedding of 'd13' holds NaN"):
        ragq.build(None, tmp_path / "x", embeddings=x, ids=[f"d{i}" for i in range(20)], engine="ray", shard_rows=5)
    source = (f"text {i}" for i in range(20))
    with pytest.raises(InvalidArgumentError, match="cannot be sent to them"):
        ragq.build(source, tmp_path / "x", embeddings=x[:13], engine="ray")


@slow
def test_from_a_store_into_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path) -> None:
    import ray

    server = ObjectStore()
    server.client().create_bucket(Bucket=BUCKET)
    for name, value in (server.environment | {"RAGQ_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    if ray.is_initialized():  # its workers have no credentials
        ray.shutdown()
    (tmp_path / "corpus").mkdir()
    for i in range(3):
        source = write_jsonl(tmp_path / "corpus" / f"{i}.jsonl", 30)
        source.write_text(source.read_text().replace('"d', f'"{i}-d'))
        server.client().put_object(Bucket=BUCKET, Key=f"corpus/{i}.jsonl", Body=source.read_bytes())
    options = {"model": words_model, "codec": "INT8", "shard_rows": 20}
    local = ragq.build(tmp_path / "corpus", tmp_path / "local", **options)
    remote = ragq.build(f"s3://{BUCKET}/corpus", f"s3://{BUCKET}/x.ragq", engine="ray", workers=2, **options)
    assert content(remote) == content(local)
    assert [s.codes.xxh3 for s in remote.manifest.shards] == [s.codes.xxh3 for s in local.manifest.shards]
    assert next(iter(remote)).source == f"s3://{BUCKET}/corpus/0.jsonl:1"
    remote.verify()
    assert server.names("x.ragq") == {"manifest.json"} | {file.name for file in remote.manifest.files}
    server.close()
