"""Load on a server: ``python -m tests.load_server INDEX --clients 64 --seconds 120``.

Starts ``ragq serve INDEX``, lets clients ask one question after the other with ready embeddings near random rows, and
at the same time sends slow, huge, malformed and unauthenticated requests. Prints what came back as JSON: errors,
latencies, and whether the answers are those of `Index.hits`.

Answers to clients that ask for exact ones must be equal, always. The others may differ in few queries: what a scan may
rule out by its first pass depends on which queries and shards it is done for together.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import ragq

TOKEN = "load-test-token-0123456789"
QUESTIONS = 512
HEAD = "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n"


async def ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], body: bytes) -> tuple[int, bytes]:
    """Send one request on a connection that is kept, and read the answer."""
    reader, writer = streams
    writer.write(HEAD.format(TOKEN).encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)


async def client(port: int, bodies: list[bytes], end: float, rng: random.Random, exact: bool, found: list[Any]) -> None:
    """Ask until the end; keep all exact answers, and some of the others."""
    streams = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    while time.perf_counter() < end:
        i = rng.randrange(len(bodies))
        started = time.perf_counter()
        status, answer = await ask(streams, bodies[i])
        keep = exact or rng.random() < 0.05
        found.append((time.perf_counter() - started, status, i, exact, answer if keep else b""))
    streams[1].close()


async def nuisance(port: int, end: float, rng: random.Random, seen: list[int]) -> None:
    """Send what must be refused, one after the other, and note the status (0: hung up on)."""
    good = HEAD.format(TOKEN)
    requests = [
        HEAD.format("wrong") + "Content-Length: 20\r\n\r\n" + "x" * 20,
        good + "Content-Length: 99999999\r\n\r\n" + "x" * 65536,
        good + 'Content-Length: 7\r\n\r\n{"a": [',
        good + "Content-Length: 22\r\n\r\n" + '{"query":"a","k":9999}',
        good + "Content-Length: 5000\r\n\r\n" + '{"where":' * 500,
        good,
        "GARBAGE\r\n\r\n",
    ]
    while time.perf_counter() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(rng.choice(requests).encode())
            answer = await asyncio.wait_for(reader.read(4096), 30)
            seen.append(int(answer.split(b" ", 2)[1]) if answer else 0)
        except (ConnectionError, TimeoutError):
            seen.append(0)
        finally:
            writer.close()
        await asyncio.sleep(0.05)


async def load(
    port: int, questions: list[dict[str, Any]], clients: int, exact: int, seconds: float, nuisances: int
) -> tuple[list[Any], list[int]]:
    """Run clients, the last of them with exact questions, and nuisances side by side."""
    bodies = {kind: [json.dumps(q | {"exact": kind}).encode() for q in questions] for kind in (False, True)}
    end = time.perf_counter() + seconds
    found: list[Any] = []
    seen: list[int] = []
    await asyncio.gather(
        *(
            client(port, bodies[i >= clients - exact], end, random.Random(i), i >= clients - exact, found)
            for i in range(clients)
        ),
        *(nuisance(port, end, random.Random(i), seen) for i in range(nuisances)),
    )
    return found, seen


def compared(index: ragq.Index, asked: np.ndarray, k: int, found: list[Any], exact: bool) -> dict[str, int]:
    """Count the kept answers, those that are the index's own, those with the same ids, and the ids that they share."""
    kept = [
        (i, json.loads(answer)["hits"])
        for _, status, i, kind, answer in found
        if answer and status == 200 and kind == exact
    ]
    hits = index.hits(asked, k, exact=exact)
    own = [[dataclasses.asdict(h) | {"metadata": dict(h.metadata)} for h in each] for each in hits]
    names = [[h["id"] for h in each] for each in own]
    served = [[h["id"] for h in each] for _, each in kept]
    return {
        "compared": len(kept),
        "equal": sum(each == own[i] for i, each in kept),
        "equal_ids": sum(each == names[i] for (i, _), each in zip(kept, served, strict=True)),
        "ids": sum(len(each) for each in served),
        "shared_ids": sum(len({*each} & {*names[i]}) for (i, _), each in zip(kept, served, strict=True)),
    }


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--clients", default=64)
@click.option("--exact", default=4, help="Clients that ask for exact answers.")
@click.option("--seconds", default=120.0)
@click.option("--nuisances", default=4)
@click.option("--workers", default=2)
@click.option("-k", default=10)
def main(path: Path, clients: int, exact: int, seconds: float, nuisances: int, workers: int, k: int) -> None:
    index = ragq.open(path)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((QUESTIONS, index.manifest.dim)).astype(np.float32)
    rows = np.sort(rng.choice(index.manifest.rows, QUESTIONS, replace=False))
    x = 0.2 * x / np.linalg.norm(x, axis=1, keepdims=True) + index._view.decode(rows)
    questions = [{"embedding": [round(float(v), 6) for v in row], "k": k} for row in x]
    asked = np.asarray([question["embedding"] for question in questions], np.float32)
    command = [
        str(Path(sys.executable).with_name("ragq")),
        "serve",
        str(path),
        "--port",
        "0",
        "--workers",
        str(workers),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"RAGQ_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split("127.0.0.1:")[1].split("/")[0])
            asyncio.run(load(port, questions, clients, exact, 3, 0))  # warm
            found, seen = asyncio.run(load(port, questions, clients, exact, seconds, nuisances))
        finally:
            server.terminate()
    times = np.sort([f[0] for f in found])
    p50, p99 = float(np.quantile(times, 0.5)), float(np.quantile(times, 0.99))
    click.echo(
        json.dumps(
            {
                "rows": index.manifest.rows,
                "spec": index.manifest.spec,
                "clients": clients,
                "exact_clients": exact,
                "seconds": seconds,
                "requests": len(found),
                "requests_per_second": round(len(found) / seconds, 1),
                "errors": sum(status != 200 for _, status, *_ in found),
                "p50_ms": round(1000 * p50, 2),
                "p99_ms": round(1000 * p99, 2),
                "p99_over_p50": round(p99 / p50, 2),
                "max_ms": round(1000 * float(times[-1]), 2),
                "exact": compared(index, asked, k, found, True),
                "other": compared(index, asked, k, found, False),
                "nuisances": {str(status): seen.count(status) for status in sorted(set(seen))},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
