"""Training of learned codecs: the gate, resuming, appended documents, the losses, made queries, and re-encoding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

import ragq
from ragq.checks import normalized
from ragq.cli import cli
from ragq.compressors import from_spec
from ragq.compressors.learned.base import LearnedPQ, query_aware_maps
from ragq.compressors.vtq import CLUSTERS, VTQ
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.eval.systems import SpecSystem
from ragq.pipelines.codecs import load_codec, save_codec
from ragq.pipelines.training import losses
from ragq.pipelines.training import run as training_run
from ragq.pipelines.training.api import train
from ragq.pipelines.training.data import Pools, TrainingQueries, split, twins
from ragq.pipelines.training.health import reseed, rotation_trick, sinkhorn
from ragq.pipelines.training.loop import SAMPLED, Trainer
from ragq.pipelines.training.queries import Generator, sentences, titles, transplanted
from ragq.pipelines.training.reencode import reencode
from ragq.pipelines.training.run import Trained, train_codec
from ragq.pipelines.training.settings import settings_for
from ragq.pipelines.training.students import CodebookStudent, make_student
from ragq.pipelines.training.teachers import margins
from ragq.pipelines.training.validation import Encoded, Validation, ndcg
from ragq.pipelines.training.vectors import Vectors
from ragq.types import Document

Floats = NDArray[np.float32]
DIM, ROWS, QUERIES = 16, 400, 90
SPECS = {
    "distill-vq": "DistillVQ6(bits=4)",
    "jpq": "JPQ6(bits=4)",
    "mopq": "MoPQ6(bits=4)",
    "repconc": "RepCONC6(bits=4)",
    "bpr": "BPR14(length)",
}
VPQ_START = "DistillVQ6(bits=4,tree=false)"  # whose codes can move
QUICK: dict[str, Any] = {"epochs": 4, "batch": 16, "depth": 20, "random": 32, "patience": 9}


@pytest.fixture(scope="module")
def x() -> Floats:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(12, DIM))[rng.integers(12, size=ROWS)] + 0.7 * rng.normal(size=(ROWS, DIM))
    return normalized((rows / np.sqrt(1 + np.arange(DIM))).astype(np.float32))


@pytest.fixture(scope="module")
def queries(x: Floats) -> Floats:
    """Queries that lie off the documents: a few of their coordinates matter most."""
    rng = np.random.default_rng(2)
    scale = np.linspace(0.3, 2, DIM)
    return normalized(
        ((x[rng.integers(ROWS, size=QUERIES)] + 0.1 * rng.normal(size=(QUERIES, DIM))) * scale).astype("f4")
    )


def run(x: Floats, data: TrainingQueries, method: str, **changes: Any) -> Trained:
    out, resume, log = (
        changes.pop(name, default) for name, default in (("out", None), ("resume", False), ("log", None))
    )
    spec = changes.pop("spec", SPECS[method])
    settings = settings_for(method, **{**QUICK, **changes})
    return train_codec(Vectors(x), data, settings, spec, out=out, resume=resume, log=log or (lambda line: None))


def both(x: Floats, queries: Floats, **more: Any) -> TrainingQueries:
    return split(queries, np.empty((0, x.shape[1]), np.float32), more.get("labels"), 0.4, 0)


# the gate


@pytest.mark.parametrize("method", SPECS)
def test_no_method_returns_less_than_its_start(method: str, x: Floats, queries: Floats) -> None:
    data = both(x, queries)
    trained = run(x, data, method)
    assert trained.value >= trained.start
    validation = Validation(Vectors(x), data.validation, {})
    for given in (None, data.queries):
        start = from_spec(SPECS[method]).fit(x, queries=given, seed=0)
        reached = validation.measure(start, Encoded.of(start, Vectors(x))).mean
        assert trained.start >= reached
    again = validation.measure(trained.codec, Encoded.of(trained.codec, Vectors(x))).mean
    assert again == pytest.approx(trained.value)


@pytest.mark.slow
def test_distillation_helps_on_queries_that_lie_off_the_documents(x: Floats, queries: Floats) -> None:
    data = both(x, queries)
    spec = "JPQ4(bits=4)"  # with more bytes these few rows leave nothing to learn
    plain = from_spec(spec).fit(x)
    before = Validation(Vectors(x), data.validation, {}).measure(plain, Encoded.of(plain, Vectors(x)))
    trained = run(x, data, "jpq", spec=spec, loss="listwise", epochs=12, codebook_rate=0.01, map_rate=0.01)
    assert trained.helped
    assert trained.value > before.mean + 0.01
    assert "Training helped" in trained.verdict


def test_the_gate_refuses_queries_that_hurt(x: Floats, queries: Floats, tmp_path: Path) -> None:
    """Documents turned upside down teach the opposite of what real queries ask."""
    hurtful = TrainingQueries(-x[::2].copy(), 0, queries)
    loose: dict[str, Any] = {"codebook_rate": 0.3, "map_rate": 0.3, "document_rate": 0.3, "epochs": 2}
    trained = run(x, hurtful, "distill-vq", out=tmp_path, **loose)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(line["dense-ndcg@10"] < trained.start for line in lines[1:])  # it did hurt
    assert not trained.helped
    assert trained.value == trained.start
    assert "did not help" in trained.verdict and "untrained quantizer is kept" in trained.verdict
    unit = Vectors(x).take(np.arange(ROWS))
    starts = [from_spec(SPECS["distill-vq"]).fit(unit, queries=given, seed=0) for given in (None, hurtful.queries)]
    kept = load_codec(tmp_path).state
    assert any(all((kept[name] == array).all() for name, array in start.state.items()) for start in starts)


def test_labels_are_followed_only_when_held_out_queries_gain_by_them(
    x: Floats, queries: Floats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that no query has in common teach nothing, and leave what was learned without them."""
    rng = np.random.default_rng(0)
    chance = {i: {int(row): 1} for i, row in enumerate(rng.integers(0, ROWS, QUERIES))}
    data = both(x, queries, labels=chance)
    without = run(x, data.unlabelled, "distill-vq")
    trained = run(x, data, "distill-vq", labels=1.0, out=tmp_path)
    assert "Labels did not help" in trained.verdict and trained.value == without.value
    assert all((trained.codec.state[name] == array).all() for name, array in without.codec.state.items())
    kept = load_codec(tmp_path / "unlabelled").state
    assert all((kept[name] == array).all() for name, array in without.codec.state.items())

    real = training_run.judge
    monkeypatch.setattr(training_run, "judge", lambda *given: replace(real(*given), low=0.001))
    helped = run(x, data, "distill-vq", labels=1.0)
    assert helped.measure == "mixed-ndcg@10" and "Labels" not in helped.verdict


