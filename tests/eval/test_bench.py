"""`ragq bench`: what is timed, against whom, and what the numbers mean."""

import itertools
import json
import os
import sys
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner

from ragq.checks import normalized
from ragq.cli import bench as command
from ragq.compressors import TQ
from ragq.errors import MissingExtraError
from ragq.eval import bench, bench_data, bench_suites, peers
from ragq.eval.bench import Bench, Contender
from ragq.eval.bench_data import Vectors, load_source


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """No shared data, few made vectors, and no repetition of short runs."""
    monkeypatch.setenv("RAGQ_SHARED", str(tmp_path))
    monkeypatch.setattr(bench_data, "MADE_ROWS", 2_000)
    monkeypatch.setattr(bench_data, "STRIDE", 3)
    monkeypatch.setattr(bench, "SHORTEST", 0.0)
    monkeypatch.setattr(bench, "BANDWIDTH_BYTES", 2**20)


@pytest.fixture
def source():
    return load_source(4)


@pytest.fixture
def small(source):
    return Bench(lambda rows: Vectors(source, rows), queries=4, repeats=1, rows=600)


def test_every_suite_of_the_command_exists_and_the_other_way_round():
    assert set(command.SUITES) == set(bench_suites.SUITES)


@pytest.mark.parametrize("suite", ["hamming", "lut4", "planes", "dense"])
def test_both_sides_answer_the_same_questions_about_the_same_rows(suite, small):
    rows = list(bench_suites.run(small, [suite]))
    assert rows and {row.suite for row in rows} == {suite}
    assert {row.queries for row in rows} == {4}
    for row in rows:
        assert row.rows == 600 and row.rounds == 1 and row.data == "synthetic"
        assert row.ours_ns > 0 and row.peer_ns > 0 and row.ratio == pytest.approx(row.peer_ns / row.ours_ns)
        assert row.of_bandwidth == pytest.approx(row.code_bytes / row.ours_ns / row.bandwidth_gb_per_s)
        # the same codes, or as fine ones, find nearly the same rows: a mix-up of layouts or queries would find none
        assert row.recall > 0.3 and abs(row.recall - row.peer_recall) < 0.25
        assert row.of_exhaustive in (None, 1)


def test_suites_that_compare_ragq_with_itself_name_the_baseline(small, monkeypatch):
    monkeypatch.setattr(bench_suites, "SIZES", (200, 600))
    peers_of = {
        suite: {row.peer for row in bench_suites.run(small, [suite])} for suite in ("threads", "filter", "scale")
    }
    assert peers_of == {"threads": {"ragq, 1 thread"}, "filter": {"ragq, no filter"}, "scale": {"ragq, 200 rows"}}


def test_codecs_are_timed_on_one_processor_per_vector(small, monkeypatch):
    allowed, seen = os.sched_getaffinity(0), set()
    encode = TQ.encode
    monkeypatch.setattr(TQ, "encode", lambda *a: [seen.add(len(os.sched_getaffinity(0))), encode(*a)][1])
    rows = {(row.case.split(",")[0], row.peer): row for row in bench_suites.run(small, ["encode", "train"])}
    assert set(rows) == {
        ("TQ4", "faiss RR384,SQtqmse4"),
        ("RBQ4", "faiss RR384,RaBitQ4"),
        ("RBQ4", "rabitqlib IVF1, 4 bits"),
        ("SAQ4", None),
        ("PQ48x8", "faiss ProductQuantizer"),
    }
    assert seen == {1} and os.sched_getaffinity(0) == allowed
    row = rows["PQ48x8", "faiss ProductQuantizer"]
    errors = [float(part) for part in row.case.split()[-3::2]]
    assert errors[0] < 1.01 * errors[1] and row.rows == 600 and 1e2 < row.ours_ns < 1e7


def test_processor_time_is_counted_where_asked_for_but_not_of_threads(small):
    small.cpu_time = True
    rows = [*bench_suites.run(small, ["lut4"]), *bench_suites.run(small, ["threads"])]
    assert {(row.suite, row.clock) for row in rows} == {("lut4", "cpu"), ("threads", "wall")}


