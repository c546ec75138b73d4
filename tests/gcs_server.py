"""As much of Google Cloud Storage's JSON interface as an index needs, on the loopback interface, in memory."""

from __future__ import annotations

import base64
import email
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c


class GCSServer:
    """Buckets that need not be made; objects have generation numbers, and writes may name the one they replace."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.generation = 1000
        self.lock = threading.Lock()
        handler = type("Handler", (Handler,), {"store": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, bucket: str, name: str, data: bytes, match: str | None = None) -> int | None:
        """Write an object; None when its generation (0 when there is none) is not the one to match."""
        with self.lock:
            found = self.objects.get((bucket, name), (0, b""))[0]
            if match is not None and int(match) != found:
                return None
            self.generation += 1
            self.objects[bucket, name] = (self.generation, data)
            return self.generation

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    store: GCSServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, reason: str) -> None:
        self.answer(status, {"error": {"code": status, "message": reason, "errors": [{"reason": reason}]}})

    def described(self, bucket: str, name: str) -> dict[str, Any]:
        generation, data = self.store.objects[bucket, name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(data)),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "crc32c": base64.b64encode(google_crc32c.Checksum(data).digest()).decode(),
            "etag": str(generation),
        }

    def parsed(self) -> tuple[str, str, dict[str, str]]:
        """Return bucket, object name and query."""
        parts = urlsplit(self.path)
        _, _, rest = parts.path.partition("/b/")
        bucket, _, name = rest.partition("/o")
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        return bucket, unquote(name.removeprefix("/")), query

    def do_GET(self) -> None:
        bucket, name, query = self.parsed()
        if not name:
            prefix = query.get("prefix", "")
            found = sorted(key for b, key in self.store.objects if b == bucket and key.startswith(prefix))
            self.answer(200, {"kind": "storage#objects", "items": [self.described(bucket, key) for key in found]})
        elif (bucket, name) not in self.store.objects:
            self.refuse(404, f"No such object: {bucket}/{name}")
        elif query.get("alt") == "media":
            generation, data = self.store.objects[bucket, name]
            if query.get("generation", str(generation)) != str(generation):
                self.refuse(404, "No such generation")
                return
            crc = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
            headers = {"X-Goog-Hash": f"crc32c={crc}", "X-Goog-Generation": str(generation)}
            first, last = 0, len(data) - 1
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            if asked:
                start, _, stop = asked.partition("-")
                first, last = int(start), min(int(stop or last), last)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.answer(206 if asked else 200, data[first : last + 1], headers)
        else:
            self.answer(200, self.described(bucket, name))

    def do_POST(self) -> None:
        bucket, _, query = self.parsed()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if query.get("uploadType") == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            place = f"{self.store.endpoint}/upload/storage/v1/b/{bucket}/o?upload_id=1&name={quote(name, safe='')}"
            self.answer(200, {}, {"Location": place})
            return
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        metadata = email.message_from_bytes(head + body).get_payload(0)
        name = json.loads(metadata.get_payload())["name"]
        boundary = self.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
        data = body.split(b"--" + boundary)[2].split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")  # as it was sent
        if self.store.put(bucket, name, data, query.get("ifGenerationMatch")) is None:
            self.refuse(412, "conditionNotMet")
        else:
            self.answer(200, self.described(bucket, name))

    def do_PUT(self) -> None:
        bucket, _, query = self.parsed()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.store.put(bucket, query["name"], body)
        self.answer(200, self.described(bucket, query["name"]))

    def do_DELETE(self) -> None:
        bucket, name, _ = self.parsed()
        if self.store.objects.pop((bucket, name), None) is None:
            self.refuse(404, "No such object")
        else:
            self.answer(204, b"")
