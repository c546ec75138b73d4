"""Laws of multi-vector indexes: they equal a dict and MaxSim; all else is as in an index of one vector a passage."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import ragq
from ragq.errors import CorruptIndexError, IncompatibleIndexError, InvalidArgumentError
from ragq.manifest import MANIFEST, MULTI_VECTOR_FORMAT, checksum
from ragq.pipelines.readers.tokens import open_tokens
from ragq.retrievers.langchain import RagqRetriever, RagqVectorStore
from ragq.tokens import MultiVectorCodes, TokenEmbeddings
from tests.indexes import expected_files, on_disk, small_shards
from tests.token_indexes import DIM, make_tokens, maxsim, tokens, word_vectors

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
QUERIES = ["alpha beta", "theta", "gamma zeta eta alpha", ""]
IDS = [f"id {i}" for i in range(12)]


def records(n: int, first: int = 0, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {"id": f"d{i}", "text": " ".join(rng.choices(WORDS, k=1 + i % 6)), "lang": "de" if i % 2 else "en", "n": i}
        for i in range(first, first + n)
    ]


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """Return a folder whose files are in memory, where there is such a file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


def check(index: ragq.Index, known: dict[str, dict]) -> None:
    """Compare all that an index shows with a dict and MaxSim over the vectors that its codec keeps."""
    assert [d.id for d in index] == list(known)
    assert [d.text for d in index.get(list(known))] == [d["text"] for d in known.values()]
    compressor = index.compressor
    kept = tokens([d["text"] for d in known.values()])
    if known:
        codes = compressor.encode(kept)
        check_codes(index, codes)
        kept = compressor.decode(codes)
    scores = maxsim(tokens(QUERIES), kept)
    for where, allowed in [(None, [True] * len(known)), ({"lang": "en"}, [d["lang"] == "en" for d in known.values()])]:
        found = index.search_embeddings(tokens(QUERIES), 5, where, exact=True)
        for q in range(len(QUERIES)):
            ranked = [i for i in range(len(known)) if allowed[i] and scores[q, i] > -np.inf]
            best = sorted(ranked, key=lambda i: (-scores[q, i], i))[:5]
            names = [list(known)[i] for i in best]
            np.testing.assert_allclose(found.scores[q, : len(best)], scores[q, best], rtol=1e-5, atol=1e-5)
            assert (found.ids[q, len(best) :] == None).all()  # noqa: E711
            if str(compressor) == "F32":  # small integers: ties are ties
                assert found.ids[q, : len(best)].tolist() == names
            for name, score in zip(found.ids[q, : len(best)], found.scores[q], strict=False):
                assert abs(scores[q, list(known).index(name)] - score) < 1e-4


