"""One HTTP connection without a socket: however its bytes are cut, and whatever they are."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.wire.connection import Clock, Connection
from edgemux.wire.http import Answer, App, Reply, Request

LIMIT = 100
# A busy machine is no failure.
patient = settings(deadline=None)


class Echo(App):
    """Answers with what was asked, at once or, below /later, a moment later."""

    max_body_bytes = LIMIT

    def look(self, request: Request) -> Reply | None:
        return Reply(403, (b"no",)) if request.target == b"/no" else None

    def answer(self, request: Request) -> Answer:
        reply = Reply(200, (request.method, b" ", request.target, b" ", request.body), b"text/plain")
        return self._later(reply) if request.target.startswith(b"/later") else reply

    async def _later(self, reply: Reply) -> Reply:
        await asyncio.sleep(0)
        return reply


class Transport(asyncio.Transport):
    """Keeps what is written, and takes all of it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.over = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("::1", 5) if name == "peername" else default

    def write(self, data: Any) -> None:
        assert not self.over
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.over = True

    def is_closing(self) -> bool:
        return self.over

    def close(self) -> None:
        self.over = True

    abort = close

    def pause_reading(self) -> None:
        """Nothing is read but what the test feeds."""

    resume_reading = pause_reading


class Holder:
    """A server with this one connection."""

    app = Echo({})
    head_s, life_s, idle_s = 3.0, 10.0, 75.0
    max_buffered_bytes = 10**6
    buffered_bytes = 0

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def quiet(self, connection: Connection) -> None: ...

    def busy(self, connection: Connection) -> None: ...

    def gone(self, connection: Connection) -> None: ...


def talk(pieces: list[bytes]) -> tuple[bytes, bool]:
    """What is answered to ``pieces``, and whether it ends."""

    async def run() -> tuple[bytes, bool]:
        holder, transport = Holder(), Transport()
        connection = Connection(holder, Clock())
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
        for _ in range(300):
            await asyncio.sleep(0)
        over = transport.over
        connection.connection_lost(None)
        assert holder.buffered_bytes == 0
        return re.sub(rb"date: [^\r]+", b"date: now", transport.written), over

    return asyncio.run(run())


def cut(content: bytes, at: list[int]) -> list[bytes]:
    ends = sorted({min(each, len(content)) for each in at} | {len(content)})
    return [content[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


REQUESTS = [
    b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /later HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: 1\r\n\r\n",
    b"POST /no HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /c HTTP/1.1\r\nContent-Length: 101\r\n\r\n" + b"z" * 101,
    b"POST /d HTTP/1.1\r\nContent-Length: 2\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nok",
    b"GET /later/last HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"GET /old HTTP/1.0\r\n\r\n",
    b"nonsense\r\n\r\n",
]


@patient
@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=6), st.lists(st.integers(0, 600), max_size=12))
def test_answers_do_not_depend_on_how_requests_are_cut(requests: list[bytes], at: list[int]) -> None:
    content = b"".join(requests)
    assert talk(cut(content, at)) == talk([content])


@patient
@given(st.lists(st.sampled_from(REQUESTS[:4]), min_size=1, max_size=20))
def test_every_request_is_answered_once_and_in_order(requests: list[bytes]) -> None:
    answered, over = talk([b"".join(requests)])
    asked = [request.split(b" HTTP")[0] for request in requests if not request.startswith(b"HEAD")]
    assert answered.count(b"HTTP/1.1 200 OK\r\n") == len(requests)
    assert re.findall(rb"\r\n\r\n((?:GET|POST) /[^ ]*)", answered) == asked
    assert not over


@patient
@given(
    st.lists(st.one_of(st.sampled_from(REQUESTS), st.binary(max_size=30)), max_size=6),
    st.lists(st.tuples(st.integers(0, 500), st.binary(max_size=3)), max_size=4),
    st.lists(st.integers(0, 600), max_size=6),
)
def test_whatever_comes_is_answered_in_whole_replies(
    parts: list[bytes], spoiled: list[tuple[int, bytes]], at: list[int]
) -> None:
    content = b"".join(parts)
    for where, what in spoiled:
        content = content[:where] + what + content[where + len(what) :]
    answered, _ = talk(cut(content, at))
    assert not answered or re.match(rb"HTTP/1\.1 [1245]\d\d ", answered)


def test_a_head_that_is_too_large_is_refused_also_when_it_comes_in_one_piece() -> None:
    head = b"GET /a HTTP/1.1\r\nX: " + b"y" * 40_000 + b"\r\n\r\n"
    for pieces in ([head], [head[:100], head[100:]], [head[:33_000], head[33_000:]]):
        answer, over = talk(pieces)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert over
