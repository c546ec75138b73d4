"""The storage study's methods and other libraries' codecs, measured like the specs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ragq.checks import normalized
from ragq.errors import InvalidArgumentError, MissingExtraError
from ragq.eval.compare import peer_systems
from ragq.eval.exact import Exact
from ragq.eval.run import extra_systems, load_data, run, systems_for
from ragq.eval.study import CASTS, REDUCERS, Fitted, StudySystem, rag_storage
from ragq.eval.sweep import sweep
from ragq.eval.systems import spec_systems
from ragq.eval.vectors import Vectors


@pytest.fixture(scope="module")
def data(tiny: Path) -> list[tuple[Any, Vectors]]:
    return load_data([tiny], embeddings="tiny")


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(0.1, 0.05, size=(300, 24)).astype("f4")


def test_the_study_s_casts_are_their_formulas(x: np.ndarray) -> None:
    casts = {name: make(x) for name, make in CASTS.items()}
    decoded = {name: cast.decode(cast.encode(x)) for name, cast in casts.items()}
    np.testing.assert_array_equal(decoded["FP8"], x.astype(ml_dtypes.float8_e4m3fn).astype("f4"))
    step = (x.max(0) - x.min(0)) / 255
    assert np.abs(decoded["INT8"] - x).max() <= step.max() * 0.51
    np.testing.assert_array_equal(decoded["INT8raw"], np.round((x - x.min(0)) / step))
    np.testing.assert_array_equal(decoded["BIN"], x > 0)
    assert {name: cast.encode(x).shape[1] for name, cast in casts.items()} == {
        "FP8": 24,
        "INT8raw": 24,
        "INT8": 24,
        "BIN": 3,
    }


def test_a_constant_dimension_is_no_number_trouble(x: np.ndarray) -> None:
    constant = x.copy()
    constant[:, 3] = 0.5
    for name in ("INT8", "INT8raw"):
        cast = CASTS[name](constant)
        assert np.isfinite(cast.decode(cast.encode(constant))).all()


def test_raw_codes_rank_worse_than_codes_in_their_units() -> None:
    rng = np.random.default_rng(0)
    spread = np.geomspace(1, 0.02, 48)  # dimensions of unlike spread, as after a PCA
    documents, queries = (spread * rng.normal(size=(n, 48)) + 0.3 * spread for n in (1500, 50))
    exact = Exact.search(documents.astype("f4"), queries.astype("f4"), 100)
    found = {}
    for cast in ("INT8", "INT8raw"):
        built = StudySystem("", 1, cast).build(exact.documents, tmp_folder(), metric="cosine", seed=0)
        found[cast] = exact.agreement(built.search(exact.queries, 10), 10).mean()
    assert found["INT8"] > 0.95 and found["INT8raw"] < 0.6


def tmp_folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp()) / "study"


def test_reducers_keep_what_they_say_and_weigh_what_they_need(data: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REDUCERS, "UMAP", lambda x, dim, seed: Fitted(lambda y: y[:, :dim], {"rows": x}))
    systems = [StudySystem(reducer, 0.5, "FP8") for reducer in ("PCA", "KPCA", "UMAP")]
    results = {r.spec: r for r in sweep(systems, data)}
    assert [r.error for r in results.values()] == [None] * 3
    assert {r.numbers["code_bytes"] for r in results.values()} == {8}
    linear, kernel = (results[f"study:{name}50%,FP8"].numbers["index_bytes_per_vector"] for name in ("PCA", "KPCA"))
    assert linear < 16 and kernel > 4 * 16  # kernel PCA keeps the documents it was fitted on


def test_the_preset_holds_every_method_of_the_study() -> None:
    names = {system.name for system in extra_systems(384, "rag-storage")}
    wanted = {"FP8", "INT8", "BIN", "PCA50%,FP8", "PCA25%,FP8", "RP192,FP8", "AE192,FP8"}
    wanted |= {f"study:{m}" for m in ("FP8", "INT8raw", "INT8", "BIN", "PCA50%,FP8", "KPCA50%,FP8", "UMAP25%,FP8")}
    assert wanted <= names
    assert len(names) == len(rag_storage(384))
    with pytest.raises(InvalidArgumentError, match="no preset 'other'"):
        extra_systems(384, "other")


@pytest.mark.slow
def test_umap_itself_lays_out_documents_and_queries(data: list[Any]) -> None:
    (result,) = sweep([StudySystem("UMAP", 0.5, "FP8")], data)
    assert result.error is None and result.mean("agreement@100") > 0.5


def test_peers_answer_almost_as_float32_does_at_8_bits_and_are_weighed_on_disk(data: list[Any]) -> None:
    systems = peer_systems(["faiss:SQ8", "faiss:PQ8x4fs", "turbovec:4bit", "usearch:i8"], 16)
    results = {r.spec: r for r in sweep(systems, data)}
    assert {name: r.error for name, r in results.items() if r.error} == {}
    assert results["faiss:SQ8"].mean("agreement@10") > 0.97
    assert all(r.mean("agreement@10") > 0.4 for r in results.values())
    sizes = {name: r.numbers["code_bytes"] for name, r in results.items()}
    assert (sizes["faiss:SQ8"], sizes["faiss:PQ8x4fs"], sizes["turbovec:4bit"], sizes["usearch:i8"]) == (16, 4, 12, 16)
    assert all(r.numbers["index_bytes_per_vector"] >= r.numbers["code_bytes"] for r in results.values())


def test_rabitqlib_scans_its_one_cluster(tmp_path: Path) -> None:
    x = normalized(np.random.default_rng(0).normal(size=(600, 64)).astype("f4"))
    (system,) = peer_systems(["rabitqlib:4bit"], 64)
    built = system.build(x, tmp_path / "x", metric="cosine", seed=0)
    exact = Exact.search(x, x[:40] + 0.1, 10)
    assert exact.agreement(built.search(exact.queries, 10), 10).mean() > 0.8
    assert 32 < built.code_bytes <= built.index_bytes / 600
    with pytest.raises(InvalidArgumentError, match="not by l2"):
        system.build(x, tmp_path / "y", metric="l2", seed=0)


def test_peers_are_named_by_library_and_refused_when_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [system.name for system in extra_systems(384, compare="turbovec, faiss")]
    assert names[:2] == ["turbovec:4bit", "turbovec:2bit"] and "faiss:PQ96x4fs" in names
    with pytest.raises(InvalidArgumentError, match=r"no peer 'milvus'\. There: faiss, turbovec"):
        peer_systems(["milvus"], 16)
    monkeypatch.setitem(sys.modules, "turbovec", None)
    with pytest.raises(MissingExtraError, match=r"ragq\[bench\]"):
        peer_systems(["turbovec"], 16)


def test_peers_and_specs_stand_in_one_report(data: list[Any], tmp_path: Path) -> None:
    peers = extra_systems(16, compare="faiss:SQ8")
    report = run(data, ["INT8"], more=[*peers, *spec_systems(["INT8"])], out=tmp_path)
    assert [row["spec"] for row in report.rows] == ["INT8", "F32", "faiss:SQ8"]
    assert [system.name for system in systems_for(16, [], [], peers)] == ["F32", "faiss:SQ8"]
    assert "faiss" in (tmp_path / "report.html").read_text()


def test_normalised_keeps_zero_rows() -> None:
    assert normalized(np.array([[3, 4], [0, 0]], "f4")).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