def test_a_missing_library_is_left_out_and_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    rows = list(bench_suites.run(small, ["lut4"]))
    assert [(row.peer, row.peer_ns, row.ratio) for row in rows] == [(None, None, None)] * 2
    assert len(small.skipped) == 1 and "pip install 'ragq[bench]'" in next(iter(small.skipped))
    with pytest.raises(MissingExtraError, match="'faiss' is not installed"):
        peers.load("faiss")


def test_rounds_are_interleaved_in_turning_order_and_impatient(monkeypatch):
    order = []
    seconds = itertools.count()
    now = partial(next, seconds)
    runs = [lambda: order.append("a"), lambda: order.append("b")]
    assert bench.rounds(runs, 3, now) == [[1, 1, 1], [1, 1, 1]]
    assert "".join(order) == "aabb" + "ab" + "ba" + "ab"
    monkeypatch.setattr(bench, "PATIENCE", 1)
    assert bench.rounds(runs, 3, now) == [[1], [1]]
    monkeypatch.setattr(bench, "SLOW", 0.5)
    order.clear()
    assert bench.rounds(runs, 3, now) == [[1], [1]] and order == ["a", "b"]


def test_the_ratio_is_the_median_over_rounds_of_the_times_of_one_round(small, monkeypatch):
    read = [seconds * bench.BANDWIDTH_BYTES / 1e9 for seconds in (1.0, 4.0, 2.0)]  # at 1, 1/4 and 1/2 GB/s
    monkeypatch.setattr(bench, "rounds", lambda *_: [[1.0, 2.0, 10.0], [3.0, 4.0, 5.0], read])
    monkeypatch.setattr(bench, "fastest_read", lambda *_: None)
    one = Contender("one", lambda queries, k: None, [0])
    (row,) = small.compare("s", "c", one, [one], k=1, rows=1, code_bytes=10**9)
    assert (row.ours_ns, row.peer_ns, row.ratio) == (2e9, 4e9, 2.0)
    assert (row.bandwidth_gb_per_s, row.of_bandwidth) == pytest.approx((0.5, 1.0))  # of 1, 2 and 0.2


def test_what_an_early_exit_loses_is_counted_against_the_exhaustive_scan():
    right = Contender("exhaustive", lambda queries, k: np.arange(20).reshape(2, 10), [0, 1])
    found = Contender("ours", lambda queries, k: np.r_[0:10, 0:5, 15:20].reshape(2, 10), [0, 1])
    assert bench.reached(right, found, 10) == 0.75


def test_rows_beyond_the_data_are_unit_blends_and_never_repeat(source):
    vectors = Vectors(source, 5_000)
    assert vectors.name == "synthetic, blended" and len(vectors) == 5_000
    base = vectors[:5]
    assert np.array_equal(base, source.base[:5])
    again = vectors[np.array([2_000, 2_001, 4_000])]
    assert np.allclose(np.linalg.norm(again, axis=1), 1, atol=1e-6)
    assert np.allclose(again[0], normalized(source.base[:1] + source.base[3:4] / 2)[0], atol=1e-6)
    assert np.array_equal(vectors[2_000:2_002], again[:2])
    assert len(np.unique(vectors[:].round(5), axis=0)) == 5_000
    assert sum(len(chunk) for chunk in Vectors(source, 70_000).chunks()) == 70_000


def test_the_shared_data_is_used_where_it_is_found(shared, monkeypatch):
    monkeypatch.setenv("RAGQ_SHARED", str(shared.parent))
    found = load_source(8)
    assert found.name == "scale" and found.base.shape == (100_000, 384) and found.queries.shape == (8, 384)
    assert np.allclose(np.linalg.norm(found.queries, axis=1), 1, atol=1e-5)


def test_the_command_prints_json_and_markdown_with_progress_apart(source):
    arguments = ["--suite", "lut4", "--rows", "300", "--queries", "2", "--repeats", "1"]
    done = CliRunner().invoke(command.bench, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert {"suite", "case", "ours_ns", "peer", "peer_ns", "ratio", "recall", "peer_recall"} <= set(rows[0])
    assert "data: synthetic" in done.stderr and "data:" not in done.stdout
    done = CliRunner().invoke(command.bench, [*arguments, "--markdown"])
    assert "| case | ours ns | peer |" in done.stdout and "faiss IndexPQFastScan" in done.stdout
    assert "One thread reads" in done.stdout
