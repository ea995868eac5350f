"""One HTTP/1.1 connection: requests in, replies out in their order, and a moment by which each step must be done.

No task and no timer a connection: whoever holds it asks now and then whether it is overdue.
"""

from __future__ import annotations

import asyncio
import email.utils
import http
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol, cast

import httptools

from edgemux.wire.http import PAGE_BODY_BYTES, App, Reply, Request, json_reply, peer_name, too_large

MAX_HEAD_BYTES = 32 * 2**10
MAX_HEADERS = 100
# Requests that a client sends ahead of the answers; with more it is not heard any longer.
MAX_AHEAD = 64
# A body must come, and a long answer be taken, at this rate at least, beside the seconds that any may take.
SLOWEST_BYTES_PER_S = 16 * 2**10
# Whoever is refused while still sending must not get a reset before the refusal.
LINGER_S = 2.0
_NEVER = float("inf")

_REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Holder(Protocol):
    """Who holds connections: their limits, and what they have in common."""

    app: App
    head_s: float
    life_s: float
    idle_s: float
    loop: asyncio.AbstractEventLoop
    max_buffered_bytes: int
    # Bytes of bodies that have not all come, of all connections.
    buffered_bytes: int

    def quiet(self, connection: Connection) -> None:
        """``connection`` has nothing to answer now: among too many the first that fell quiet goes."""

    def busy(self, connection: Connection) -> None:
        """``connection`` has a request to answer."""

    def gone(self, connection: Connection) -> None:
        """``connection`` is over."""


class Clock:
    """The date as HTTP writes it, made once a second."""

    def __init__(self) -> None:
        self._line = b""
        self._made_s = -1.0

    def line(self, now_s: float) -> bytes:
        """A header line for the current second; ``now_s``: of any clock that goes on."""
        if now_s - self._made_s >= 1.0 or not self._line:
            self._line = b"date: %b\r\n" % email.utils.formatdate(usegmt=True).encode()
            self._made_s = now_s
        return self._line