def check_codes(index: ragq.Index, expected: MultiVectorCodes) -> None:
    """Compare the codes in the shards, read in two parts each, with those of the live documents."""
    parts = []
    for shard in index._view.snapshot.shards:
        for a, b in ((0, shard.rows // 2), (shard.rows // 2, shard.rows)):
            live = np.ones(b - a, bool) if shard.deleted is None else ~shard.deleted[a:b]
            parts.append(shard.codes(a, b)[live])
    stored = MultiVectorCodes.concatenate(parts)
    for name in ("codes", "offsets", "first"):
        assert np.array_equal(getattr(stored, name), getattr(expected, name)), name


@pytest.mark.parametrize(
    ("codec", "first_stage"),
    [("F32", None), ("POOL2,F16", "MUVERA(2,2,4),F32"), ("POOL50%,FP8", None), ("POOL2,FP8", "LEMUR2(2),F32")],
)
@pytest.mark.parametrize("seed", range(2))
def test_any_sequence_of_changes_equals_a_dict(
    memory_path: Path, seed: int, codec: str, first_stage: str | None
) -> None:
    rng = random.Random(seed)

    def some(n: int) -> list[dict]:
        texts = [" ".join(rng.choices(WORDS, k=rng.choice([0, 1, 2, 5, 9]))) or "-" for _ in range(n)]
        names = rng.sample(IDS, n)
        return [{"id": i, "text": t, "lang": rng.choice(["en", "de"])} for i, t in zip(names, texts, strict=True)]

    first = some(8)
    first[0]["text"] = "alpha beta gamma"  # something to fit on
    known = {d["id"]: d for d in first}
    index = make_tokens(memory_path / "index", first, codec=codec, first_stage=first_stage, shard_rows=3)
    with small_shards(3):
        for _ in range(8):
            change = rng.choice(["add", "ready", "delete", "filter", "compact", "reopen"])
            if change in ("add", "ready"):
                new = some(rng.randint(1, 4))
                ready = word_vectors([d["text"] for d in new]) if change == "ready" else None
                index.add(new, embeddings=ready)
                for d in new:
                    known.pop(d["id"], None)
                    known[d["id"]] = d
            elif change == "delete":
                gone = rng.sample(IDS, 2)
                assert index.delete(gone) == sum(name in known for name in gone)
                known = {name: d for name, d in known.items() if name not in gone}
            elif change == "filter":
                gone = [name for name, d in known.items() if d["lang"] == "de"]
                assert index.delete(where={"lang": "de"}) == len(gone)
                known = {name: d for name, d in known.items() if name not in gone}
            elif change == "compact":
                index.compact()
            else:
                index.close()
                index = ragq.open(memory_path / "index", mode="w", model=word_vectors)
            check(index, known)
    index.verify()
    assert on_disk(memory_path / "index") == expected_files(memory_path / "index")


def test_text_and_ready_tokens_give_the_same_index(tmp_path: Path) -> None:
    corpus = records(20)
    options = {"codec": "POOL2,FP8", "first_stage": "MUVERA(2,1,4),FP8", "shard_rows": 8}
    made = make_tokens(tmp_path / "text", corpus, **options)
    values = tokens([d["text"] for d in corpus])
    np.savez(tmp_path / "x.npz", values=values.values, offsets=values.offsets)
    np.save(tmp_path / "x.npy", values.values)
    np.save(tmp_path / "x.offsets.npy", values.offsets)
    for ready in (values, list(values), tmp_path / "x.npz", str(tmp_path / "x.npy")):
        index = make_tokens(tmp_path / "ready", corpus, embeddings=ready, **options)
        files = [[f.xxh3 for s in i.manifest.shards for f in s.files if ".docs." not in f.name] for i in (index, made)]
        assert files[0] == files[1]
    assert len(made.manifest.shards) == 3


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_ready_tokens_come_by_any_range(tmp_path: Path, name: str) -> None:
    values = TokenEmbeddings.from_list([np.full((i % 4, 3), i, np.float32) for i in range(50)])
    np.savez_compressed(tmp_path / "x.npz", values=values.values, offsets=values.offsets)
    np.save(tmp_path / "x.npy", values.values)
    np.save(tmp_path / "x.offsets.npy", values.offsets)
    opened = open_tokens(tmp_path / name, [str(i) for i in range(50)])
    for start, stop in [(0, 7), (7, 20), (3, 5), (20, 20), (49, 50), (0, 50)]:
        assert np.array_equal(opened.tokens(start, stop).values, values[start:stop].values)
    assert np.array_equal(opened.take_tokens(np.array([1, 30, 31])).values, values[[1, 30, 31]].values)
    assert (len(opened), opened.dim, list(opened.ids())[-1]) == (50, 3, "49")


def test_an_interrupted_build_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    corpus, options = records(40), {"codec": "POOL2,PQ2x4", "shard_rows": 6}
    whole = make_tokens(tmp_path / "whole", corpus, **options)
    calls = []

    def interrupted(texts: list[str]) -> list[np.ndarray]:
        calls.append(len(texts))
        return word_vectors(texts)

    interrupted.__qualname__ = word_vectors.__qualname__

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "index" and done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_tokens(tmp_path / "index", corpus, model=interrupted, progress=stop, **options)
    index = make_tokens(tmp_path / "index", corpus, model=interrupted, resume=True, **options)
    assert [n for n in calls if n > 1] == [40], "the sample holds all passages, and none is embedded twice"
    assert [s.files for s in index.manifest.shards] == [s.files for s in whole.manifest.shards]
    assert len(whole.manifest.shards) > 3


def test_a_shard_is_as_large_as_its_writer_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fitting", "changes", "token_build"):
        monkeypatch.setattr(f"ragq.pipelines.{module}.SHARD_BYTES", 1024)
    corpus = [{"id": str(i), "text": " ".join(WORDS)} for i in range(20)]  # 8 vectors of 32 bytes each
    index = make_tokens(tmp_path / "index", corpus)
    assert [s.rows for s in index.manifest.shards] == [4] * 5
    index.add([{"id": f"new {i}", "text": " ".join(WORDS)} for i in range(9)])
    index.delete(["0"])
    assert index.compact() and all(s.rows <= 8 for s in index.manifest.shards)
    assert len(index) == 28 and index.search("alpha", k=50)[0].text == " ".join(WORDS)


def test_a_shard_counts_the_codes_of_its_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fitting", "changes", "token_build"):
        monkeypatch.setattr(f"ragq.pipelines.{module}.SHARD_BYTES", 1024)
    ready = tokens(["alpha"] * 30)  # 32 bytes each, and 64 bytes of a first-stage code
    options = {"codec": "F32", "first_stage": "MUVERA(2,1,4)", "metric": "ip", "multi_vector": True}
    index = ragq.build(None, tmp_path / "index", embeddings=ready, ids=[str(i) for i in range(30)], **options)
    assert index.compressor.code_sizes_at(DIM) == (32, 64)
    assert (index.compressor.code_size, index.compressor.first_code_size) == (32, 64)
    assert [s.rows for s in index.manifest.shards] == [10] * 3


def test_shards_of_longer_documents_than_before_are_no_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fitting", "changes", "token_build"):
        monkeypatch.setattr(f"ragq.pipelines.{module}.SHARD_BYTES", 1024)
    monkeypatch.setattr("ragq.pipelines.token_feeds.BATCH_BYTES", 2 * 256 * DIM * 4)  # two documents at once
    index = make_tokens(tmp_path / "index", [{"id": str(i), "text": "alpha"} for i in range(20)])
    index.add([{"id": f"long {i}", "text": " ".join(WORDS)} for i in range(20)])
    assert max(s.tokens.rows for s in index.manifest.shards) * DIM * 4 <= 1024 + 2 * len(WORDS) * DIM * 4
    assert len(index) == 40


def test_long_documents_are_cut_into_passages_and_change_whole(tmp_path: Path) -> None:
    rng = random.Random(0)
    corpus = [{"id": f"d{i}", "text": " ".join(rng.choices(WORDS, k=40))} for i in range(4)]
    index = make_tokens(tmp_path / "index", corpus, chunk_tokens=10, chunk_overlap=2, shard_rows=5)
    assert index.manifest.rows > 16 and [d.text for d in index] == [d["text"] for d in corpus]
    hits = index.search("alpha beta", k=1000)
    assert len(hits) == len({h.id for h in hits}) == index.manifest.rows and {"d3#0", "d3#1"} < {h.id for h in hits}
    for hit in hits:
        (score,) = maxsim(tokens(["alpha beta"]), tokens([hit.text]))[0]
        assert hit.score == pytest.approx(score)
    index.add([{"id": "d1", "text": "beta"}])
    index.delete(["d0"])
    assert index.compact() and len(index) == 3
    assert {h.document_id for h in index.search("alpha beta", k=1000)} == {"d1", "d2", "d3"}
    assert [d.text for d in index] == [corpus[2]["text"], corpus[3]["text"], "beta"]


# The same calls


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ragq.Index:
    path = tmp_path_factory.mktemp("multi") / "index"
    return make_tokens(path, records(30), codec="POOL3,FP8", first_stage="MUVERA(4,2,4),FP8", shard_rows=8)


def test_search_is_the_same_call(built: ragq.Index) -> None:
    hit = built.search("alpha beta", k=1)[0]
    ids = built.search_embeddings(tokens(["alpha beta"]), 1, candidates=1000).ids
    assert hit.document_id == ids[0, 0] and hit.id == f"{hit.document_id}#0" and hit.metadata["n"] >= 0
    many = built.search(["alpha", "beta"], k=3, where={"lang": "en"}, candidates=5)
    assert [len(hits) for hits in many] == [3, 3] and {h.metadata["lang"] for hits in many for h in hits} == {"en"}
    array = word_vectors(["alpha beta"])[0]
    for x in (array, [array], array[None], tokens(["alpha beta"])):
        assert built.search_embeddings(x, 4).ids.tolist() == built.search_embeddings([array], 4).ids.tolist()


def test_the_stages_after_the_search_work(built: ragq.Index) -> None:
    assert len(built.search("alpha beta", k=4, select="mmr")) == 4
    assert len(built.search("alpha beta", k=4, expand="neighbours")) == 4
    hits = built.search("alpha", k=3, rerank=lambda query, texts: [text.count("alpha") for text in texts])
    assert hits[0].score == max(h.score for h in hits) == max(d.text.count("alpha") for d in built)
    vectors = built.reconstruct(hits)
    assert isinstance(vectors, TokenEmbeddings) and len(vectors) == 3 and vectors.dim == DIM
    assert np.abs(vectors[0]).sum() > 0 and vectors.counts.max() <= 3


def test_all_candidates_are_an_exact_search(built: ragq.Index) -> None:
    queries = tokens(["alpha beta gamma", "eta theta"])
    exact = built.search_embeddings(queries, 5, exact=True)
    assert np.array_equal(built.search_embeddings(queries, 5, candidates=30).ids, exact.ids)
    few = built.search_embeddings(queries, 5, candidates=1)  # k at least
    assert (few.ids != None).all()  # noqa: E711


def test_info_says_what_a_document_weighs(built: ragq.Index) -> None:
    info = built.info()
    assert (info["format"], info["code_bytes"], info["passages"]) == (MULTI_VECTOR_FORMAT, DIM, 30)
    facts, folder = info["multi_vector"], built.path
    shards = built.manifest.shards
    assert (
        facts["vectors"]
        == sum(s.tokens.rows for s in shards)
        == sum(built.compressor.encode(tokens([d.text for d in built])).counts)
    )
    parts = {
        "vectors": [s.codes.name for s in shards],
        "first_stage": [s.tokens.first.name for s in shards],
        "offsets": [s.tokens.offsets.name for s in shards],
    }
    for part, names in parts.items():
        assert facts["bytes_per_document"][part] == round(sum((folder / n).stat().st_size for n in names) / 30, 2)
    assert facts["bytes_per_document"]["total"] == pytest.approx(sum(facts["bytes_per_document"][p] for p in parts))
    assert info["total_bytes"] == sum((folder / n).stat().st_size for n in on_disk(folder) if n != "write.lock")


def test_langchain_reads_and_writes_it(built: ragq.Index, tmp_path: Path) -> None:
    retriever = RagqRetriever(index=built, k=2, search={"candidates": 30})
    assert [d.metadata["document_id"] for d in retriever.invoke("alpha")] == [
        h.document_id for h in built.search("alpha", k=2, candidates=30)
    ]
    store = RagqVectorStore(word_vectors, tmp_path / "store", multi_vector=True, codec="F32")
    names = store.add_texts(["alpha beta", "gamma delta", "eta"], [{"n": 1}, {"n": 2}, {"n": 3}], ids=["a", "b", "c"])
    assert names == ["a", "b", "c"] and store.get_by_ids(["b"])[0].page_content == "gamma delta"
    (best, score), *_ = store.similarity_search_with_score("gamma delta", k=2)
    assert best.id == "b" and score == pytest.approx(2.0, abs=1e-5)  # unit vectors, two words
    relevant = store.similarity_search_with_relevance_scores("gamma delta", k=3)
    assert relevant[0][1] == pytest.approx(1, abs=1e-5) and all(0 <= r <= 1 for _, r in relevant)
    assert [d.id for d in store.similarity_search("alpha", k=3, filter={"n": {"$gte": 2}})] != []
    assert len(store.max_marginal_relevance_search("alpha", k=2)) == 2
    assert store.embeddings is None
    store.delete(["b"])
    again = RagqVectorStore(word_vectors, tmp_path / "store", multi_vector=True)
    assert {d.id for d in again.similarity_search("gamma", k=5)} == {"a", "c"}


# Bad input


def test_a_document_without_tokens_is_kept_but_not_found(tmp_path: Path) -> None:
    corpus = [*records(5), {"id": "empty", "text": "  ", "lang": "en"}]
    for options in ({}, {"codec": "POOL2,FP8", "first_stage": "MUVERA(2,2,4),FP8"}):
        index = make_tokens(tmp_path / "index", corpus, embeddings=word_vectors([d["text"] for d in corpus]), **options)
        assert "1 passages have no vectors" in index.report.notes[0]
        assert index.info()["multi_vector"]["passages_without_vectors"] == 1
        assert index.get("empty")[0].id == "empty" and len(index) == 6
        assert "empty" not in {h.document_id for h in index.search("alpha", k=10)}
        assert len(index.search("alpha", k=10)) == 5
        assert index.search("alpha", k=10, where={"id": "empty"}) == []
        assert index.delete("empty") == 1


def test_documents_that_are_all_without_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="at least 1 embeddings"):
        make_tokens(tmp_path / "index", [{"id": "a", "text": "x"}], embeddings=[np.empty((0, DIM))])


def test_a_query_without_tokens_finds_nothing(built: ragq.Index) -> None:
    assert built.search("") == [] and built.search(["", "alpha"], k=2)[0] == []
    found = built.search_embeddings(TokenEmbeddings.from_list([np.empty((0, DIM))]), 3)
    assert found.ids.tolist() == [[None] * 3] and (found.scores == -np.inf).all()


def test_a_document_of_ten_thousand_tokens_is_one_document(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    long = rng.standard_normal((10_000, DIM)).astype(np.float32)
    short = [rng.standard_normal((3, DIM)).astype(np.float32) for _ in range(4)]
    for codec, kept in (("F16", 10_000), ("POOL32(kmeans),FP8", 32)):
        index = ragq.build(
            out=tmp_path / codec, embeddings=[*short, long], ids=list("abcde"), multi_vector=True, codec=codec
        )
        assert index.info()["multi_vector"]["vectors"] == kept + 12
        assert index.search_embeddings(long[:20], 1).ids[0, 0] == "e"
        index.verify()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "POOL0,F32"}, "POOL"),
        ({"codec": "nonsense"}, "nonsense"),
        ({"first_stage": "PQ4x4"}, "first stage"),
        ({"first_stage": "MUVERA(2,2,4),PQ4x8"}, "needs at least 256 passages to fit. Got 5. Add documents"),
        ({"multi_vector": False, "first_stage": "MUVERA(2,2,4)"}, "belongs to a multi-vector index"),
        ({"budget": 20, "codec": None}, "Got a budget of 20"),
        ({"metric": "l2"}, "Got the metric l2"),
        ({"engine": "ray"}, "engine='local'"),
        ({"truncate_dim": 4, "model": "sentence-transformers/all-MiniLM-L6-v2"}, "are not cut"),
        ({"model": 7}, r"a function from list\[str\] to arrays of shape \(tokens, dim\). Got int"),
        ({"embeddings": np.ones((5, DIM))}, "must be an .npz"),
        ({"embeddings": [np.ones((2, DIM))] * 3}, "only 3|3 embeddings"),
        ({"embeddings": [np.ones((2, DIM)), np.ones((2, 3))] * 3}, r"Document 1 must have shape \(tokens, 8\)"),
        ({"embeddings": [np.full((2, DIM), np.nan)] * 5}, "finite"),
        ({"embeddings": [np.ones((2, 3))] * 5}, "have 3 dimensions, but the model has 8"),
        ({"embeddings": "missing.npz"}, "No such file"),
    ],
)
def test_what_cannot_be_indexed_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make_tokens(tmp_path / "index", records(5), **options)
    assert not (tmp_path / "index" / MANIFEST).exists()


