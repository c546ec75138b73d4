"""The report: the same rows in every file, and a page that needs no network and chooses as the command line does."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pyarrow.parquet as pq
import pytest

from ragq.errors import InvalidArgumentError
from ragq.eval.frontier import best_within
from ragq.eval.report import Report
from ragq.eval.run import load_data, run
from ragq.eval.tables import AVERAGE, of_dataset

SPECS = ("F16", "FP8", "BIN", "PCA8,FP8", "PCA4,FP8", "PCA12,INT8", "INT4", "NOPE")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
]


@pytest.fixture(scope="module")
def report(tiny: Path, tiny2: Path) -> Report:
    return run(load_data([tiny, tiny2], embeddings="tiny"), SPECS, study="a </script> & <b>name</b>")


@pytest.fixture(scope="module")
def folder(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    assert {path.name for path in report.write(out)} == {path.name for path in out.iterdir()}
    return out


def test_json_csv_and_parquet_hold_the_same_rows(report: Report, folder: Path) -> None:
    rows = json.loads((folder / "results.json").read_text())
    assert rows == json.loads(json.dumps(report.rows))
    assert len(rows) == 2 * (len(SPECS) + 1) + len(SPECS)
    table = pq.read_table(folder / "results.parquet").to_pylist()
    with (folder / "results.csv").open() as lines:
        flat = list(csv.DictReader(lines))
    for row, arrow, text in zip(rows, table, flat, strict=True):
        for name in ("dataset", "spec", "ndcg@10", "recall@100", "code_bytes", "index_bytes_per_vector", "error"):
            assert arrow[name] == row.get(name)
            assert text[name] == ("" if row.get(name) is None else str(row[name]))


def test_the_markdown_table_has_a_row_for_each_spec_on_average(report: Report, folder: Path) -> None:
    head, _, *lines = (folder / "results.md").read_text().splitlines()
    assert head.startswith("| spec | code bytes | index bytes | ndcg@10 | 95 % | tiny | tiny2 |")
    average = {row["spec"]: row for row in of_dataset(report.rows)}
    assert len(lines) == len(average)
    for line in lines:
        spec, size, _, value = (cell.strip() for cell in line.strip("| ").split(" | ")[:4])
        row = average[spec.strip("` ▲")]
        assert float(size) == row["code_bytes"]
        assert value == (f"**{row['ndcg@10']:.4f}**" if row["on_frontier"] else f"{row['ndcg@10']:.4f}")


def test_the_report_says_how_it_was_made(folder: Path) -> None:
    about = json.loads((folder / "about.json").read_text())
    assert Path(sys.argv[0]).name in about["command"]
    assert "ragq 0" in about["versions"] and "numpy" in about["versions"]
    assert about["seed"] == "0" and about["metric"] == "cosine" and about["embeddings"] == "tiny"
    assert "scores 0" in about["rules"]
    assert pq.read_schema(folder / "results.parquet").metadata[b"seed"] == b"0"


def test_the_picture_has_a_panel_for_each_data_set_and_the_average(folder: Path) -> None:
    data = (folder / "frontier.png").read_bytes()
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and width > 3 * 700 and height > 600


def test_the_table_names_every_spec_and_its_bytes(report: Report) -> None:
    from rich.console import Console

    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(report.table())
    text = console.export_text()
    for row in of_dataset(report.rows):
        assert re.search(rf"{re.escape(row['spec'])} .*{row['code_bytes']:g} .*{row['ndcg@10']:.4f}", text)


def test_an_unknown_measure_is_refused(report: Report) -> None:
    with pytest.raises(InvalidArgumentError, match="Unknown measure 'ndgc@10'"):
        Report(report.results, report.datasets, "ndgc@10")


def browse(page: Path, profile: Path, **state: object) -> tuple[str, list[str]]:
    """Open a page in headless Chromium; return its DOM and every address that the page, not the browser, asked for."""
    log = profile / "net.json"
    address = f"file://{page}#{urlencode(state)}"
    command = [shutil.which("chromium") or "chromium", *FLAGS, f"--user-data-dir={profile}", f"--log-net-log={log}"]
    done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=90, check=True)
    requests = [
        event["params"] for event in json.loads(log.read_text())["events"] if "initiator" in event.get("params", ())
    ]
    return done.stdout, [request["url"] for request in requests if request["initiator"] != "not an origin"]


def attribute(dom: str, element: str, name: str) -> str:
    found = re.search(rf'id="{element}"[^>]*?\s{name}="([^"]*)"', dom)
    assert found, f"#{element} has no {name}"
    return html.unescape(found[1])


def test_the_browser_s_log_shows_what_a_page_asks_for(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://example.invalid/a.png"><script src="https://example.invalid/b.js"></script>')
    assert set(browse(page, tmp_path)[1]) == {"http://example.invalid/a.png", "https://example.invalid/b.js"}


@pytest.mark.parametrize(("dataset", "budget"), [(AVERAGE, 8), ("tiny2", 12.5)])
def test_the_page_asks_no_host_shows_every_run_and_picks_as_the_command_line(
    report: Report, folder: Path, tmp_path: Path, dataset: str, budget: float
) -> None:
    dom, asked = browse(folder / "report.html", tmp_path, dataset=dataset, budget=budget, left="BIN", right="F16")
    assert asked == []
    rows = of_dataset(report.rows, dataset)
    table = re.search(r'<table id="runs">.*?</table>', dom, re.DOTALL)
    assert table and all(f">{row['spec']}</button>" in table[0].replace("● ", "").replace("▲ ", "") for row in rows)
    frontier = [row["spec"] for row in sorted(rows, key=lambda row: row["code_bytes"]) if row["on_frontier"]]
    assert attribute(dom, "chart", "data-frontier").split() == frontier
    best = best_within(rows, budget, "ndcg@10")
    assert best is not None and attribute(dom, "best", "data-spec") == best["spec"]
    assert dataset != AVERAGE or best == report.best(budget)
    assert "Failed: NOPE on tiny" in dom
    assert re.search(r"BIN against F16, ndcg@10: \d+ wins, \d+ ties, \d+ losses", dom)
    assert re.search(r"<summary><b>[+−]0\.\d+</b>question \d+\?</summary>", dom)
    assert "a &lt;/script&gt; &amp; &lt;b&gt;name&lt;/b&gt;" in dom


def test_queries_alone_are_measured_by_their_agreement(tiny: Path, tmp_path: Path) -> None:
    asked = tmp_path / "mine.jsonl"
    asked.write_bytes((tiny / "queries.jsonl").read_bytes())
    (tmp_path / "mine.tiny.npy").write_bytes((tiny / "queries.tiny.npy").read_bytes())
    alone = run(load_data([tiny], queries=asked, embeddings="tiny"), ["FP8", "BIN"])
    assert alone.measure == "agreement@10" and "ndcg@10" not in alone.rows[0]
    by = {row["spec"]: row for row in alone.rows}
    assert by["F32"]["agreement@10"] == 1 > by["FP8"]["agreement@10"] > by["BIN"]["agreement@10"]
    assert by["FP8"]["rbo"] > by["BIN"]["rbo"]
    alone.write(tmp_path / "out")
