"""Laws of structures: they find what a scan of the same codes finds, whatever was deleted, filtered or added."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner

import ragq
from ragq.cli import cli
from ragq.compressors.codebooks import kmeans
from ragq.compressors.sm2 import SM2
from ragq.errors import CorruptIndexError, IncompatibleIndexError, InvalidArgumentError
from ragq.manifest import MANIFEST, Manifest
from ragq.pipelines.restructure import tune_ef
from ragq.retrievers.structures import _graph, graph, ivf, sm2graph
from ragq.retrievers.structures.auto import choose
from tests.indexes import expected_files, on_disk, small_shards

DIM, N = 16, 2000
CENTRES = np.random.default_rng(1).standard_normal((40, DIM))
ALL_LISTS = 1 << 20
SHARES = {"half": 2, "tenth": 10, "hundredth": 100, "thousandth": 1000}


def vectors(n: int, seed: int = 0) -> np.ndarray:
    """Return points around 40 centres; every fifth comes twice, so that scores tie."""
    rng = np.random.default_rng(seed)
    x = CENTRES[rng.integers(40, size=n)] + 0.3 * rng.standard_normal((n, DIM))
    x[4::5] = x[3::5][: len(x[4::5])]
    return x.astype(np.float32)


def records(n: int, first: int = 0) -> list[dict]:
    """Return documents whose fields keep a half, a tenth ... of them."""
    fields = [{name: i % every == 0 for name, every in SHARES.items()} for i in range(first, first + n)]
    return [{"id": f"d{first + i}", "text": "t", "never": False, **field} for i, field in enumerate(fields)]


QUERIES = vectors(12, 9)


def build(path: Path, codec: str = "PQ8x4", metric: str = "cosine") -> ragq.Index:
    ragq.build(records(N), path, embeddings=vectors(N), codec=codec, metric=metric, shard_rows=700).close()
    return ragq.open(path, mode="w")


@pytest.fixture(scope="module", autouse=True)
def graphs_even_for_few_rows() -> Iterator[None]:
    """Let graphs be walked where a scan would be faster."""
    with mock.patch.object(graph, "SCAN_SHARE", 8):
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder a structure: 2,000 rows in three shards."""
    root = tmp_path_factory.mktemp("structures")
    build(root / "none").close()
    paths = {"none": root / "none"}
    for kind in ("ivf", "hnsw", "sm2graph"):
        paths[kind] = Path(shutil.copytree(root / "none", root / kind))
        with ragq.open(paths[kind], mode="w") as index:
            assert index.restructure(kind).kind == kind
    return paths


@pytest.fixture(params=["ivf", "hnsw", "sm2graph"])
def index(request: pytest.FixtureRequest, built: dict[str, Path], tmp_path: Path) -> ragq.Index:
    return ragq.open(shutil.copytree(built[request.param], tmp_path / "s.ragq"), mode="w")


def same(index: ragq.Index, k: int = 10, where: dict | None = None, **probe: int) -> None:
    """Check that a search that goes all the way gives what the scan gives, in its order."""
    found = index.search_embeddings(QUERIES, k, where, **probe)
    truth = index.search_embeddings(QUERIES, k, where, exact=True)
    np.testing.assert_array_equal(found.ids, truth.ids)
    np.testing.assert_allclose(found.scores, truth.scores, rtol=1e-5)


def everything(index: ragq.Index) -> dict[str, int]:
    """Return how to search all of a structure."""
    assert index.manifest.structure is not None
    return {"nprobe": ALL_LISTS} if index.manifest.structure.kind == "ivf" else {"ef_search": N}


def recall(index: ragq.Index) -> float:
    truth = index.search_embeddings(QUERIES, 10, exact=True).scores[:, 9:]
    return float((index.search_embeddings(QUERIES, 10).scores >= truth - 1e-6).mean())


