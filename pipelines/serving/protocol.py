"""uvicorn's HTTP/1.1 with an end to patience: it waits for ever for headers, and for clients that do not read."""

from __future__ import annotations

import asyncio
from typing import Any

from ragq.pipelines.serving.limits import Limits

__all__ = ["patient_protocol"]

SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def patient_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return a protocol class that closes connections whose headers or reading take longer than `limits`."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class PatientProtocol(H11Protocol):
        """Armed from the first byte of a request until its headers are complete, and while answers pile up."""

        _headers: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._await_headers()
            else:
                self._disarm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            if self._writing is not None:
                self._writing.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._writing is None:
                self._writing = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _await_headers(self) -> None:
            if self._headers is None:
                self._headers = self.loop.call_later(limits.header_seconds, self._too_slow)

        def _disarm(self) -> None:
            if self._headers is not None:
                self._headers.cancel()
                self._headers = None

        def _too_slow(self) -> None:
            self._headers = None
            if not self.transport.is_closing():
                self.transport.write(SLOW)
                self.transport.close()

    return PatientProtocol
