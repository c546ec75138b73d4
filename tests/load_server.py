"""Load on a server: ``python -m tests.load_server INDEX --clients 64 --seconds 120``.

Starts ``ragq serve INDEX``, lets clients ask one question after the other with ready embeddings near random rows, and
at the same time sends slow, huge, malformed and unauthenticated requests. Prints what came back as JSON: errors,
latencies, and whether the answers are those of `Index.hits`.
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


async def client(port: int, bodies: list[bytes], end: float, rng: random.Random, found: list[Any]) -> None:
    """Ask until the end."""
    streams = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    while time.perf_counter() < end:
        i = rng.randrange(len(bodies))
        started = time.perf_counter()
        status, answer = await ask(streams, bodies[i])
        found.append((time.perf_counter() - started, status, i, answer if rng.random() < 0.02 else b""))
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
    port: int, bodies: list[bytes], clients: int, seconds: float, nuisances: int
) -> tuple[list[Any], list[int]]:
    """Run clients and nuisances side by side."""
    end = time.perf_counter() + seconds
    found: list[Any] = []
    seen: list[int] = []
    await asyncio.gather(
        *(client(port, bodies, end, random.Random(i), found) for i in range(clients)),
        *(nuisance(port, end, random.Random(i), seen) for i in range(nuisances)),
    )
    return found, seen


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--clients", default=64)
@click.option("--seconds", default=120.0)
@click.option("--nuisances", default=4)
@click.option("--workers", default=2)
@click.option("-k", default=10)
def main(path: Path, clients: int, seconds: float, nuisances: int, workers: int, k: int) -> None:
    index = ragq.open(path)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((QUESTIONS, index.manifest.dim)).astype(np.float32)
    rows = np.sort(rng.choice(index.manifest.rows, QUESTIONS, replace=False))
    x = 0.2 * x / np.linalg.norm(x, axis=1, keepdims=True) + index._view.decode(rows)
    bodies = [json.dumps({"embedding": [round(float(v), 6) for v in row], "k": k}).encode() for row in x]
    asked = np.asarray([json.loads(body)["embedding"] for body in bodies], np.float32)
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
            asyncio.run(load(port, bodies, clients, 3, 0))  # warm
            found, seen = asyncio.run(load(port, bodies, clients, seconds, nuisances))
        finally:
            server.terminate()
    times = np.sort([f[0] for f in found])
    kept = [(i, json.loads(answer)["hits"]) for _, status, i, answer in found if answer and status == 200][:QUESTIONS]
    expected = index.hits(asked[[i for i, _ in kept]], k)
    plain = [[dataclasses.asdict(h) | {"metadata": dict(h.metadata)} for h in hits] for hits in expected]
    same = sum(hits == right for (_, hits), right in zip(kept, plain, strict=True))
    same_ids = sum(
        [h["id"] for h in hits] == [h["id"] for h in right] for (_, hits), right in zip(kept, plain, strict=True)
    )
    p50, p99 = float(np.quantile(times, 0.5)), float(np.quantile(times, 0.99))
    click.echo(
        json.dumps(
            {
                "rows": index.manifest.rows,
                "spec": index.manifest.spec,
                "clients": clients,
                "seconds": seconds,
                "requests": len(found),
                "requests_per_second": round(len(found) / seconds, 1),
                "errors": sum(status != 200 for _, status, _, _ in found),
                "p50_ms": round(1000 * p50, 2),
                "p99_ms": round(1000 * p99, 2),
                "p99_over_p50": round(p99 / p50, 2),
                "max_ms": round(1000 * float(times[-1]), 2),
                "compared": len(kept),
                "equal": same,
                "equal_ids": same_ids,
                "nuisances": {str(status): seen.count(status) for status in sorted(set(seen))},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