@pytest.mark.parametrize("where", [None, *SHARES, "never"])
def test_a_filtered_search_is_exact_in_all_lists_and_always_finds_k(index: ragq.Index, where: str | None) -> None:
    index.delete([f"d{i}" for i in range(0, N, 3)])
    condition = None if where is None else {where: True}
    same(index, where=condition, **everything(index))
    kept = {None: N, **{name: N // every for name, every in SHARES.items()}, "never": 0}[where]
    qualifying = sum(1 for d in index if where is None or d.metadata[where])
    assert qualifying <= kept
    for k in (1, 10, 50):
        for probe in ({}, {"nprobe": 1, "ef_search": 1}):
            found = index.search_embeddings(QUERIES, k, condition, **probe)
            assert ((found.ids != None).sum(axis=1) == min(k, qualifying)).all()  # noqa: E711
            assert all(len(set(row[:qualifying])) == min(k, qualifying) for row in found.ids)


def test_the_tuned_search_reaches_its_recall_with_a_part_of_the_rows(index: ragq.Index) -> None:
    parameters = index.info()["structure"]
    assert parameters["recall"] >= 0.95
    assert recall(index) >= 0.9
    assert parameters.get("nprobe", 0) < parameters.get("nlist", 1)


@pytest.mark.parametrize("recall", [0.5, 0.95, 0.99])
def test_a_graph_is_tuned_to_the_fewest_candidates_without_searching_far(recall: float) -> None:
    needed = np.random.default_rng(0).lognormal(4, 1, (4096, 10))  # candidates with which each best row is found
    fewest, spent = np.quantile(needed, recall), []

    def search(ef: int, which: np.ndarray) -> np.ndarray:
        spent.append(ef * len(which) / 4096)
        return np.where(needed[which] <= ef, 0, -1).astype(np.float32)

    ef, found = tune_ef(search, np.zeros((4096, 10), np.float32), 10_000, recall)
    assert ef == pytest.approx(fewest, rel=0.01, abs=1)
    assert recall <= found == pytest.approx((needed <= ef).mean(), abs=0.001)
    assert sum(spent) < 6 * fewest
    for most in (1, 15, int(fewest) - 1):
        assert tune_ef(search, np.zeros((4096, 10), np.float32), most, recall) == (most + 1, 1)
    assert tune_ef(search, np.full((4096, 10), -np.inf, np.float32), 100, recall)[1] == 1


def test_documents_added_later_are_found_and_replaced_ones_are_not(index: ragq.Index) -> None:
    with small_shards(400):
        new = records(600, N - 300)  # half of them replace older ones
        index.add(new, embeddings=vectors(600, 5))
        same(index, **everything(index))
        same(index, where={"half": True}, **everything(index))
        assert index.info()["structure"]["scanned_rows"] == 600
        assert index.compact_due
        found = index.search_embeddings(vectors(600, 5), 1).ids[:, 0]
        assert sum(int(name[1:]) >= N for name in found) > 50  # only the scan beside the structure finds these
        assert index.compact()
        assert not index.compact()
    assert not index.compact_due
    assert index.info()["structure"]["scanned_rows"] == 0
    same(index, **everything(index))
    assert recall(index) >= 0.9


def test_a_shard_that_is_gone_leaves_the_others_where_they_were(index: ragq.Index) -> None:
    index.delete([f"d{i}" for i in range(700)])  # the whole first shard
    assert len(index.manifest.shards) == 2
    same(index, **everything(index))
    same(index, where={"tenth": True}, **everything(index))


@pytest.mark.parametrize("codec", ["F32", "VPQ10", "TQ4", "BIN", "RBQ1+INT8"])
def test_lists_hold_any_codes(codec: str, tmp_path: Path) -> None:
    with build(tmp_path / "s.ragq", codec, "ip") as index:
        index.restructure("ivf", nlist=20)
        if "+" not in codec:  # a refined scan takes candidates a shard, so that it may find a better row
            same(index, nprobe=ALL_LISTS)
        assert recall(index) >= 0.9
        one = index.search_embeddings(QUERIES[3], 10)
        np.testing.assert_array_equal(one.ids[0], index.search_embeddings(QUERIES, 10).ids[3])


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "sm2graph"])
def test_structures_know_distances(kind: str, tmp_path: Path) -> None:
    with build(tmp_path / "s.ragq", "INT8", "l2") as index:
        index.restructure(kind)
        same(index, **everything(index))
        same(index, where={"tenth": True})
        assert recall(index) >= 0.9


def test_many_lists_are_found_by_a_graph(tmp_path: Path) -> None:
    with build(tmp_path / "s.ragq") as index, mock.patch.object(ivf, "GRAPH_LISTS", 16):
        index.restructure("ivf", nlist=100)
        assert "graph" in index.manifest.structure.files  # type: ignore[union-attr]
        assert recall(index) >= 0.85
        same(index, **everything(index))


