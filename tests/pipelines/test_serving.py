"""A server answers as the index itself, whatever others ask at the same time, and refuses what it should not do."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ragq
from ragq.embedders import load_embedder
from ragq.errors import InvalidArgumentError, StorageError
from ragq.pipelines.serving.app import finite
from ragq.pipelines.serving.batching import Batcher
from ragq.pipelines.serving.fleet import cut
from ragq.pipelines.serving.limits import BusyError, Limits
from ragq.pipelines.serving.server import serve
from ragq.pipelines.serving.service import Service
from ragq.retrievers.structures.base import Probe
from ragq.tokens import TokenEmbeddings
from tests.eval.test_report import FLAGS
from tests.indexes import documents, expected_files, make, on_disk, words_model
from tests.serving import JSON, Client, Direct, serving

TOKEN = "a token of many letters"
QUERIES = [f"text {i} of {i % 3}" for i in range(48)]
FILTERS: list[Any] = [None, {"lang": "en"}, {"n": {"$gte": 250}}, {"last": True}]
IMPATIENT = Limits(
    body=20_000, k=50, queries=8, text=100, ids=5, conditions=10, header_seconds=0.4, body_seconds=0.4, connections=64
)


def corpus() -> list[dict]:
    """300 documents, of which one has a field of its own, and one looks like HTML."""
    found = documents(300)
    found[299]["last"] = True
    found[7] |= {"title": "<script>document.title = 'x'</script> & <b>7</b>", "text": "bold <img src=x> words"}
    return found


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ragq.Index:
    path = tmp_path_factory.mktemp("serving") / "small.ragq"
    ragq.build(corpus(), path, model=words_model, codec="F32", shard_rows=50).close()
    return ragq.open(path, model=words_model)


@pytest.fixture(scope="module")
def client(index: ragq.Index) -> Iterator[Client]:
    with serving(index.path, limits=IMPATIENT) as found:
        yield found


def plain(hits: list[ragq.Hit]) -> list[dict]:
    return [dataclasses.asdict(hit) | {"metadata": dict(hit.metadata)} for hit in hits]


@pytest.mark.parametrize("where", FILTERS, ids=str)
def test_a_served_search_is_a_search(index: ragq.Index, client: Client, where: Any) -> None:
    for k in (1, 7, 50):
        expected = index.search(QUERIES[:6], k, where)
        for query, hits in zip(QUERIES, expected, strict=False):
            answer = client.post("/v1/search", {"query": query, "k": k, "where": where})
            assert answer.status == 200 and answer.value["hits"] == plain(hits)
        body = {"queries": QUERIES[:6], "k": k, "where": where}
        assert client.post("/v1/search/batch", body).value["results"] == [plain(hits) for hits in expected]
        x = words_model(QUERIES[:1])[0].tolist()
        assert client.post("/v1/search", {"embedding": x, "k": k, "where": where}).value["hits"] == plain(expected[0])
    assert client.post("/v1/search/batch", {"queries": []}).value["results"] == []


def test_documents_by_id_come_in_the_order_of_the_ids(index: ragq.Index, client: Client) -> None:
    ids = ["d299", "unknown", "d0", "d120"]
    found = client.post("/v1/get", {"ids": ids}).value["documents"]
    assert [d["id"] for d in found] == ["d299", "d0", "d120"]
    assert found == [dataclasses.asdict(d) | {"metadata": dict(d.metadata)} for d in index.get(ids)]


def test_many_clients_share_scans_and_get_their_own_answers(index: ragq.Index, client: Client) -> None:
    expected = {(q, k, i): plain(index.search(q, k, FILTERS[i])) for q in QUERIES[:24] for k in (3, 20) for i in (0, 1)}

    def ask(case: tuple[str, int, int]) -> tuple[Any, Any]:
        query, k, i = case
        return client.post("/v1/search", {"query": query, "k": k, "where": FILTERS[i]}).value["hits"], expected[case]

    with ThreadPoolExecutor(16) as pool:
        for found, right in pool.map(ask, expected):
            assert found == right
    counted = client.metrics()
    assert counted["ragq_batch_queries_count"] < counted["ragq_batch_queries_sum"]


@pytest.mark.slow
def test_lists_and_graphs_are_served_as_they_search(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 16)).astype(np.float32)
    options = {"embeddings": x, "ids": [f"d{i}" for i in range(2000)], "codec": "INT8", "shard_rows": 500}
    index = ragq.build(None, tmp_path / "index", **options)
    index.restructure("ivf")
    index.add([{"id": "late", "text": "late"}], embeddings=x[:1])
    queries = rng.standard_normal((9, 16)).astype(np.float32)
    with serving(index.path, workers=2, embedder=lambda _: None) as client:
        for probe in ({}, {"nprobe": 2}, {"exact": True}):
            answer = client.post("/v1/search/batch", {"embeddings": queries.tolist(), "k": 5} | probe)
            assert answer.value["results"] == [plain(hits) for hits in index.hits(queries, 5, **probe)]
        assert client.post("/v1/get", {"ids": ["late", "d3"]}).value["documents"][0]["id"] == "late"
        assert "ready embeddings" in client.post("/v1/search", {"query": "text"}).value["detail"]


@pytest.mark.slow
def test_a_multi_vector_index_is_served(tmp_path: Path) -> None:
    x = TokenEmbeddings.from_list([words_model(f"{i} of {i % 3} words {i // 7}".split()) for i in range(60)])
    options = {"codec": "INT8", "multi_vector": True, "metric": "ip", "first_stage": "MUVERA(2,2,4),FP8"}
    index = ragq.build(documents(60), tmp_path / "index", embeddings=x, shard_rows=25, **options)
    queries = [words_model(["3", "of", "words"]), words_model(["words", "7"]), words_model(["1"])]
    with serving(index.path, embedder=lambda _: None) as client:
        for probe in ({}, {"candidates": 7}, {"exact": True}):
            for where in (None, {"lang": "en"}):
                body = {"embeddings": [q.tolist() for q in queries], "k": 5, "where": where} | probe
                found = client.post("/v1/search/batch", body).value["results"]
                assert found == [
                    plain(hits) for hits in index.hits(TokenEmbeddings.from_list(queries), 5, where, **probe)
                ]
        assert client.post("/v1/search", {"embedding": [0.0] * 8}).status == 400
        assert client.post("/v1/search", {"embedding": [[0.0] * 7]}).status == 400
        assert client.post("/v1/search", {"embedding": [[0.0] * 8], "nprobe": 3}).status == 400


def test_what_is_no_json_of_others_becomes_null() -> None:
    metadata = {"nan": float("nan"), "list": [{"deep": float("-inf")}, 1.5], "b": True, "n": None}  # of a stranger
    assert finite([metadata]) == [{"nan": None, "list": [{"deep": None}, 1.5], "b": True, "n": None}]


# Refusals

DEEP: Any = {"n": 1}
for _ in range(30):
    DEEP = {"$not": DEEP}
REFUSED = {
    "no json": ("/v1/search", b'{"query": "a', 422),
    "not utf-8": ("/v1/search", b'{"query": "\xff"}', 400),
    "a list": ("/v1/search", [], 422),
    "nothing": ("/v1/search", {}, 400),
    "both": ("/v1/search", {"query": "a", "embedding": [0.0] * 8}, 400),
    "unknown field": ("/v1/search", {"query": "a", "limit": 3}, 422),
    "k as text": ("/v1/search", {"query": "a", "k": "3"}, 422),
    "k of nothing": ("/v1/search", {"query": "a", "k": 0}, 422),
    "k too large": ("/v1/search", {"query": "a", "k": 51}, 400),
    "k beyond integers": ("/v1/search", {"query": "a", "k": 10**30}, 400),
    "long text": ("/v1/search", {"query": "a" * 101}, 400),
    "many queries": ("/v1/search/batch", {"queries": ["a"] * 9}, 400),
    "other dimension": ("/v1/search", {"embedding": [0.0] * 9}, 400),
    "no numbers": ("/v1/search", {"embedding": ["a"] * 8}, 422),
    "not finite": ("/v1/search", b'{"embedding": [NaN,0,0,0,0,0,0,0]}', 422),
    "infinite": ("/v1/search", b'{"embedding": [1e999,0,0,0,0,0,0,0]}', 422),
    "too large for float32": ("/v1/search", {"embedding": [1e300] + [0.0] * 7}, 400),
    "unknown operator": ("/v1/search", {"query": "a", "where": {"n": {"$regex": "a"}}}, 400),
    "field of no document": ("/v1/search", {"query": "a", "where": {"nope": 1}}, 400),
    "deep filter": ("/v1/search", {"query": "a", "where": DEEP}, 400),
    "wide filter": ("/v1/search", {"query": "a", "where": {"n": {"$in": list(range(11))}}}, 400),
    "deep json": ("/v1/search", b'{"where":' + b'{"$not":' * 2000, 400),
    "many ids": ("/v1/get", {"ids": list("abcdef")}, 400),
    "large": ("/v1/search", {"query": "a" * 20_000}, 413),
    "announced large": ("/v1/search", b"", 413),
    "no such page": ("/v2/search", {"query": "a"}, 404),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_wrong_is_refused_in_words(client: Client, case: str) -> None:
    path, body, status = REFUSED[case]
    headers = {"Content-Length": "99999999"} if case == "announced large" else {}
    answer = client("POST", path, body, headers)
    assert answer.status == status
    assert answer.value["detail"] and "/" not in answer.value["detail"].replace("application/json", "")
    assert client.post("/v1/search", {"query": "text", "k": 1}).status == 200


def test_a_form_of_another_site_is_refused(client: Client) -> None:
    assert client("POST", "/v1/search", b'{"query": "a"}', {"Content-Type": "text/plain"}).status == 415
    assert client("GET", "/v1/info", headers={"Host": "evil.example"}).status == 421
    assert client("GET", "/v1/search").status == 405
    assert "access-control-allow-origin" not in client("GET", "/", headers={"Origin": "http://evil.example"}).headers


def test_a_token_is_asked_for_before_anything_is_read(index: ragq.Index) -> None:
    with serving(index.path, workers=1, token=TOKEN, limits=IMPATIENT) as client:
        body = {"query": "text", "k": 1}
        for path in ("/v1/search", "/v1/search/batch", "/v1/get", "/v1/info", "/metrics", "/nowhere"):
            for given_ in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
                refused = client("POST", path, b"x" * 100_000, given_)
                assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert client("POST", "/v1/search", body, {"Authorization": f"Bearer {TOKEN}"}).status == 200
        assert client("GET", "/health").status == client("GET", "/").status == 200
        assert TOKEN not in client("GET", "/").body.decode()


def test_slow_and_silent_clients_are_hung_up_on_and_hold_up_nobody(client: Client) -> None:
    starts = [
        b"",
        b"POST /v1/search HT",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    ]
    slow = [socket.create_connection(client.address, timeout=10) for _ in range(40)]
    for i, connection in enumerate(slow):
        connection.sendall(starts[i % 4])
    started = time.perf_counter()
    while time.perf_counter() < started + 0.6:
        assert client.post("/v1/search", {"query": "text", "k": 1}).status == 200
    for connection in slow:
        received = b""
        while part := connection.recv(4096):
            received += part
        connection.close()
        assert not received or received.startswith(b"HTTP/1.1 408")
    assert time.perf_counter() < started + 8


@pytest.mark.slow
def test_a_client_that_does_not_read_is_hung_up_on(tmp_path: Path) -> None:
    path = tmp_path / "long"
    texts = [{"id": f"d{i}", "text": f"{i} " + "x" * 400_000} for i in range(40)]
    ragq.build(texts, path, embeddings=np.eye(40, 8, dtype=np.float32), codec="F32").close()
    body = json.dumps({"embedding": [1.0] * 8, "k": 40}).encode()
    head = (
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    limits = Limits(write_seconds=0.5)
    with serving(path, workers=1, embedder=lambda _: None, limits=limits) as client:
        whole = client("POST", "/v1/search", body)
        assert whole.status == 200 and len(whole.value["hits"]) == 40
        with socket.create_connection(client.address, timeout=10) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
            connection.sendall(head % len(body) + body)
            time.sleep(2.5)
            assert client("POST", "/v1/search", {"embedding": [1.0] * 8, "k": 1}).status == 200
            received = 0
            try:
                while part := connection.recv(1 << 20):
                    received += len(part)
            except ConnectionError:
                pass
            assert received < len(whole.body)
    small = Limits(answer=1_000_000)
    with serving(path, workers=1, embedder=lambda _: None, limits=small) as client:
        assert client("POST", "/v1/search", {"embedding": [1.0] * 8, "k": 2}).status == 200
        refused = client("POST", "/v1/search", {"embedding": [1.0] * 8, "k": 40})
        assert refused.status == 400 and "larger than this server sends" in refused.value["detail"]
        assert client("POST", "/v1/get", {"ids": [f"d{i}" for i in range(40)]}).status == 400


def test_more_connections_than_it_takes_get_503(client: Client) -> None:
    held = [socket.create_connection(client.address, timeout=10) for _ in range(IMPATIENT.connections)]
    try:
        time.sleep(0.05)
        assert client("GET", "/health").status == 503
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.05)
    assert client("GET", "/health").status == 200


def test_a_full_queue_says_so() -> None:
    async def main() -> None:
        gate, seen = asyncio.Event(), []

        async def run(items: list[int]) -> list[int | Exception]:
            await gate.wait()
            seen.append(items)
            return [ValueError("7") if i == 7 else 10 * i for i in items]

        batcher: Batcher[int, int] = Batcher(run, 4, 6)
        first = asyncio.create_task(batcher([1]))
        await asyncio.sleep(0)
        others = [asyncio.create_task(batcher([i])) for i in range(2, 8)]
        await asyncio.sleep(0)
        assert batcher.waiting == 6
        with pytest.raises(BusyError, match="6 queries wait"):
            await batcher([8])
        others[0].cancel()
        gate.set()
        assert await first == [10]
        assert [await task for task in others[1:5]] == [[30], [40], [50], [60]]
        with pytest.raises(ValueError, match="7"):
            await others[5]
        assert seen == [[1], [3, 4, 5, 6], [7]]
        assert await batcher(list(range(20, 27))) == [10 * i for i in range(20, 27)]
        assert seen[3:] == [[20, 21, 22, 23], [24, 25, 26]]

    asyncio.run(main())


def test_a_busy_server_answers_429(index: ragq.Index) -> None:
    with serving(index.path, workers=1, limits=Limits(waiting=1, batch=2)) as client:
        body = {"queries": QUERIES[:2], "k": 1}
        answer = client.post("/v1/search/batch", body)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert client.post("/v1/search", {"query": "text", "k": 1}).status == 200


def test_new_filters_wait_and_known_ones_do_not(index: ragq.Index) -> None:
    class Slow(Direct):
        """A replica in this process whose filters take their time."""

        def __init__(self) -> None:
            super().__init__(str(index.path))
            self.gate, self.prepared = asyncio.Event(), 0

        async def call(self, method: str, *arguments: Any) -> Any:
            if method == "prepare":
                self.prepared += 1
                await self.gate.wait()
            return await super().call(method, *arguments)

    async def main() -> None:
        workers: list[Slow] = []

        def start() -> Slow:
            workers.append(Slow())
            return workers[-1]

        limits = Limits(filters=2)
        service = Service(index.path, start, 1, lambda _: load_embedder(words_model), limits)
        await service.start()
        ask = functools.partial(service.search, ["text"], None, 3)
        workers[0].gate.set()
        known = (await ask({"lang": "en"}, Probe()))[2]
        workers[0].gate.clear()
        slow = [asyncio.create_task(ask({"n": {"$gt": i}}, Probe())) for i in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError, match="2 filters wait"):
            await ask({"n": 3}, Probe())
        assert (await ask({"lang": "en"}, Probe()))[2] == known
        assert (await ask(None, Probe()))[2] and workers[0].prepared == 3
        workers[0].gate.set()
        assert all(hits for _, _, hits in await asyncio.gather(*slow))
        await service.stop()

    asyncio.run(main())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), max_size=12), st.integers(1, 6))
def test_shards_are_cut_into_neighbours(sizes: list[int], parts: int) -> None:
    runs = cut(sizes, parts)
    assert [i for first, stop in runs for i in range(first, stop)] == list(range(len(sizes)))
    assert len(runs) <= parts and all(first < stop for first, stop in runs)
    heaviest = max((sum(sizes[first:stop]) for first, stop in runs), default=0)
    assert heaviest <= (sum(sizes) / parts if sizes else 0) + max(sizes, default=0)


# Changes and accidents


def test_a_new_generation_is_taken_up_and_the_old_one_let_go(tmp_path: Path) -> None:
    writer = make(tmp_path / "index", 40, shard_rows=10)
    with serving(writer.path) as client:
        seen = set()
        for round_ in range(2):
            new = [{"id": f"d{i}", "text": f"round {round_}"} for i in range(40)]
            writer.add(new)
            generation = writer.manifest.generation
            for _ in range(200):
                answer = client.post("/v1/search", {"query": "round", "k": 40}).value
                texts = {hit["text"] for hit in answer["hits"]}
                seen.add(answer["generation"])
                assert len(answer["hits"]) == 40 and len(texts) == (1 if answer["generation"] > 1 else 40)
                if answer["generation"] == generation:
                    assert texts == {f"round {round_}"}
                    break
                time.sleep(0.02)
            assert answer["generation"] == generation
        assert len(seen) >= 2
        time.sleep(0.2)
        writer.delete(["d0"])
        time.sleep(0.5)
        writer.delete(["d1"])
        held = len(on_disk(writer.path) - expected_files(writer.path))
        assert held <= 3, "generations that nobody reads are kept"
        assert client.metrics()["ragq_reloads_total"] >= 3
        (writer.path / "manifest.json").write_text("{}")
        time.sleep(0.3)
        assert client.post("/v1/search", {"query": "round", "k": 40}).status == 200
        assert client.metrics()["ragq_reload_failures_total"] >= 1


@pytest.mark.slow
def test_a_replica_that_dies_is_started_again(index: ragq.Index) -> None:
    with serving(index.path) as client:
        expected = plain(index.search("text 3", 5))
        body = {"query": "text 3", "k": 5}
        assert client.post("/v1/search", body).value["hits"] == expected
        victim = client.service.fleet._workers[1]
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        refused, end = 0, time.monotonic() + 20
        while time.monotonic() < end:
            answer = client.post("/v1/search", body)
            if answer.status == 200 and refused:
                break
            assert answer.status == 503 and answer.headers["retry-after"]
            assert client("GET", "/health").status in (200, 503)
            refused += 1
            time.sleep(0.05)
        assert answer.value["hits"] == expected
        assert client("GET", "/health").status == 200
        assert client.metrics()["ragq_replica_restarts_total"] == 1


def test_an_index_that_cannot_be_opened_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no index"), serving(tmp_path / "nothing", workers=1):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "everybody who reaches 0.0.0.0"),
        ({"host": "0.0.0.0", "token": "short"}, "16 ASCII characters"),
        ({"engine": "other"}, "'engine' must be one of"),
        ({"workers": 0}, "'workers' must be"),
    ],
)
def test_a_server_that_is_open_by_mistake_does_not_start(index: ragq.Index, options: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        serve(index.path, **options)


def test_an_address_that_is_taken_is_named(index: ragq.Index) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(StorageError, match="Choose another"):
        serve(index.path, port=other.getsockname()[1])


# What it says of itself


def test_the_description_names_every_route(client: Client) -> None:
    described = client("GET", "/openapi.json").value
    assert set(described["paths"]) == {"/v1/search", "/v1/search/batch", "/v1/get", "/v1/info", "/health", "/metrics"}
    search = described["paths"]["/v1/search"]["post"]
    assert {"200", "400", "401", "413", "422", "429", "503"} <= set(search["responses"])
    assert {"query", "embedding", "k", "where"} <= set(
        described["components"]["schemas"]["SearchRequest"]["properties"]
    )
    assert client("GET", "/docs").status == 404


def test_info_tells_no_paths(index: ragq.Index, client: Client) -> None:
    info = client("GET", "/v1/info")
    assert info.value["documents"] == 300 and info.value["total_bytes"] == index.info()["total_bytes"]
    assert str(index.path.parent) not in info.body.decode()


def test_metrics_are_what_prometheus_reads(client: Client) -> None:
    answer = client("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    line = re.compile(r'(# (HELP|TYPE) ragq_\w+ .+|ragq_\w+(\{\w+="[^"\\\n]*"(,\w+="[^"\\\n]*")*\})? [\d.e+-]+)')
    assert all(line.fullmatch(text) for text in answer.body.decode().splitlines())
    values = client.metrics()
    assert values["ragq_generation"] == 1 and values["ragq_documents"] == 300
    buckets = [v for name, v in values.items() if name.startswith("ragq_scan_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == values["ragq_scan_seconds_count"]


def browse(url: str, scratch: Path) -> tuple[str, list[str]]:
    """Open a page in headless Chromium; return its DOM and every address that the page, not the browser, asked for."""
    log = scratch / "net.json"
    done = subprocess.run(
        ["chromium", *FLAGS, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    events = json.loads(log.read_text())["events"]
    requests = [event["params"] for event in events if "initiator" in event.get("params", ())]
    return done.stdout, [request["url"] for request in requests if request["initiator"] != "not an origin"]


def test_the_page_searches_and_shows_documents_as_text(index: ragq.Index, client: Client, tmp_path: Path) -> None:
    asked = {"q": "bold words", "where": '{"n": {"$lt": 12}}', "k": 12}
    dom, asked_for = browse(f"{client.url}?{urlencode(asked)}", tmp_path)
    hits = index.search("bold words", 12, {"n": {"$lt": 12}})
    assert [f"{hit.score:.4f}" for hit in hits] == re.findall(r'class="score">([^<]+)<', dom)
    assert re.findall(r'class="id">([^<]+)<', dom) == [hit.id for hit in hits]
    assert "&lt;script&gt;document.title = 'x'&lt;/script&gt; &amp; &lt;b&gt;7&lt;/b&gt;" in dom
    assert "<img" not in dom and "<title>ragq</title>" in dom
    info = index.info()
    assert f"generation {info['generation']}" in dom and f"{info['total_bytes']:,} bytes" in dom
    assert set(asked_for) == {f"{client.url}v1/info", f"{client.url}v1/search"}


def test_the_page_runs_its_own_script_alone(client: Client) -> None:
    answer = client("GET", "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"(src|href|action)\s*=", answer.body.decode())
    assert JSON["Content-Type"] == "application/json"


@pytest.mark.slow
def test_replicas_can_be_ray_actors(index: ragq.Index) -> None:
    from ragq.pipelines.serving.workers import RayWorker

    with serving(index.path, start_worker=lambda: RayWorker(str(index.path), 1), patience=240) as client:
        for where in FILTERS:
            answer = client.post("/v1/search", {"query": "text 3", "k": 7, "where": where})
            assert answer.value["hits"] == plain(index.search("text 3", 7, where))
        assert client.post("/v1/search", {"query": "a", "where": {"nope": 1}}).status == 400
        assert client.post("/v1/get", {"ids": ["d7"]}).value["documents"][0]["id"] == "d7"