class Connection(asyncio.Protocol):
    """Of a client. ``until_s`` is when it is ``overdue``, on the event loop's clock."""

    # Whether it has come about, and the task that sees to that.
    made = False
    meeting: asyncio.Task[None] | None = None
    _transport: asyncio.Transport | None = None
    _task: asyncio.Task[None] | None = None
    # The request that is coming in: None between requests.
    _coming: Request | None = None
    _target = b""
    # What of its head came in earlier pieces than the one that it began in.
    _head_bytes = 0
    _begun_now = False
    _body_bytes = 0
    _began_s = 0.0
    # A request is being answered; the client does not take answers; nothing more is heard of it.
    _busy = False
    _full = False
    _deaf = False
    # An answer may still be on its way out; its request has not all come in, and never will.
    _writing = False
    _over = False

    def __init__(self, holder: Holder, clock: Clock) -> None:
        self._holder = holder
        self._clock = clock
        self._app = holder.app
        self._loop = holder.loop
        self._peer = "unknown"
        self._parser: Any = httptools.HttpRequestParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._ahead: deque[Request] = deque()
        self.until_s = holder.loop.time() + holder.head_s

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no such class
        self.made = True
        self.meeting = None
        self._peer = peer_name(transport.get_extra_info("peername"))
        if self._over:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop. Nobody waits for what is being answered."""
        self._deaf = self._over = True
        self._parser = None  # which refers back
        self._forget_body()
        self._ahead.clear()
        if self._task is not None:
            self._task.cancel()
        self._holder.gone(self)

    def abort(self) -> None:
        """End it now, whatever is under way."""
        self._over = self._deaf = True
        if self._transport is not None:
            self._transport.abort()
        elif self.meeting is not None:
            self.meeting.cancel()

    def close(self) -> None:
        """End it once what was written is sent."""
        self._over = self._deaf = True
        if self._transport is not None:
            self._transport.close()

    def overdue(self, now_s: float) -> bool:
        """Whether it must go; where its client has done what it could by then, ``until_s`` is moved instead."""
        if self._writing and not self._deaf:
            assert self._transport is not None
            if self._transport.get_write_buffer_size() > 0:
                return True
            self._writing = False
            self._wait(now_s)
            return False
        if self._body_bytes and self._coming is not None and not self._deaf:
            self.until_s = self._began_s + self._holder.head_s + self._body_bytes / SLOWEST_BYTES_PER_S
            return now_s >= self.until_s
        return True

    def pause_writing(self) -> None:
        """Called by the event loop: the client does not take what it is sent."""
        self._full = True
        if self._transport is not None and not self._over:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._full = False
        if self._transport is not None and not self._over:
            if not self._ahead:
                self._transport.resume_reading()
            self._go_on()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._deaf:
            return
        self._begun_now = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._deaf:
                self._refuse(json_reply(400, {"error": "request: not HTTP/1.1"}, close=True))
        if self._coming is None and self._target and not self._deaf and not self._begun_now:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(json_reply(431, {"error": "headers: too large"}, close=True))

    def _stay(self, rest: bytes) -> None:
        """With HTTP/1.1, though the client would rather go over to something else: its request is read as without that.

        Only so, because the parser takes what follows such a request's head for that other protocol.
        """
        method, target, headers = self._parser.get_method(), self._target, self._headers
        if self._deaf or method == b"CONNECT" or b"upgrade" not in headers:
            self._refuse(json_reply(405, {"error": "only HTTP/1.1"}, close=True))
            return
        lines = [b"%b: %b\r\n" % header for header in headers.items() if header[0] not in (b"upgrade", b"connection")]
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(b"%b %b HTTP/1.1\r\n%bconnection: close\r\n\r\n%b" % (method, target, b"".join(lines), rest))

    # --- the parser's side

    def on_message_begin(self) -> None:
        """Called by the parser, as all below."""
        self._target = b""
        self._headers = {}
        self._head_bytes = 0
        self._begun_now = True
        if not self._busy and not self._deaf:
            self._writing = False
            self._began_s = self._loop.time()
            if self.until_s > self._began_s + self._holder.head_s:
                self.until_s = self._began_s + self._holder.head_s

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) <= MAX_HEADERS:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        headers, parser = self._headers, self._parser
        if parser.should_upgrade():
            return
        request = Request(parser.get_method(), self._target, headers, self._peer, keep=parser.should_keep_alive())
        length = headers.get(b"content-length", b"0")
        size = len(self._target) + sum(map(len, headers)) + sum(map(len, headers.values()))
        if len(headers) > MAX_HEADERS or size > MAX_HEAD_BYTES:
            self._refuse(json_reply(431, {"error": "headers: too many or too large"}, close=True), request)
        elif len(length) > 18 or int(length) > self._app.max_body_bytes:
            self._refuse(too_large(self._app.max_body_bytes), request)
        else:
            request.reply = self._app.look(request)
            long = b"transfer-encoding" in headers or int(length) > PAGE_BODY_BYTES
            if request.reply is not None and (long or (request.reply.close and length != b"0")):
                self._refuse(request.reply, request)
                return
            self._coming = request
            if b"expect" in headers and not self._busy and self._transport is not None:
                self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._deaf:
            return
        self._pieces.append(body)
        self._body_bytes += len(body)
        self._holder.buffered_bytes += len(body)
        if self._body_bytes > self._app.max_body_bytes:
            self._refuse(too_large(self._app.max_body_bytes), self._coming)
        elif self._holder.buffered_bytes > self._holder.max_buffered_bytes:
            busy = json_reply(429, {"error": "too many requests are coming in"}, ((b"retry-after", b"1"),), close=True)
            self._refuse(busy, self._coming)

    def on_message_complete(self) -> None:
        request = self._coming
        if self._deaf or request is None:
            return
        if self._pieces:
            request.body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._forget_body()
        self._coming = None
        self._target = b""
        if not request.keep:
            self._deaf = True
        self._take(request)

    # --- answering

    def _forget_body(self) -> None:
        if self._body_bytes:
            self._holder.buffered_bytes -= self._body_bytes
            self._body_bytes = 0
            self._pieces = []

    def _refuse(self, reply: Reply, request: Request | None = None) -> None:
        """Answer in its turn what has not all come, and hear no more."""
        self._forget_body()
        self._coming = None
        self._deaf = True
        method = b"GET" if request is None else request.method
        self._take(Request(method, b"", {}, reply=reply, cut=True))

    def _take(self, request: Request) -> None:
        """Answer ``request``, in its turn."""
        if not self._busy and not self._full and not self._ahead:
            self._start(request)
            return
        self._ahead.append(request)
        if len(self._ahead) == 1 and self._transport is not None and not self._over:
            self._transport.pause_reading()
        elif len(self._ahead) >= MAX_AHEAD:
            request.keep = False
            self._deaf = True

    def _start(self, request: Request) -> None:
        answer = request.reply or self._app.answer(request)
        if isinstance(answer, Reply):
            self._send(request, answer)
            return
        self._busy = True
        self._writing = False
        self.until_s = _NEVER
        self._holder.busy(self)
        self._task = self._loop.create_task(self._work(request, answer))

    async def _work(self, request: Request, answer: Coroutine[Any, Any, Reply]) -> None:
        reply = await answer
        self._task = None
        if self._over:
            return
        self._busy = False
        self._send(request, reply)
        if not self._over:
            self._holder.quiet(self)
            self._go_on()

    def _go_on(self) -> None:
        """With what came in meanwhile."""
        while self._ahead and not self._busy and not self._full and not self._over:
            self._start(self._ahead.popleft())
            if not self._ahead and not self._full and not self._over:
                assert self._transport is not None
                self._transport.resume_reading()

    def _send(self, request: Request, reply: Reply) -> None:
        transport = self._transport
        if transport is None or self._over or transport.is_closing():
            return
        now_s = self._loop.time()
        keep = request.keep and not reply.close
        head = _head(reply, keep, self._clock.line(now_s))
        transport.write(head if request.method == b"HEAD" else b"".join((head, *reply.content)))
        left = transport.get_write_buffer_size()
        if not keep:
            self._end(now_s, request.cut)
        elif left:
            self._writing = True
            self.until_s = now_s + self._holder.life_s + left / SLOWEST_BYTES_PER_S
        else:
            self._wait(now_s)

    def _wait(self, now_s: float) -> None:
        """For a request, or for the rest of one whose head has begun to come."""
        begun = self._coming is not None or self._target
        self._began_s = now_s
        self.until_s = now_s + (self._holder.head_s if begun else self._holder.idle_s)

    def _end(self, now_s: float, cut: bool) -> None:
        """Close once all is sent. ``cut``: its client may still be sending, and is given time to read instead."""
        assert self._transport is not None
        self._deaf = True
        self._ahead.clear()
        self.until_s = now_s + (LINGER_S if cut else self._holder.life_s)
        if not cut:
            self._transport.close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()


def _head(reply: Reply, keep: bool, date: bytes) -> bytes:
    lines = b"".join([b"%b: %b\r\n" % header for header in reply.headers])
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b%b%b\r\n" % (
        reply.status,
        _REASONS.get(reply.status, b""),
        reply.content_type,
        sum(map(len, reply.content)),
        lines,
        date,
        b"" if keep else b"connection: close\r\n",
    )