def test_what_cannot_be_asked_is_refused(built: ragq.Index, tmp_path: Path) -> None:
    for x, message in [
        (np.ones((2, DIM + 1)), "dimensions|shape"),
        (TokenEmbeddings.from_list([np.ones((1, 5))]), "8 dimensions. Got 5"),
        (np.ones(DIM), r"arrays of shape \(tokens, 8\)"),
        ("text", "Got str"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            built.search_embeddings(x)
    for option in ({"nprobe": 3}, {"ef_search": 3}, {"candidates": 0}):
        with pytest.raises(InvalidArgumentError, match=r"candidates|nprobe"):
            built.search("alpha", **option)
    with pytest.raises(InvalidArgumentError, match="first stage"):
        ragq.open(built.path, mode="w", model=word_vectors).restructure("ivf")
    with pytest.raises(InvalidArgumentError, match="dimensions"):
        ragq.open(built.path, mode="w", model=word_vectors).add([{"id": "x"}], embeddings=[np.ones((2, 3))])
    single = ragq.build(out=tmp_path / "single", embeddings=np.eye(2), ids=["a", "b"], codec="F32")
    with pytest.raises(InvalidArgumentError, match="first stage of a multi-vector index"):
        single.search_embeddings(np.ones((1, 2)), candidates=5)


def test_a_model_of_other_dimensions_is_incompatible(built: ragq.Index) -> None:
    with pytest.raises(IncompatibleIndexError, match=r"8 dimensions.*3"):
        ragq.open(built.path, model=lambda texts: [np.ones((1, 3)) for _ in texts])


def altered(path: Path, change: Any) -> None:
    """Rewrite a manifest with something changed, its checksum right."""
    body = json.loads((path / MANIFEST).read_text())
    del body["checksum"]
    change(body)
    (path / MANIFEST).write_text(json.dumps(body | {"checksum": checksum(body)}))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("multi_vector"),
        lambda body: body["multi_vector"].update(first_layout="rows:5x8+0"),
        lambda body: body["multi_vector"].update(first_layout="no layout"),
        lambda body: body["multi_vector"].update(first_stage=None, first_layout=None),
        lambda body: body["multi_vector"].update(first_stage="MUVERA(9,9,9),FP8"),
        lambda body: body["multi_vector"].update(first_stage=7),
        lambda body: body.update(spec="PQ1x8"),
        lambda body: body["shards"][0].pop("tokens"),
        lambda body: body["shards"][0]["tokens"].update(rows=3),
        lambda body: body["shards"][0]["tokens"].update(rows=1 << 40),
        lambda body: body["shards"][0]["tokens"].update(first=None),
        lambda body: body["shards"][0]["tokens"].pop("offsets"),
        lambda body: body["shards"][0]["tokens"]["offsets"].update(name="../elsewhere"),
    ],
)
def test_an_altered_manifest_is_corrupt(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "index"
    make_tokens(path, records(6), codec="FP8", first_stage="MUVERA(2,2,4),FP8").close()
    altered(path, change)
    with pytest.raises(CorruptIndexError), ragq.open(path, model=word_vectors) as index:
        index.verify()


@pytest.mark.parametrize("offsets", [[0, 3, 2, 6], [1, 2, 3, 6], [0, 2, 4, 7]])
def test_offsets_that_cannot_be_are_corrupt(tmp_path: Path, offsets: list[int]) -> None:
    path = tmp_path / "index"
    index = make_tokens(path, [{"id": str(i), "text": "alpha beta"} for i in range(3)])
    name = index.manifest.shards[0].tokens.offsets.name
    with pa.ipc.new_file(path / name, pa.schema([("start", pa.uint32())])) as writer:
        writer.write_batch(pa.record_batch([pa.array(offsets, pa.uint32())], names=["start"]))
    with pytest.raises(CorruptIndexError, match="offsets"), ragq.open(path, model=word_vectors) as opened:
        opened.search("alpha")
    for file in index.manifest.files:
        (path / file.name).write_bytes((path / file.name).read_bytes()[:-1])
        with pytest.raises(CorruptIndexError):
            ragq.open(path, model=word_vectors).verify()
