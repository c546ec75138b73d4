"""What is fuzzed: every reader of bytes or JSON that somebody else may have written.

A target is prepared in a folder of its own and gives a function of a seeded `random.Random` that makes one input and
checks it. It raises `AssertionError` on a wrong answer; any error but `RagqError` is a finding.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
import xxhash
from safetensors import safe_open

import ragq
from ragq.compressors import from_spec
from ragq.errors import CorruptIndexError, IncompatibleIndexError, InvalidArgumentError, RagqError
from ragq.filters import matching_rows
from ragq.layouts import Layout
from ragq.manifest import MANIFEST, FileEntry, Manifest, checksum
from ragq.pipelines.checkup import checkup
from ragq.pipelines.readers import read
from ragq.tokens import TokenEmbeddings
from tests.fuzz import arrays
from tests.fuzz.guard import guarded
from tests.fuzz.mutate import any_json, mutated, mutated_json, nudged_text
from tests.fuzz.runner import FAST, Check
from tests.indexes import documents, words_model

GOLDEN = Path(__file__).parents[1] / "golden"
X = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)


def use(path: Path) -> None:
    """Do with an index all that reads."""
    with ragq.open(path) as index:
        few = index.manifest.multi_vector is None
        queries = X[:2, : index.manifest.dim] if few else TokenEmbeddings.from_list([X[:2], X[2:3]])
        with contextlib.suppress(RagqError):
            found = index.search_embeddings(queries, 3, where={"lang": "en"})
            for ids, scores in zip(found.ids, found.scores, strict=True):
                assert all((name is None) == bool(score == -np.inf) for name, score in zip(ids, scores, strict=True))
        with contextlib.suppress(RagqError):
            hits = index.hits(queries, 4)
            assert all(hit.id.startswith(hit.document_id) for found in hits for hit in found)
        with contextlib.suppress(RagqError):
            names = [document.id for document in index]
            index.get([*names[:3], "unknown"])
        with contextlib.suppress(RagqError):
            index.info()
        index.verify()


STRUCTURES = {"fp8": "ivf", "hnsw": "hnsw", "graph": "sm2graph"}


@cache
def template() -> tempfile.TemporaryDirectory[str]:
    """Make small indexes with all kinds of files, once a run."""
    made = tempfile.TemporaryDirectory(dir=FAST)
    plans: dict[str, dict[str, Any]] = {
        "fp8": {"codec": "PCA4,FP8"},
        "pq": {"codec": "PQ4x4"},
        "rbq": {"codec": "RBQ2"},
        "tokens": {"codec": "INT8", "multi_vector": True, "metric": "ip", "first_stage": "MUVERA(2,2,4),FP8"},
        "learned": {"codec": "INT8", "multi_vector": True, "metric": "ip", "first_stage": "LEMUR4(8),FP8"},
        "graph": {"codec": "SM2"},
        "hnsw": {"codec": "INT8"},
    }
    for name, options in plans.items():
        path = Path(made.name) / name
        many = TokenEmbeddings.from_list([X[i : i + 1 + i % 3] for i in range(36)])
        x: Any = many if options.get("multi_vector") else X
        n = len(x)
        ragq.build(documents(n), path, embeddings=x, shard_rows=20, **options).close()
        with ragq.open(path, mode="w") as index:
            if name in STRUCTURES:
                index.restructure(STRUCTURES[name])
            index.delete(["d1", "d30"])
    return made


def indexes(folder: Path) -> list[Path]:
    """Copy them into a folder."""
    return [Path(shutil.copytree(path, folder / path.name)) for path in sorted(Path(template().name).iterdir())]


class Altered:
    """An index folder in which files can be replaced, and put back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = (path / MANIFEST).read_bytes()
        self.manifest = Manifest.load(path / MANIFEST, self.text)
        self.files = {file.name: (path / file.name).read_bytes() for file in self.manifest.files}

    def vouched(self, name: str, data: bytes) -> None:
        """Write a file, and a manifest that vouches for it."""
        body = json.loads(self.text)
        old = next(file for file in self.manifest.files if file.name == name)
        new = FileEntry(name, len(data), xxhash.xxh3_128_hexdigest(data))
        text = json.dumps(body).replace(json.dumps(vars(old)), json.dumps(vars(new)))
        body = json.loads(text)
        del body["checksum"]
        (self.path / name).write_bytes(data)
        self.write_manifest(body)

    def write_manifest(self, body: Any) -> None:
        if isinstance(body, dict):
            body = body | {"checksum": checksum(body)}
        (self.path / MANIFEST).write_bytes(
            (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        )

    def restore(self, name: str | None = None) -> None:
        if name is not None:
            (self.path / name).write_bytes(self.files[name])
        (self.path / MANIFEST).write_bytes(self.text)


def manifests(folder: Path) -> Check:
    """Manifests with other values, checksum included, and with other bytes."""
    made = [Altered(path) for path in indexes(folder)]
    guarded(folder)

    def check(rng: random.Random) -> None:
        altered = rng.choice(made)
        try:
            if rng.random() < 0.6:
                body = json.loads(altered.text)
                del body["checksum"]
                altered.write_manifest(mutated_json(rng, body))
            else:
                data = mutated(rng, altered.text, altered.text)
                (altered.path / MANIFEST).write_bytes(data)
                if data != altered.text:
                    with contextlib.suppress(IncompatibleIndexError):  # of another format, it says now
                        assert checkup(altered.path), "a changed manifest passes"
            with contextlib.suppress(RagqError):
                use(altered.path)
            with contextlib.suppress(RagqError):
                checkup(altered.path)
        finally:
            altered.restore()

    return check


def files(*kinds: str) -> Callable[[Path], Check]:
    """Files whose names hold one of `kinds`, with other bytes; mostly the manifest vouches for them."""

    def prepare(folder: Path) -> Check:
        made = [Altered(path) for path in indexes(folder)]
        names = [(altered, name) for altered in made for name in altered.files if any(kind in name for kind in kinds)]
        assert names
        guarded(folder)

        def check(rng: random.Random) -> None:
            altered, name = rng.choice(names)
            whole = altered.files[name]
            data = mutated(rng, whole, rng.choice(list(altered.files.values())))
            try:
                if rng.random() < 0.25:
                    (altered.path / name).write_bytes(data)
                    found = {finding.file for finding in checkup(altered.path)}
                    assert (data == whole) == (name not in found), "a changed file passes"
                else:
                    altered.vouched(name, data)
                    with contextlib.suppress(RagqError):
                        checkup(altered.path)
                with contextlib.suppress(RagqError):
                    use(altered.path)
            finally:
                altered.restore(name)

        return check

    return prepare


def states(folder: Path) -> Check:
    """Fitted states of every codec: other bytes, shapes, types and values."""
    golden = []
    for path in sorted(GOLDEN.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = {name.removeprefix("state."): a for name, a in arrays.items() if name.startswith("state.")}
        golden.append((metadata["spec"], state, arrays["x"], arrays["codes"]))

    def altered(rng: random.Random, state: dict[str, Any]) -> dict[str, Any]:
        if not state or rng.random() < 0.4:
            return dict(safetensors.numpy.load(mutated(rng, safetensors.numpy.save(state))))
        state = {name: np.array(array) for name, array in state.items()}
        name = rng.choice(sorted(state))
        array, kind = state[name], rng.randrange(7)
        if kind == 0:
            state[name] = array[: rng.randrange(len(array) + 1)] if array.ndim else array[None]
        elif kind == 1:
            state[name] = array.reshape(-1)
        elif kind == 2:
            state[name] = array.astype(rng.choice(("f8", "f2", "i8", "u1", "f4")))
        elif kind == 3 and array.size:
            array.flat[rng.randrange(array.size)] = rng.choice(
                (np.nan, np.inf, 3e38, -1, 0) if array.dtype.kind == "f" else (0, 1)
            )
        elif kind == 4:
            del state[name]
        elif kind == 5:
            state[nudged_text(rng, name)] = array
        elif array.size and array.dtype.kind in "iu":
            info = np.iinfo(array.dtype)
            array.flat[rng.randrange(array.size)] = rng.choice((info.max, info.min, info.max // 2))
        return state

    def check(rng: random.Random) -> None:
        spec, state, x, codes = rng.choice(golden)
        with contextlib.suppress(RagqError, safetensors.SafetensorError), np.errstate(all="ignore"):
            compressor = from_spec(spec).load_state(altered(rng, state))
            code_size = compressor.code_size
            assert compressor.encode(x[:, : compressor.dim]).shape == (len(x), code_size)
            if code_size == codes.shape[1]:
                wild = np.frombuffer(rng.randbytes(codes.size), np.uint8).reshape(codes.shape)
                compressor.decode(wild)
                compressor.scorer(x[:2, : compressor.dim], "ip").score(wild)

    return check


def specs(folder: Path) -> Check:
    """Specs and layouts as text."""
    known = [json.loads(line) for line in {json.dumps(s) for s in all_examples()}]
    layouts = ["rows:3x8+0", "blocks:7x4+2", "nibbles:5x8+2", "planes:9x3+1"]

    def check(rng: random.Random) -> None:
        text = rng.choice(known)
        for _ in range(rng.choice((1, 1, 2, 4))):
            text = nudged_text(rng, text)
        if rng.random() < 0.2:
            text = ",".join(rng.choice(known) for _ in range(rng.randrange(1, 5)))
        with contextlib.suppress(InvalidArgumentError):
            parsed = from_spec(text)
            assert from_spec(str(parsed)).spec == parsed.spec
        with contextlib.suppress(InvalidArgumentError):
            layout = nudged_text(rng, rng.choice(layouts))
            assert str(Layout.parse(layout)) == layout

    return check


def all_examples() -> list[str]:
    from ragq.compressors import stage_classes

    return [example for cls in stage_classes() for example in cls.examples]


OPERATORS = [
    "$eq",
    "$ne",
    "$gt",
    "$gte",
    "$lt",
    "$lte",
    "$in",
    "$nin",
    "$contains",
    "$exists",
    "$and",
    "$or",
    "$not",
    "$x",
]


def a_filter(rng: random.Random, depth: int = 0) -> Any:
    """Return a filter that is often right."""
    if rng.random() < 0.1:
        return any_json(rng)
    if depth < 3 and rng.random() < 0.4:
        if rng.random() < 0.5:
            return {"$not": a_filter(rng, depth + 1)}
        return {rng.choice(("$and", "$or")): [a_filter(rng, depth + 1) for _ in range(rng.randrange(3))]}
    name = rng.choice(("lang", "n", "id", "text", "title", "source", "tags", "nope"))
    value: Any = rng.choice(
        ("en", "de", 3, 3.5, True, None, "d3", "text 1 of 1", ["en"], {"a": 1}, 10**30, any_json(rng))
    )
    if rng.random() < 0.3:
        return {name: value}
    operator = rng.choice(OPERATORS)
    return {name: {operator: [value] if operator in ("$in", "$nin") and rng.random() < 0.8 else value}}


def filters(folder: Path) -> Check:
    """Filters, against their own complement."""
    records = documents(40)
    for i, record in enumerate(records):
        record |= {"tags": ["en", i % 3]} if i % 2 else {"deep": {"a": [i]}}
    ragq.build(records, folder / "index", embeddings=X, shard_rows=15, codec="F32").close()
    shards = ragq.open(folder / "index")._view.snapshot.shards

    def check(rng: random.Random) -> None:
        where = a_filter(rng) or {}
        deep = rng.random() < 0.02
        for _ in range(rng.randrange(2000) if deep else 0):
            where = {"$not": where}
        try:
            rows = matching_rows(shards, where)
        except InvalidArgumentError:
            return
        except CorruptIndexError as error:
            raise AssertionError("a filter damages nothing") from error
        others = matching_rows(shards, {"$not": where})
        assert all((a ^ b).all() for a, b in zip(rows, others, strict=True))
        both = matching_rows(shards, {"$and": [where, {"$not": where}]})
        assert not any(r.any() for r in both)

    return check


def bodies(folder: Path) -> Check:
    """HTTP requests to the application, without a network."""
    from ragq.embedders import load_embedder
    from ragq.pipelines.serving.app import make_app
    from ragq.pipelines.serving.limits import Limits
    from ragq.pipelines.serving.service import Service
    from tests.serving import Direct

    path = folder / "index"
    ragq.build(documents(40), path, model=words_model, shard_rows=15, codec="INT8").close()

    limits = Limits(body=50_000, k=100, queries=16, text=1000, ids=20, conditions=50)
    good: list[tuple[str, Any]] = [
        ("/v1/search", {"query": "text 3 of 0", "k": 5, "where": {"lang": "en", "n": {"$gte": 3}}}),
        ("/v1/search", {"embedding": [0.5] * 8, "k": 3, "exact": True, "nprobe": 3}),
        ("/v1/search/batch", {"queries": ["text", "of 1"], "k": 2, "where": {"$or": [{"n": 1}, {"n": {"$in": [2]}}]}}),
        ("/v1/search/batch", {"embeddings": [[0.5] * 8, [1.0] * 8], "ef_search": 4}),
        ("/v1/get", {"ids": ["d1", "d2", "unknown"]}),
    ]
    runner: asyncio.Runner | None = None
    app: Any = None
    expected: dict[str, bytes] = {}

    async def request(method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
        parts = [body[: len(body) // 2], body[len(body) // 2 :]]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            part = parts.pop(0) if parts else b""
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        scope = {"type": "http", "method": method, "path": target, "raw_path": target.encode("utf-8", "replace"),
                 "query_string": b"", "headers": headers, "root_path": "", "http_version": "1.1", "scheme": "http",
                 "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "state": {},
                 "asgi": {"version": "3.0"}}  # fmt: skip
        await app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

    def check(rng: random.Random) -> None:
        nonlocal runner, app
        if runner is None:  # in the child, after the fork
            runner = asyncio.Runner()
            service = Service(path, lambda: Direct(str(path)), 2, lambda _: load_embedder(words_model), limits)
            app = make_app(service, hosts={"localhost"})
            runner.run(service.start())
            headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
            for target, body in good:
                status, answer = runner.run(request("POST", target, headers, json.dumps(body).encode()))
                assert status == 200
                expected[target + json.dumps(body)] = without_seconds(answer)
        target, body = rng.choice(good)
        data = json.dumps(body).encode()
        data = json.dumps(mutated_json(rng, body)).encode() if rng.random() < 0.6 else mutated(rng, data, data)
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        if rng.random() < 0.1:
            headers[rng.randrange(2)] = (mutated(rng, b"content-length"), mutated(rng, b"100"))
        method = rng.choice(("POST",) * 20 + ("GET", "PUT", "HEAD", "OPTIONS", "nonsense"))
        place = target if rng.random() < 0.95 else nudged_text(rng, target)
        status, answer = runner.run(request(method, place, headers, data))
        assert status in (200, 400, 404, 405, 408, 413, 415, 421, 422), (status, answer[:200])
        if status == 200 and method == "POST":
            value = json.loads(answer)
            assert "generation" in value
        elif status != 200 and method != "HEAD" and answer:
            assert json.loads(answer)["detail"]
        target, body = rng.choice(good)  # others are answered as ever
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        status, answer = runner.run(request("POST", target, headers, json.dumps(body).encode()))
        assert status == 200 and without_seconds(answer) == expected[target + json.dumps(body)]

    return check


def without_seconds(answer: bytes) -> bytes:
    value = json.loads(answer)
    value.pop("seconds", None)
    return json.dumps(value).encode()


def sources(folder: Path) -> Check:
    """JSONL, CSV, TSV, HTML, Parquet and Arrow files of records."""
    import pyarrow.parquet as pq

    records = documents(6)
    table = pa.table({"id": [r["id"] for r in records], "text": [r["text"] for r in records], "n": list(range(6))})
    lines = "\n".join(json.dumps(r) for r in records).encode()
    csv = ("id,text,title\n" + "\n".join(f'{r["id"]},"{r["text"]}",t' for r in records)).encode()
    parquet, arrow = pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.write_table(table, parquet)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    samples = {
        "x.jsonl": lines,
        "x.csv": csv,
        "x.tsv": csv.replace(b",", b"\t"),
        "x.html": b"<html><head><title>a</title></head><body><p>one</p><script>x</script></body></html>",
        "x.parquet": parquet.getvalue().to_pybytes(),
        "x.arrow": arrow.getvalue().to_pybytes(),
    }

    def check(rng: random.Random) -> None:
        name = rng.choice(sorted(samples))
        path = folder / name
        path.write_bytes(mutated(rng, samples[name], samples["x.jsonl"]))
        with contextlib.suppress(RagqError):
            for document in read(path, strict=rng.random() < 0.5):
                assert isinstance(document.id, str) and isinstance(document.text, str)
                json.dumps(dict(document.metadata))

    return check


def journals(folder: Path) -> Check:
    """What a writer finds beside the index: a journal, an owner, older manifests."""
    path = folder / "index"
    ragq.build(documents(8), path, embeddings=X[:8], shard_rows=4, codec="F32").close()
    text = (path / MANIFEST).read_bytes()
    outside = folder / "precious"
    outside.write_text("mine")
    body = json.loads(text)
    journal = {"generation": 2, "shards": body["shards"], "compressor": body["compressor"], "arguments": {}}

    def check(rng: random.Random) -> None:
        for name, value in (("build/progress.json", journal), ("write.owner", {"pid": 1, "host": "a", "since": 0.0}),
                            ("retired/1.json", body)):  # fmt: skip
            (path / name).parent.mkdir(exist_ok=True)
            data = json.dumps(mutated_json(rng, value)).encode("utf-8", "replace")
            (path / name).write_bytes(data if rng.random() < 0.7 else mutated(rng, data))
        with contextlib.suppress(RagqError), ragq.open(path, mode="w") as index:
            index.delete(["unknown"])
        assert outside.read_text() == "mine" and (path / MANIFEST).read_bytes() == text
        assert not checkup(path), "a journal made the index lose a file"

    return check


# and how many of a hundred inputs each gets
TARGETS: dict[str, tuple[Callable[[Path], Check], int]] = {
    "manifests": (manifests, 6),
    "codes": (files(".codes."), 4),
    "docs": (files(".docs."), 3),
    "ids": (files(".ids."), 3),
    "deletes": (files("deletes/"), 2),
    "tokens": (files(".offsets.", ".first."), 2),
    "structures": (files("structures/"), 4),
    "fitted": (files("compressor-"), 3),
    "states": (states, 10),
    "specs": (specs, 8),
    "filters": (filters, 15),
    "bodies": (bodies, 8),
    "sources": (sources, 14),
    "ready": (arrays.ready, 6),
    "token_files": (arrays.token_files, 4),
    "columns": (arrays.columns, 4),
    "codec_folders": (arrays.codec_folders, 3),
    "journals": (journals, 1),
}