# resuming


class StopError(Exception):
    pass


@pytest.mark.parametrize("method", ["distill-vq", "jpq", "mopq", "bpr"])
def test_resumed_training_equals_uninterrupted(method: str, x: Floats, queries: Floats, tmp_path: Path) -> None:
    def stop(line: dict[str, Any]) -> None:
        if line["epoch"] == 3:
            raise StopError  # before the checkpoint of epoch 3: that epoch is run again

    data = both(x, queries)
    whole = run(x, data, method, out=tmp_path / "whole")
    with pytest.raises(StopError):
        run(x, data, method, out=tmp_path / "parts", log=stop)
    assert not (tmp_path / "parts" / "codec.safetensors").exists()
    parts = run(x, data, method, out=tmp_path / "parts", resume=True)
    assert (parts.epoch, parts.value) == (whole.epoch, whole.value)
    for name, array in whole.codec.state.items():
        np.testing.assert_array_equal(array, parts.codec.state[name])
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    timeless = [[{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log] for log in logs]
    assert timeless[0] == timeless[1]
    assert [line["epoch"] for line in timeless[0]] == [0, 1, 2, 3, 4]


def test_a_checkpoint_of_another_run_is_refused(x: Floats, queries: Floats, tmp_path: Path) -> None:
    data = both(x, queries)
    run(x, data, "distill-vq", epochs=1, out=tmp_path)
    with pytest.raises(InvalidArgumentError, match="other data or settings"):
        run(x, data, "distill-vq", epochs=1, seed=1, out=tmp_path, resume=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        run(x, data, "distill-vq", epochs=1, out=tmp_path, resume=True)


@pytest.mark.slow
def test_training_twice_gives_the_same(x: Floats, queries: Floats) -> None:
    first, second = (run(x, both(x, queries), "repconc", epochs=2) for _ in range(2))
    assert all((first.codec.state[name] == second.codec.state[name]).all() for name in first.codec.state)


# the trained codec in an index


def test_documents_added_after_training_get_the_codes_of_build_time(x: Floats, queries: Floats, tmp_path: Path) -> None:
    train(x, tmp_path / "trained", queries=queries, make=[], codec=SPECS["distill-vq"], **QUICK)
    ids = [f"d{i}" for i in range(ROWS)]
    half = ROWS // 2
    whole = ragq.build(out=tmp_path / "whole", embeddings=x, ids=ids, codec=str(tmp_path / "trained"))
    parts = ragq.build(out=tmp_path / "parts", embeddings=x[:half], ids=ids[:half], codec=str(tmp_path / "trained"))
    assert parts.manifest.spec == SPECS["distill-vq"]
    parts.add([{"id": name, "text": ""} for name in ids[half:]], embeddings=x[half:])
    codes = [np.concatenate([s.block.codes() for s in index._view.snapshot.shards]) for index in (whole, parts)]
    np.testing.assert_array_equal(codes[0], codes[1])
    found = [index.search_embeddings(queries, 10) for index in (whole, parts)]
    assert (found[0].ids == found[1].ids).all()


def test_an_index_is_encoded_again_without_its_text(x: Floats, queries: Floats, tmp_path: Path) -> None:
    ids = [f"d{i}" for i in range(ROWS)]
    index = ragq.build(
        [{"id": name, "text": f"text of {name}"} for name in ids], tmp_path / "i", embeddings=x, codec="F32"
    )
    index.delete(["d3", "d7"])
    kept = [i for i in range(ROWS) if i not in (3, 7)]
    train(tmp_path / "i", tmp_path / "trained", queries=queries, make=[], codec=SPECS["distill-vq"], **QUICK)
    reencode(index, str(tmp_path / "trained"))
    codec = load_codec(tmp_path / "trained")
    assert index.manifest.spec == str(codec)
    np.testing.assert_array_equal(index._view.snapshot.shards[0].block.codes(), codec.encode(x[kept]))
    assert index.get("d5")[0].text == "text of d5" and len(index) == ROWS - 2
    with pytest.raises(InvalidArgumentError, match=r"keeps only .* Give the embeddings"):
        reencode(index, "FP8")
    reencode(index, "FP8", x[kept])
    assert index.manifest.spec == "FP8" and index.search_embeddings(x[5], 1).ids[0, 0] == "d5"
    index.verify()
    with pytest.raises(InvalidArgumentError, match="398 passages"):
        reencode(index, "FP8", x)


def test_a_codec_folder_is_not_trusted(x: Floats, tmp_path: Path) -> None:
    save_codec(tmp_path, from_spec("DistillVQ6(bits=4)").fit(x))
    path = tmp_path / "codec.safetensors"
    whole = path.read_bytes()
    for damage in (
        whole[:40],
        b"",
        whole.replace(b"DistillVQ6", b"DistillVQ7"),
        whole.replace(b"DistillVQ6", b"NoSuchVQ6_"),
    ):
        path.write_bytes(damage)
        with pytest.raises(CorruptIndexError, match=r"codec\.safetensors"):
            load_codec(tmp_path)
    path.unlink()
    with pytest.raises(InvalidArgumentError, match="holds no trained codec"):
        load_codec(tmp_path)


def test_a_codec_of_another_dimension_is_refused(x: Floats, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    save_codec(tmp_path / "t", from_spec("DistillVQ6(bits=4)").fit(x))
    with pytest.raises(InvalidArgumentError, match=r"trained for 16 dimensions\. The embeddings have 8"):
        ragq.build(
            out=tmp_path / "i", embeddings=x[:, :8], ids=[str(i) for i in range(ROWS)], codec=str(tmp_path / "t")
        )


# the start, and the student


@pytest.mark.parametrize("spec", ["DistillVQ6", "JPQ6(bits=4)", "MoPQ6"])
def test_an_untrained_codec_ranks_as_what_it_starts_from(spec: str, x: Floats) -> None:
    learned = from_spec(spec).fit(x)
    assert isinstance(learned, LearnedPQ)
    start = learned.documents
    assert isinstance(start, VTQ) == (spec != "MoPQ6")
    assert not isinstance(start, VTQ) or start.first == CLUSTERS
    codes = learned.encode(x)
    assert (codes == start.encode(x)).all()
    np.testing.assert_allclose(learned.decode(codes), start.decode(codes), atol=2e-3)


@pytest.mark.parametrize(
    ("spec", "moving"),
    [("JPQ6(bits=4)", False), ("DistillVQ6", False), (VPQ_START, False), (VPQ_START, True), ("MoPQ10", True)],
)
def test_a_student_scores_as_the_codec_does(spec: str, moving: bool, x: Floats, queries: Floats) -> None:
    codec = from_spec(spec).fit(x, queries=queries)
    assert isinstance(codec, LearnedPQ)
    student = make_student(codec, settings_for("distill-vq", reassign=moving))
    codes = codec.encode(x)
    scores, _ = student.score(torch.from_numpy(queries), torch.from_numpy(x), codes)
    np.testing.assert_allclose(scores.detach().numpy(), codec.scorer(queries).score(codes), atol=3e-3)
    with torch.no_grad():
        student.query_map *= 1.1
        student.query_mean += 0.01
    student.write(codec)
    written = {name: array.copy() for name, array in codec.state.items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1
    assert all((array == codec.state[name]).all() for name, array in written.items())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= 1
    scores, _ = student.score(torch.from_numpy(queries), torch.from_numpy(x), codes)
    np.testing.assert_allclose(scores.detach().numpy(), codec.scorer(queries).score(codec.encode(x)), atol=5e-3)


def test_simvq_and_the_rotation_trick_train(x: Floats, queries: Floats) -> None:
    for option in ("simvq", "rotation_trick"):
        codec = from_spec(VPQ_START).fit(x)
        student = make_student(codec, settings_for("distill-vq", reassign=True, **{option: True}))
        scores, _ = student.score(torch.from_numpy(queries), torch.from_numpy(x), codec.encode(x))
        scores.sum().backward()
        moved = student.blend if option == "simvq" else student.document_map
        assert moved.grad is not None and moved.grad.abs().sum() > 0
        trained = run(x, both(x, queries), "distill-vq", spec=VPQ_START, epochs=2, reassign=True, **{option: True})
        assert trained.value > 0


def test_arguments_that_do_not_go_together_are_refused(x: Floats, queries: Floats, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="jpq trains JPQ codecs"):
        train(x, tmp_path, method="jpq", codec="VPQ48", queries=queries)
    with pytest.raises(InvalidArgumentError, match=r"DistillVQ6\(bits=4,tree=false\), or leave out 'reassign'"):
        train(x, tmp_path, codec="DistillVQ6(bits=4)", queries=queries, reassign=True, make=[])
    with pytest.raises(InvalidArgumentError, match="'method' must be one of"):
        train(x, tmp_path, method="magic")
    with pytest.raises(InvalidArgumentError, match="There is no setting 'speed'"):
        train(x, tmp_path, queries=queries, speed=3)
    with pytest.raises(InvalidArgumentError, match="must have 16 dimensions"):
        train(x, tmp_path, queries=queries[:, :8], make=[])
    with pytest.raises(InvalidArgumentError, match="names documents by id"):
        train(x, tmp_path, queries=queries, qrels=tmp_path / "q.tsv", make=[])
    with pytest.raises(InvalidArgumentError, match="Index it first"):
        train("corpus.jsonl", tmp_path, queries=queries)


# the losses


def test_the_listwise_loss_is_the_divergence_of_the_softmaxes() -> None:
    teacher, scores = torch.tensor([[0.3, 0.1, 0.0]]), torch.tensor([[0.1, 0.2, 0.0]])
    p, q = (torch.softmax(s / 0.1, dim=1) for s in (teacher, scores))
    assert losses.listwise(scores, teacher, 0.1).item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
    assert losses.listwise(teacher + 5, teacher, 0.1).item() == pytest.approx(0, abs=1e-6)


def test_the_lambda_loss_weighs_pairs_by_their_reciprocal_ranks() -> None:
    scores = torch.tensor([[0.3, 0.2, 0.1, 0.0]])  # the relevant one is second
    positive = torch.tensor([[False, True, False, False]])
    pairs = [(1 - 1 / 2, 0.3), (1 / 2 - 1 / 3, 0.1)]  # the last is beyond the cutoff
    expected = sum(w * np.log1p(np.exp((s - 0.2) / 0.1)) for w, s in pairs)
    assert losses.lambda_mrr(scores, positive, 0.1, 3).item() == pytest.approx(expected, rel=1e-5)


def test_the_contrastive_loss_takes_no_relevant_document_for_a_negative() -> None:
    scores = torch.tensor([[0.3, 0.2, 0.1, 0.0]])
    positive = torch.tensor([[True, True, False, False]])
    own = [-np.log(np.exp(s / 0.1) / (np.exp(s / 0.1) + np.exp(1) + 1)) for s in (0.3, 0.2)]
    assert losses.contrastive(scores, positive, 0.1).item() == pytest.approx(np.mean(own), rel=1e-4)
    hardest = [-np.log(np.exp(s / 0.1) / (np.exp(s / 0.1) + np.exp(1))) for s in (0.3, 0.2)]
    assert losses.contrastive(scores, positive, 0.1, hardest=1).item() == pytest.approx(np.mean(hardest), rel=1e-4)


def test_the_margin_loss_looks_at_margins_of_judged_candidates_only() -> None:
    scores = torch.tensor([[9.0, 0.5, 0.2, 0.4]])
    places, teacher = torch.tensor([[1, 2, -1]]), torch.tensor([[1.5, 1.2, 99.0]])
    assert losses.margin_mse(scores, places, teacher).item() == pytest.approx(0, abs=1e-9)
    teacher = torch.tensor([[1.5, 1.0, 99.0]])
    assert losses.margin_mse(scores, places, teacher).item() == pytest.approx((0.3 - 0.5) ** 2 / 2, rel=1e-4)


# codebooks


def test_sinkhorn_gives_every_codeword_its_share() -> None:
    rng = np.random.default_rng(0)
    rows, words = rng.normal(size=(400, 3)) + 2, rng.normal(size=(8, 3))
    distances = ((rows[:, None] - words) ** 2).sum(axis=2)
    greedy, even = distances.argmin(axis=1), sinkhorn(distances, epsilon=0.02)
    assert np.bincount(greedy, minlength=8).max() > 150
    assert np.bincount(even, minlength=8).min() >= 35 and np.bincount(even, minlength=8).max() <= 65


def test_dead_codewords_move_to_documents() -> None:
    rng = np.random.default_rng(0)
    codebook, rows = rng.normal(size=(4, 6)).astype("f4"), rng.normal(size=(50, 6)).astype("f4")
    codes = np.zeros((50, 2), np.uint8)
    codes[:25, 1], codes[25:30, 1] = 1, 2
    before = codebook.copy()
    assert reseed(codebook, codes, rows, np.array([0, 3, 6]), rng) == 3 + 1
    assert (codebook[0] == before[0]).all() and (codebook[:3, 3:] == before[:3, 3:]).all()
    assert all((codebook[k, :3] == rows[:, :3]).all(axis=1).any() for k in (1, 2, 3))
    assert (codebook[3, 3:] == rows[:, 3:]).all(axis=1).any()


def test_the_rotation_trick_turns_gradients_with_the_vectors() -> None:
    rng = np.random.default_rng(0)
    y = torch.tensor(rng.normal(size=(5, 6)), dtype=torch.float64, requires_grad=True)
    word = torch.tensor(rng.normal(size=(5, 6)), dtype=torch.float64)
    out = rotation_trick(y, word, [0, 3, 6])
    torch.testing.assert_close(out, word)
    g = torch.tensor(rng.normal(size=(5, 6)), dtype=torch.float64)
    (back,) = torch.autograd.grad(out, y, g)
    for part in (slice(0, 3), slice(3, 6)):
        a, b = y.detach()[:, part], word[:, part]
        ratio = b.norm(dim=1) / a.norm(dim=1)
        torch.testing.assert_close(back[:, part].norm(dim=1), ratio * g[:, part].norm(dim=1))
        torch.testing.assert_close((back[:, part] * a).sum(1), (g[:, part] * b).sum(1))  # R a = b / ratio


def test_the_query_aware_maps_keep_inner_products_and_even_out_both_sides(x: Floats, queries: Floats) -> None:
    many = np.concatenate([queries] * 200)  # so many that little is shrunk
    a, b = query_aware_maps(x - x.mean(axis=0), many)
    np.testing.assert_allclose((queries @ a) @ (x @ b).T, queries @ x.T, atol=1e-3)
    k_x = np.cov((x @ b).T, bias=True)
    off = k_x - np.diag(np.diag(k_x))
    assert np.abs(off).max() < 1e-3 * np.abs(k_x).max()
    k_q = (many @ a).T @ (many @ a) / len(many)
    assert np.corrcoef(np.diag(k_q), np.diag(k_x))[0, 1] > 0.99


# the data


def test_the_split_holds_out_real_queries_and_moves_labels_along(x: Floats, queries: Floats) -> None:
    made = queries[:7] * -1
    labels = {i: {i: 1} for i in range(QUERIES)}
    data = split(queries, made, labels, 0.25, 0)
    assert 0 < len(data.validation) < QUERIES and data.own == QUERIES - len(data.validation)
    assert not {row.tobytes() for row in data.queries} & {row.tobytes() for row in data.validation}
    for part, known in ((data.queries, data.labels), (data.validation, data.validation_labels)):
        assert all((queries[next(iter(grades))] == part[i]).all() for i, grades in known.items())
    np.testing.assert_array_equal(np.concatenate([queries, made])[data.rows], data.queries)
    alone = split(queries[:0], made, None, 0.25, 0)
    assert len(alone.validation) == 2 and alone.own == 0
    with pytest.raises(InvalidArgumentError, match="at least 2 queries"):
        split(queries[:0], made[:1], None, 0.25, 0)


def test_twins_stay_on_one_side_of_the_split(x: Floats, queries: Floats) -> None:
    rng = np.random.default_rng(0)
    base = normalized(rng.normal(size=(40, 200)).astype(np.float32))
    asked = np.concatenate([base, normalized(base + 0.01 * base[::-1])])  # each has a twin
    labels = {0: {7: 1}, 1: {7: 2, 8: 0}, 2: {7: 1, 8: 1}}
    group = twins(asked, labels)
    assert (group[:40] == group[40:]).all() and len(
        set(group.tolist())
    ) == 39  # 0 and 1 have the same document, 2 another
    assert group[0] == group[1] != group[2]
    for seed in range(5):
        data = split(asked, asked[:0], labels, 0.25, seed)
        assert (data.queries @ data.validation.T).max() < 0.85
        assert 16 <= len(data.validation) <= 20


def test_pools_hold_the_labelled_and_the_nearest_documents(x: Floats, queries: Floats) -> None:
    data = TrainingQueries(queries, QUERIES, queries[:2], labels={4: {17: 1, 18: 0}})
    pools = Pools(Vectors(x), data, settings_for("jpq", depth=20))
    batch = np.array([4, 9])
    pool = pools.pool(batch, np.full((QUERIES, 20), -1), 0, 0)
    assert {17, 18} <= set(pool.tolist()) and (np.diff(pool) > 0).all() and pool.min() >= 0
    positive = pools.positive(batch, pool)
    assert pool[positive[0]].tolist() == [17]
    assert set(pool[positive[1]]) == set(np.argsort(-(x @ queries[9]))[:3])
    own = np.concatenate(pools.batches(3))
    assert sorted(own.tolist()) == list(range(QUERIES))


def test_a_small_corpus_is_its_own_pool(x: Floats, queries: Floats) -> None:
    data = TrainingQueries(queries, QUERIES, queries[:2])
    for whole, expected in ((ROWS, True), (ROWS - 1, False)):
        pools = Pools(Vectors(x), data, settings_for("distill-vq", depth=20, random=8, whole=whole))
        pool = pools.pool(np.array([4, 9]), np.full((QUERIES, 20), -1), 0, 0)
        assert pools.whole == (len(pool) == ROWS) == expected


def test_steps_over_a_small_corpus_read_its_codes_in_place(
    x: Floats, queries: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    score = CodebookStudent.score
    monkeypatch.setattr(
        CodebookStudent, "score", lambda self, q, d, codes: (seen.append(codes), score(self, q, d, codes))[1]
    )
    run(x, both(x, queries), "distill-vq", whole=ROWS, epochs=2)
    assert len(seen) > 2 and all(codes is seen[0] for codes in seen)


def test_steps_that_see_a_sample_of_the_documents_are_smaller(x: Floats, queries: Floats) -> None:
    data, vectors = both(x, queries), Vectors(x)
    codec, validation = from_spec(SPECS["distill-vq"]).fit(x), Validation(vectors, data.validation, {})
    every, few = (
        Trainer(codec, vectors, data, validation, settings_for("distill-vq", whole=rows)).rates for rows in (ROWS, 1)
    )
    np.testing.assert_allclose(few, SAMPLED * np.array(every))


def test_vectors_read_what_lies_on_the_disk(x: Floats, queries: Floats, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", (3 * x).astype(np.float16))
    column = pa.array(list(3 * x), pa.list_(pa.float32(), DIM))
    pq.write_table(pa.table({"v": column}), tmp_path / "x.parquet")
    for source in (tmp_path / "x.npy", f"{tmp_path / 'x.parquet'}:v", 3 * x):
        vectors = Vectors.open(source, True, tmp_path / "copy" / "e.npy")
        rows = np.array([5, 399, 0])
        np.testing.assert_allclose(vectors.take(rows), x[rows], atol=1e-3)
        scores, found = vectors.search(queries, 7)
        np.testing.assert_allclose(scores, -np.sort(-(queries @ x.T))[:, :7], atol=2e-3)
    assert (found == np.argsort(-(queries @ x.T), axis=1, kind="stable")[:, :7]).all()


def test_ndcg_is_that_of_the_judge() -> None:
    assert ndcg([3, 1, 2], {1: 1, 9: 2}) == pytest.approx((1 / np.log2(3)) / (2 + 1 / np.log2(3)))
    assert ndcg([1], {1: 0}) == 0


# made queries


def test_titles_and_sentences_come_from_the_documents() -> None:
    parts = ["One two three four five.", "Short one.", "Six seven eight nine ten!", "Is this the last of them?"]
    documents = [Document("a", " ".join(parts), " A title "), Document("b", "too short")]
    assert titles(documents) == ["A title"]
    rng = np.random.default_rng(0)
    assert sentences(documents, 9, rng) == [parts[0], parts[2], parts[3]]
    chosen = sentences(documents, 2, rng)
    assert len(chosen) == 2 and chosen == [part for part in parts if part in chosen]


@pytest.mark.slow
def test_made_queries_are_embedded_once(x: Floats, queries: Floats, tmp_path: Path) -> None:
    calls: list[int] = []

    def model(texts: list[str]) -> Floats:
        calls.append(len(texts))
        return queries[np.arange(len(texts)) % QUERIES]

    documents = [{"id": str(i), "title": f"title {i}", "text": f"one two three four {i}. Short."} for i in range(ROWS)]
    lines: list[list[dict[str, Any]]] = [[], []]
    for resume in (False, True):
        train(
            documents, tmp_path / "t", embeddings=x, queries=queries, codec="JPQ6(bits=4)", method="jpq", model=model,
            resume=resume, log=lines[resume].append, make=["titles", "sentences"], **{**QUICK, "epochs": 1},
        )  # fmt: skip
    assert calls == [ROWS, ROWS]
    assert len(lines[1]) == 1  # the run was finished, and the checkpoint fits the same queries


def test_transplanted_queries_keep_a_real_offset(x: Floats, queries: Floats) -> None:
    made = transplanted(Vectors(x), queries[:1], 50, np.random.default_rng(0))
    nearest = x[(x @ queries[0]).argmax()]
    wanted = normalized(x + queries[0] - nearest)
    assert all(np.isclose(wanted, row, atol=1e-5).all(axis=1).any() for row in made)
    with pytest.raises(InvalidArgumentError, match="give --queries"):
        transplanted(Vectors(x), queries[:0], 5, np.random.default_rng(0))


@pytest.mark.slow
def test_a_text2text_model_generates_queries() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = ["<pad>", "</s>", "<unk>", "what", "is", "a", "shard", "index"]
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(words), decoder_start_token_id=0, **shape))
    generator = Generator(model, tokenizer, batch_size=2)
    found = generator.ask(["a shard is a index", "what is a shard", "index"], 2, seed=0)
    assert 1 <= len(found) <= 6 and all(set(text.split()) <= set(words) for text in found)
    assert found == generator.ask(["a shard is a index", "what is a shard", "index"], 2, seed=0)
    with pytest.raises(InvalidArgumentError, match="Give the folder of a text2text model"):
        Generator("/nowhere/at-all")


def test_a_cross_encoder_teaches_margins(x: Floats, queries: Floats) -> None:
    passages = [str(row) for row in range(ROWS)]
    favourite = int((x @ queries[1]).argsort()[-5])

    def teacher(query: str, texts: list[str]) -> list[float]:
        return [1000.0 * (text == str(favourite)) for text in texts]

    found = margins(teacher, Vectors(x), queries[:3], [None, "q", None], passages)
    assert (found.rows[[0, 2]] == -1).all() and found.rows[1].min() >= 0
    assert found.rows[1][found.scores[1].argmax()] == favourite
    dense = np.take(x @ queries[1], found.rows[1])
    assert found.scores[1].std() == pytest.approx(dense.std(), rel=1e-3)  # in the units of the dense scores


@pytest.mark.slow
def test_margins_pull_a_document_up(x: Floats, queries: Floats) -> None:
    data = both(x, queries)
    rows = Vectors(x).search(data.queries, 5)[1]
    favoured = np.tile(np.array([0, 0, 0, 0, 0.5], np.float32), (len(rows), 1))  # always the fifth
    from ragq.pipelines.training.data import Margins
    from ragq.pipelines.training.loop import Trainer

    codec = from_spec("DistillVQ6(bits=4)").fit(x)
    ranks = []
    for given in (None, Margins(rows, favoured)):
        trainer = Trainer(
            codec, Vectors(x), replace(data, margins=given), Validation(Vectors(x), data.validation, {}),
            settings_for("distill-vq", **{**QUICK, "codebook_rate": 0.1, "map_rate": 0.05}),
        )  # fmt: skip
        trainer.run(Validation(Vectors(x), data.validation, {}).measure(codec, Encoded.of(codec, Vectors(x))))
        encoded = Encoded.of(trainer.codec, Vectors(x))
        scores = trainer.codec.scorer(data.queries).score(encoded.codes)
        fifth = np.take_along_axis(scores, rows[:, 4:5], axis=1)
        ranks.append((scores > fifth).sum(axis=1).mean())
    assert ranks[1] < ranks[0] - 0.5


# the command


def test_the_command_trains_and_the_result_is_used_at_once(x: Floats, queries: Floats, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "q.npy", queries)
    with (tmp_path / "corpus.jsonl").open("w") as file:
        file.writelines(json.dumps({"_id": f"d{i}", "text": f"text {i}"}) + "\n" for i in range(ROWS))
    with (tmp_path / "q.jsonl").open("w") as file:
        file.writelines(json.dumps({"_id": f"q{i}", "text": f"query {i}"}) + "\n" for i in range(QUERIES))
    best = (queries @ x.T).argmax(axis=1)
    lines = [f"q{i}\td{row}\t1" for i, row in enumerate(best)]
    (tmp_path / "q.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    out = tmp_path / "trained"
    arguments = [
        "train",
        str(tmp_path / "corpus.jsonl"),
        "--embeddings",
        str(tmp_path / "x.npy"),
        "--make",
        "transplanted",
    ]
    arguments += ["--queries", str(tmp_path / "q.jsonl"), "--query-embeddings", str(tmp_path / "q.npy"), "-o", str(out)]
    arguments += ["--qrels", str(tmp_path / "q.tsv"), "--codec", "DistillVQ6(bits=4)", "--epochs", "2", "--json"]
    arguments += ["--queries-per-epoch", "100"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    assert body["measure"].endswith("ndcg@10") and body["value"] >= body["start"]
    assert (out / "unlabelled" / "codec.safetensors").is_file()  # the part of the run that knows no labels
    assert {path.name for path in out.iterdir()} >= {"codec.safetensors", "report.json", "log.jsonl", "training.png"}
    index = ["index", str(tmp_path / "corpus.jsonl"), "--embeddings", str(tmp_path / "x.npy"), "--codec", str(out)]
    done = CliRunner().invoke(cli, [*index, "-o", str(tmp_path / "i"), "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["spec"] == "DistillVQ6(bits=4)"
    done = CliRunner().invoke(
        cli, ["recode", str(tmp_path / "i"), "--codec", "F16", "--embeddings", str(tmp_path / "x.npy")]
    )
    assert "DistillVQ6(bits=4) -> F16" in done.output


@pytest.mark.parametrize("spec", ["DistillVQ6(bits=4)", "PCA8,BPR8", "DistillVQ6(bits=4)+INT8"])
def test_an_index_with_an_untrained_codec_says_so(spec: str, x: Floats, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x[:200])
    (tmp_path / "ids.txt").write_text("".join(f"d{i}\n" for i in range(200)))
    options = ["--embeddings", str(tmp_path / "x.npy"), "--ids", str(tmp_path / "ids.txt"), "-o", str(tmp_path / "i")]
    save_codec(tmp_path, from_spec(spec).fit(x[:200]))
    codec = spec.rpartition(",")[2].partition("+")[0]
    for given, said in ((spec, True), (str(tmp_path), False), ("F16", False)):
        done = CliRunner().invoke(cli, ["index", *options, "--codec", given], catch_exceptions=False)
        assert (
            f"{codec} is not trained" in done.stderr and f'ragq train SOURCE --codec "{codec}"' in done.stderr
        ) is said
    for given, said in ((spec, True), (str(tmp_path), False)):
        done = CliRunner().invoke(cli, ["recode", str(tmp_path / "i"), "--codec", given, *options[:2]])
        assert done.exit_code == 0 and (f"{codec} is not trained" in done.stderr) is said


def test_a_trained_codec_is_measured_by_its_folder(x: Floats, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    codec = from_spec("DistillVQ6(bits=4)").fit(x[:200])
    save_codec(tmp_path / "t", codec)
    system = SpecSystem(str(tmp_path / "t"))
    assert system.name.startswith("DistillVQ6(bits=4)@") and system.family == "DistillVQ"
    built = system.build(x, tmp_path / "i", metric="cosine", seed=0)
    assert (
        built.search(x[:5], 3) == np.argsort(-codec.scorer(x[:5]).score(codec.encode(x)), kind="stable")[:, :3]
    ).all()
