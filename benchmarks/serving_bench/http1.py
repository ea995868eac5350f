"""As much of HTTP/1.1 as a client needs that shall cost little: one request after the other on a kept connection."""

from __future__ import annotations

import asyncio

from serving_bench.http2 import Done

END = b"\r\n\r\n"


def request(authority: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """A whole POST, to be sent again and again."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {authority}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + END + body


class Http1(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._done: Done | None = None
        self._whole = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    @property
    def inside(self) -> int:
        """1 while an answer is waited for."""
        return int(self._done is not None)

    def call(self, whole: bytes, done: Done) -> None:
        """Send a request; ``done`` is told the size of the answer's body, 0 when its status is not 200."""
        assert self._done is None
        self._done = done
        self._transport.write(whole)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        if not self._whole:
            end = received.find(END)
            if end < 0:
                return
            self._read_head(bytes(received[:end]).lower(), end + len(END))
        if len(received) < self._whole:
            return
        size = self._size if self._status == 200 else 0
        received.clear()
        self._whole = 0
        done, self._done = self._done, None
        if done is not None:
            done(size)

    def _read_head(self, head: bytes, length: int) -> None:
        self._status = int(head[9:12])
        at = head.find(b"content-length:")
        if at < 0:
            raise ValueError("the answer does not say how long it is")
        self._size = int(head[at + 15 :].split(b"\r\n", 1)[0])
        self._whole = length + self._size

    def connection_lost(self, exc: Exception | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(0)

    def close(self) -> None:
        """Whoever still waits is told that it failed."""
        self._transport.close()