def test_long_lists_are_split() -> None:
    rng = np.random.default_rng(0)
    crowd, few = rng.normal(0, 1, (2000, 4)), np.repeat(rng.normal(0, 100, (7, 4)), 10, axis=0)
    x = np.concatenate([crowd, few]).astype(np.float32)
    found = np.concatenate([[crowd.mean(axis=0)], few[::10]]).astype(np.float32)  # one list holds nearly all rows
    with mock.patch.object(ivf, "kmeans", side_effect=lambda x, k, **rest: found if k == 8 else kmeans(x, k, **rest)):
        centroids = ivf.balanced_centroids(x, 8, 0)
    nearest = ((x[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    assert np.bincount(nearest).max() <= 3 * len(x) / 8
    same = np.ones((500, 4), np.float32)  # rows that are all the same cannot be split
    assert ivf.balanced_centroids(same, 4, 0).tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "sm2graph"])
def test_a_structure_depends_on_the_passages_and_not_on_where_they_lie(kind: str, tmp_path: Path) -> None:
    n, documents = 1200, records(1200)
    wide = np.random.default_rng(2).standard_normal((DIM, 64), dtype=np.float32)  # so that few two-bit codes tie
    x = vectors(n) @ wide
    changed, kept = np.arange(n) % 3 == 0, np.flatnonzero(np.arange(n) % 10 > 2)
    y = np.where(changed[:, None], vectors(n, 3) @ wide, x)
    mixed = np.random.default_rng(0).permutation(kept)
    paths = tmp_path / "old.ragq", tmp_path / "new.ragq"
    ragq.build(documents, paths[0], embeddings=x, codec="F32", shard_rows=500).close()
    ragq.build([documents[i] for i in mixed], paths[1], embeddings=y[mixed], codec="F32", shard_rows=300).close()
    with (
        ragq.open(paths[0], mode="w") as old,
        ragq.open(paths[1], mode="w") as new,
        mock.patch("ragq.retrievers.structures.hnsw.cpu_threads", return_value=1),  # more of them race
    ):
        old.restructure(kind, nlist=12)
        old.upsert([documents[i] for i in np.flatnonzero(changed)], embeddings=y[changed])
        old.delete([f"d{i}" for i in range(n) if i % 10 <= 2])
        assert old.compact_due and old.compact() and not old.compact_due
        new.restructure(kind, nlist=12)
        tuned = [index.info()["structure"] for index in (old, new)]
        for name in ("nprobe", "ef_search", "places"):
            assert tuned[0].get(name) == tuned[1].get(name)
        assert tuned[0]["recall"] == pytest.approx(tuned[1]["recall"], abs=0.003)  # a walk drops ties by row
        for probe in ({"nprobe": 1}, {"ef_search": 40}, {}):  # so few that another structure would find others
            found, expected = (index.search_embeddings(y[:300], 10, **probe).scores for index in (old, new))
            assert (found == expected).mean() > 0.95


def test_files_are_the_manifests_and_outlive_a_newer_structure_while_they_are_read(index: ragq.Index) -> None:
    path = index.path
    assert on_disk(path) == expected_files(path)
    reader = ragq.open(path)
    before = reader.search_embeddings(QUERIES, 5)
    files = {file.name for file in reader.manifest.structure.files.values()}  # type: ignore[union-attr]
    assert index.restructure("none").kind == "none"
    assert index.manifest.structure is None
    assert files <= on_disk(path)
    np.testing.assert_array_equal(reader.search_embeddings(QUERIES, 5).ids, before.ids)
    assert reader.verify() > 0
    reader.close()
    index.delete("d0")
    assert on_disk(path) == expected_files(path)
    assert not files & on_disk(path)
    same(index)


def test_a_build_that_dies_leaves_the_old_structure(index: ragq.Index) -> None:
    before, generation = index.search_embeddings(QUERIES, 5), index.manifest.generation
    with (
        mock.patch("ragq.pipelines.restructure.Builder.tune", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        index.restructure("ivf")
    assert on_disk(index.path) == expected_files(index.path)
    reopened = ragq.open(index.path)
    assert reopened.manifest.generation == generation
    np.testing.assert_array_equal(reopened.search_embeddings(QUERIES, 5).ids, before.ids)


def test_an_altered_or_missing_file_is_told(index: ragq.Index) -> None:
    assert index.manifest.structure is not None
    for file in index.manifest.structure.files.values():
        path = index.path / file.name
        whole = path.read_bytes()
        path.write_bytes(whole[:-20] + bytes(b ^ 255 for b in whole[-20:-10]) + whole[-10:])
        with pytest.raises(CorruptIndexError, match=path.name):
            ragq.open(index.path).verify()
        path.unlink()
        with pytest.raises(CorruptIndexError, match=path.name):
            ragq.open(index.path).search_embeddings(QUERIES, 5)
        path.write_bytes(whole)
    assert ragq.open(index.path).verify() > 0


def test_a_manifest_without_a_structure_has_no_field_for_one(built: dict[str, Path]) -> None:
    body = json.loads((built["none"] / MANIFEST).read_text())
    assert "structure" not in body
    assert Manifest.load(built["none"] / MANIFEST, (built["none"] / MANIFEST).read_bytes()).structure is None


def test_an_unknown_kind_says_how_to_remove_it(index: ragq.Index) -> None:
    path = index.path / MANIFEST
    manifest = Manifest.load(path, path.read_bytes())
    object.__setattr__(manifest.structure, "kind", "tree")
    path.write_bytes(manifest.dump())
    with pytest.raises(IncompatibleIndexError, match="ragq structure INDEX none"):
        ragq.open(index.path).search_embeddings(QUERIES, 5)
    with ragq.open(index.path, mode="w") as opened:
        opened.restructure("none")
        same(opened)


def test_auto_scans_what_is_small_and_says_so(built: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copytree(built["none"], tmp_path / "s.ragq")
    done = CliRunner().invoke(cli, ["structure", str(path)])
    assert done.exit_code == 0, done.output
    assert "every row is scanned" in done.output
    assert "a query on one core" in done.output
    assert choose(1_000_000, 48).kind == "ivf"
    done = CliRunner().invoke(cli, ["structure", str(path), "ivf", "--nlist", "12", "--json"])
    body = json.loads(done.output)
    assert body["kind"] == "ivf"
    assert body["bytes"] == sum(file.stat().st_size for file in (path / "structures").iterdir())
    done = CliRunner().invoke(cli, ["structure", str(path), "none", "--neighbours", "3", "--json"])
    body = json.loads(done.output)
    assert (body["kind"], body["parameters"]["neighbours"]) == ("flat", 3) and body["bytes"] > 4 * 3 * N
    with ragq.open(path) as index:
        same(index)


def test_a_graph_on_signs_refuses_what_signs_do_not_tell_apart(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)  # 64 codes for 2,000 directions
    ragq.build(records(N), tmp_path / "s.ragq", embeddings=x, codec="F32").close()
    with ragq.open(tmp_path / "s.ragq", mode="w") as index:
        with pytest.raises(InvalidArgumentError, match=r"No graph on two-bit codes .* Build 'ivf'\."):
            index.restructure("sm2graph")
        assert index.manifest.structure is None
        assert on_disk(index.path) == expected_files(index.path)


def test_a_graph_that_is_not_walked_says_so(built: dict[str, Path], tmp_path: Path) -> None:
    with ragq.open(shutil.copytree(built["none"], tmp_path / "s.ragq"), mode="w") as index:
        assert index.restructure("hnsw").reason == ""
        with mock.patch.object(graph, "SCAN_SHARE", N // 12):
            assert "a scan is as fast" in index.restructure("hnsw").reason


def test_masses_of_copies_do_not_cut_a_graph_into_parts(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
    x[np.random.default_rng(1).random(N) < 0.6] = x[7]
    x[np.random.default_rng(0).permutation(N)[0]] = x[7]  # the row that is inserted first, where searches begin
    ragq.build(records(N), tmp_path / "s.ragq", embeddings=x, codec="F32").close()
    with ragq.open(tmp_path / "s.ragq", mode="w") as index, mock.patch.object(graph, "SCAN_SHARE", 1):
        index.restructure("sm2graph")
        truth = index.search_embeddings(QUERIES, 10, exact=True).scores[:, 9:]
        found = index.search_embeddings(QUERIES, 10, ef_search=200).scores
        assert (found >= truth - 1e-6).mean() >= 0.9


def test_distances_of_the_graph_are_those_of_sm2() -> None:
    for dim in (16, 64, 100, 384):
        x = np.random.default_rng(dim).standard_normal((70, dim)).astype(np.float32)
        codec = SM2(min_overlap=0).fit(x)
        codes = codec.encode(x)
        words, found = sm2graph.pack(codec, codes), np.empty(70, np.uint32)
        _graph.distances(words[3], words, np.arange(70, dtype=np.uint32), found)
        np.testing.assert_array_equal(found, codec.distance(codes[3:4], codes)[0])


def test_bad_arguments_are_refused(index: ragq.Index) -> None:
    for arguments in ({"kind": "tree"}, {"recall": 0}, {"recall": 1.5}, {"nlist": 0}, {"queries": np.zeros((1, 3))}):
        with pytest.raises(InvalidArgumentError):
            index.restructure(**arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        index.search_embeddings(QUERIES, 5, nprobe=0)


def test_an_index_of_one_row_has_a_structure(tmp_path: Path) -> None:
    ragq.build(records(1), tmp_path / "s.ragq", embeddings=vectors(1), codec="F32").close()
    with ragq.open(tmp_path / "s.ragq", mode="w") as index:
        for kind in ("ivf", "hnsw", "sm2graph"):
            index.restructure(kind)
            assert index.search_embeddings(QUERIES, 3).ids[:, 0].tolist() == ["d0"] * len(QUERIES)
        index.delete("d0")
        assert (index.search_embeddings(QUERIES, 3).ids == None).all()  # noqa: E711
