"""A local S3 server (moto) on the loopback interface, that can be told to fail."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        pass


class ObjectStore:
    """An S3 server whose requests are served one after another, so that its conditional puts are atomic.

    Attributes
    ----------
    requests : int
        Served since `fail` was last called.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self.fail(0, "none")
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.environment = CREDENTIALS | {"AWS_ENDPOINT_URL": self.endpoint}

    def fail(self, at: int, how: str, pid_file: Path | None = None) -> None:
        """Let something happen at a request, counted from 1.

        Parameters
        ----------
        at : int
        how : {'none', 'refused', 'lost', 'outage', 'killed before', 'killed after'}
            The request is refused; it is done, but its answer is an error; it and all later ones are refused; the
            client is killed before or after the server has done what it asked.
        pid_file : Path, optional
            Tells the client's process.
        """
        self.requests, self.at, self.how, self.pid_file = 0, at, how, pid_file

    def _kill(self) -> None:
        assert self.pid_file is not None
        os.kill(int(self.pid_file.read_text()), signal.SIGKILL)

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests += 1
            hit = self.requests == self.at
            if (hit and self.how == "refused") or (self.how == "outage" and 0 < self.at <= self.requests):
                return error(environ, start_response)
            if hit and self.how == "killed before":
                self._kill()
                return error(environ, start_response)
            if hit and self.how == "lost":
                list(self._app(environ, lambda *_: lambda data: None))
                return error({}, start_response)
            answer = list(self._app(environ, start_response))
            if hit and self.how == "killed after":
                self._kill()
            return answer

    def client(self) -> Any:
        """Return a boto3 client of the server."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def names(self, prefix: str) -> set[str]:
        """Return the names of the objects below a prefix."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return {item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", ())}

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def error(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer that the server failed."""
    if "wsgi.input" in environ:  # what was not read would be taken for the next request
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("500 Internal Server Error", [("Content-Type", "application/xml"), ("Connection", "close")])
    return [b"<Error><Code>InternalError</Code><Message>on purpose</Message></Error>"]
