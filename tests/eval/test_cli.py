"""`ragq eval` on the command line, and the candidates of a budget."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ragq.cli.eval import eval_command
from ragq.compressors import from_spec
from ragq.errors import InvalidArgumentError, RagqError
from ragq.eval.candidates import candidates, menu, parse_budgets, pick
from ragq.eval.run import systems_for


def call(*arguments: object) -> Result:
    return CliRunner().invoke(eval_command, [str(argument) for argument in arguments])


def test_json_is_a_list_of_runs_with_bytes_and_measures(tiny: Path, tiny2: Path) -> None:
    done = call(tiny, tiny2, "--embeddings", "tiny", "--codec", "PCA8,FP8", "--codec", "FP8", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [(row["dataset"], row["spec"]) for row in rows] == [
        (dataset, spec) for dataset in ("tiny", "tiny2", "average") for spec in ("PCA8,FP8", "FP8", "F32")
    ]
    for row in rows:
        assert 0 < row["ndcg@10"] <= 1 and 0 < row["recall@100"] <= 1
        assert row["index_bytes_per_vector"] > row["code_bytes"] > 0


def test_the_report_is_written_and_a_second_run_measures_nothing_again(tiny: Path, tmp_path: Path) -> None:
    arguments = (tiny, "--embeddings", "tiny", "--codec", "FP8", "--out", tmp_path, "--budget", "16")
    first, second = call(*arguments), call(*arguments)
    assert first.exit_code == second.exit_code == 0, first.output
    assert "(kept)" not in first.output and second.output.count("(kept)") == 2
    assert (tmp_path / "report.html").stat().st_size > 1e6
    assert "Best within 16 B: FP8" in first.output


def test_no_best_within_a_budget_says_why(tiny: Path) -> None:
    done = call(tiny, "--embeddings", "tiny", "--codec", "QJL400", "--budget", "60,2")
    assert "Best within 60 B: only what is heavy (▲) fits" in done.output  # its projection outweighs the documents
    assert "Best within 2 B: nothing fits" in done.output


def test_a_failed_spec_is_reported_and_the_exit_code_says_so(tiny: Path) -> None:
    done = call(tiny, "--embeddings", "tiny", "--codec", "NOPE", "--codec", "FP8")
    assert done.exit_code == 1
    assert "Failed: NOPE on tiny" in done.output and "FP8" in done.output
    assert "1 runs failed, first NOPE on tiny" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pick"], "--pick needs --budget"),
        ([], "Give at least one DATASET"),
        (["--stress", "3"], "needs at least one --codec"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], message: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2 and message in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "48,many"], "--budget must be bytes a vector"),
        (["--budget", "0"], "--budget must be bytes a vector"),
        (["--measure", "ndgc@10", "--codec", "F32"], "Unknown measure 'ndgc@10'"),
        (["--split", "dev", "--codec", "F32"], "has no split 'dev'"),
        (["--embeddings", "other", "--codec", "F32"], "no file '.*corpus.other.npy'"),
        (["--compare", "milvus"], "no peer 'milvus'"),
    ],
)
def test_bad_arguments_name_the_way_out(tiny: Path, arguments: list[str], message: str) -> None:
    done = call(tiny, "--embeddings", "tiny", *arguments)
    assert isinstance(done.exception, RagqError)
    with pytest.raises(InvalidArgumentError, match=message):
        raise done.exception


def test_two_data_sets_of_one_name_are_refused(tiny: Path) -> None:
    done = call(tiny, tiny, "--embeddings", "tiny")
    assert "each of another name" in str(done.exception)


def test_the_stress_test_prints_what_each_code_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from ragq.eval import limit

    monkeypatch.setattr(limit, "STEPS", 200)
    monkeypatch.setattr(limit, "TRIES", 1)
    rows = json.loads(call("--stress", 2, "--codec", "FP8", "--json").stdout)
    assert [(row["dataset"], row["spec"], row["critical_n"]) for row in rows] == [
        ("limit-free-2", "F32", 3),
        ("limit-free-2", "FP8", 3),
    ]


def test_budgets_are_read_sorted_and_once() -> None:
    assert parse_budgets("48, 192,48") == [192, 48]
    with pytest.raises(InvalidArgumentError, match="384,192,96,48,24"):
        parse_budgets("4.5")


@pytest.mark.parametrize("dim", [384, 100])
def test_candidates_fill_their_budget_and_never_exceed_it(dim: int) -> None:
    for budget in (96, 24):
        first, *specs = candidates(dim, [budget])
        assert first == "F32" and len(specs) >= 4
        sizes = {spec: from_spec(spec).code_size_at(dim) for spec in specs}
        assert all(0.75 * budget < size <= budget for size in sizes.values()), sizes
        assert len({str(from_spec(spec)) for spec in specs}) == len(specs)


def test_without_codec_or_budget_the_menu_of_the_registry_is_measured() -> None:
    assert menu(384)[0] == "F32" and {"INT8", "FP8", "BIN"} <= set(menu(384))
    assert [system.name for system in systems_for(384, [], [])] == menu(384)


def test_a_codec_from_outside_is_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    from ragq.compressors import registry
    from ragq.compressors.affine import INT8

    class Outside(INT8):
        """Int8 under another name."""

        forms = ("OUTSIDE",)

    monkeypatch.setattr(registry, "_registered", [Outside])
    assert "OUTSIDE" in candidates(48, [48])


def test_eval_and_index_pick_the_same_spec_for_a_budget(tiny: Path, tmp_path: Path) -> None:
    import ragq

    embeddings = np.load(tiny / "corpus.tiny.npy")
    for budget in (16, 8):
        built = ragq.build(tiny, tmp_path / f"{budget}.ragq", embeddings=embeddings, budget=budget)
        spec, reason = pick(embeddings, budget)
        assert spec == built.info()["spec"] and from_spec(spec).code_size_at(16) <= budget
        assert reason
        done = call(tiny, "--embeddings", "tiny", "--budget", budget, "--pick")
        assert f"Picked for tiny within {budget} B: {spec}" in done.output
