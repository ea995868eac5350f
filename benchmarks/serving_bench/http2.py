"""As much of HTTP/2 as a client of gRPC needs that shall cost little: no library, no tasks, one callback an answer.

A connection carries calls side by side, or one stream of messages. What headers say is not read: a call that brought
no message has failed. Headers are sent in full once, by their numbers from then on.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST_WINDOW = 2**31 - 1
FRAME = 16384
FIRST_WINDOW = 65535
# Is told how many bytes of messages a call brought: 0 when it failed.
Done = Callable[[int], None]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(body: bytes) -> bytes:
    """A gRPC message, uncompressed."""
    return struct.pack(">BI", 0, len(body)) + body


def _text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value


class Http2(asyncio.Protocol):
    """A connection to ``authority`` for calls of ``path``."""

    def __init__(self, authority: str, path: str) -> None:
        self._in_full = b"".join(
            (
                b"\x83\x86",  # POST, http
                b"\x44" + _text(path.encode()),
                b"\x41" + _text(authority.encode()),
                b"\x5f" + _text(b"application/grpc"),
                b"\x40" + _text(b"te") + _text(b"trailers"),
            )
        )
        self._by_number = b"\x83\x86\xc1\xc0\xbf\xbe"
        self._headers = self._in_full
        self._next = 1
        self._stream = 0
        self._received = bytearray()
        self._calls: dict[int, Done] = {}
        self._bytes: dict[int, int] = {}
        self._replies: deque[Done] = deque()
        self._window = FIRST_WINDOW
        self._first_window = FIRST_WINDOW
        self._windows: dict[int, int] = {}
        self._waiting: deque[tuple[int, bytes, int]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        ours = struct.pack(">HIHI", 2, 0, 4, LARGEST_WINDOW)  # no push; as much as they like
        wider = struct.pack(">I", LARGEST_WINDOW - FIRST_WINDOW)
        transport.write(PREFACE + frame(SETTINGS, 0, 0, ours) + frame(WINDOW_UPDATE, 0, 0, wider))

    @property
    def inside(self) -> int:
        """Calls without an answer."""
        return len(self._calls) + len(self._replies)

    def call(self, body: bytes, done: Done) -> None:
        """A call with one message, already in gRPC's form; ``done`` when it has ended."""
        stream = self._open()
        self._calls[stream] = done
        self._bytes[stream] = 0
        self._send(stream, body, END_STREAM)

    def exchange(self, body: bytes, done: Done) -> None:
        """A message on the connection's one stream; ``done`` with the next answer that nobody else waits for."""
        if not self._stream:
            self._stream = self._open()
            self._answers = bytearray()
        self._replies.append(done)
        self._send(self._stream, body, 0)

    def _open(self) -> int:
        stream, self._next = self._next, self._next + 2
        self._windows[stream] = self._first_window
        self._opening = frame(HEADERS, END_HEADERS, stream, self._headers)
        self._headers = self._by_number
        return stream

    def _send(self, stream: int, body: bytes, flags: int) -> None:
        opening, self._opening = self._opening, b""
        fits = len(body) <= min(FRAME, self._window, self._windows[stream])
        if fits and not self._waiting:
            self._window -= len(body)
            self._windows[stream] -= len(body)
            self._transport.write(opening + frame(DATA, flags, stream, body))
            return
        self._transport.write(opening)
        self._waiting.append((stream, body, flags))
        self._flush()

    def _flush(self) -> None:
        """Send of what waits as much as the other side takes, in order."""
        while self._waiting:
            stream, body, flags = self._waiting[0]
            size = min(FRAME, self._window, self._windows.get(stream, 0), len(body))
            if size <= 0:
                return
            self._window -= size
            self._windows[stream] -= size
            last = size == len(body)
            self._transport.write(frame(DATA, flags if last else 0, stream, body[:size]))
            if last:
                self._waiting.popleft()
            else:
                self._waiting[0] = (stream, body[size:], flags)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        at = 0
        while len(received) - at >= 9:
            size = received[at] << 16 | received[at + 1] << 8 | received[at + 2]
            if len(received) - at - 9 < size:
                break
            kind, flags = received[at + 3], received[at + 4]
            stream = int.from_bytes(received[at + 5 : at + 9], "big") & LARGEST_WINDOW
            at += 9
            self._frame(kind, flags, stream, received, at, size)
            at += size
        del received[:at]

    def _frame(self, kind: int, flags: int, stream: int, received: bytearray, at: int, size: int) -> None:
        if kind == DATA:
            if stream == self._stream:
                self._answered(received[at : at + size])
            elif stream in self._bytes:
                self._bytes[stream] += size
        elif kind > HEADERS:
            self._control(kind, flags, stream, bytes(received[at : at + size]))
        if (kind in (DATA, HEADERS) and flags & END_STREAM) or kind == RESET:
            self._ended(stream)

    def _answered(self, data: bytearray) -> None:
        """Messages of the one stream."""
        answers = self._answers
        answers += data
        while len(answers) >= 5:
            size = 5 + int.from_bytes(answers[1:5], "big")
            if len(answers) < size:
                return
            del answers[:size]
            if self._replies:
                self._replies.popleft()(size)

    def _ended(self, stream: int) -> None:
        self._windows.pop(stream, None)
        if stream == self._stream:
            self._fail()
        elif stream in self._calls:
            self._calls.pop(stream)(self._bytes.pop(stream))

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == 4:
                    for each in self._windows:
                        self._windows[each] += value - self._first_window
                    self._first_window = value
            self._transport.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if not stream:
                self._window += more
            elif stream in self._windows:
                self._windows[stream] += more
        if self._waiting:
            self._flush()

    def _fail(self) -> None:
        calls = [*self._calls.values(), *self._replies]
        self._calls.clear()
        self._replies.clear()
        for done in calls:
            done(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail()

    def close(self) -> None:
        """Whoever still waits is told that it failed."""
        self._transport.close()
