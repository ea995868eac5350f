"""HTTP for clients that are silent, slow or very many: each is closed in time, and the others are answered."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import socket
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.certificates import Certificates, Files
from edgemux.wire.http import App, Page
from edgemux.wire.process import take_port
from edgemux.wire.security import Gate
from edgemux.wire.web import FRESH_SCRAPES_PER_S, Web, exporting, start_thread
from tests.authority import Authority

HEAD_S = 0.3
PATIENT_S = 30.0
ASK = b"GET /page HTTP/1.1\r\nhost: x\r\n\r\n"


@contextlib.asynccontextmanager
async def web(**how: Any) -> AsyncIterator[int]:
    """A Web with one large page on a free port."""
    listener = take_port("127.0.0.1", 0, "any")
    body = "x" * how.pop("size", 10)
    made = Web(listener, App({"/page": lambda: Page(200, body)}), **({"head_s": HEAD_S, "life_s": PATIENT_S} | how))
    try:
        yield listener.getsockname()[1]
    finally:
        await made.close()


async def answer(port: int, request: bytes = ASK) -> bytes:
    """Everything that the server sends until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(request)
        return await asyncio.wait_for(reader.read(), PATIENT_S)


async def test_an_answer_ends_its_connection() -> None:
    async with web() as port:
        assert (await answer(port)).startswith(b"HTTP/1.1 200")
        assert (await answer(port, b"GET /page HTTP/1.1\r\nhost: x\r\nconnection: keep-alive\r\n\r\n")).count(b"x") > 9


@pytest.mark.parametrize("first", [b"", b"GET /page HTTP/1.1\r\nhost"])
async def test_a_client_that_falls_silent_is_closed(first: bytes) -> None:
    async with web() as port:
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert await answer(port, first) == b""
        assert time.monotonic() - began >= HEAD_S * 0.9


async def test_a_client_that_sends_a_byte_at_a_time_is_closed_all_the_same() -> None:
    async with web() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /" + b"a" * 100_000:
                writer.write(bytes([byte]))
                await writer.drain()
                if reader.at_eof():
                    break
                await asyncio.sleep(HEAD_S / 10)
            else:
                pytest.fail("it was never closed")
        writer.close()
        assert (await answer(port)).startswith(b"HTTP/1.1 200")


async def test_a_client_that_does_not_read_is_closed() -> None:
    async with web(size=30_000_000, life_s=1.0) as port:
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(ASK)
            slow.setblocking(False)
            loop, taken = asyncio.get_running_loop(), 0
            await asyncio.sleep(1.5)
            with contextlib.suppress(ConnectionResetError):
                while got := await asyncio.wait_for(loop.sock_recv(slow, 2**20), PATIENT_S):
                    taken += len(got)
        assert taken < 30_000_000


async def test_a_silent_tls_client_is_closed_too(authority: Authority) -> None:
    own = authority.issue("server")
    async with web(certificates=Certificates(Files(own.cert, own.key), "listen.tls")) as port:
        with contextlib.suppress(ConnectionResetError):
            assert await answer(port, b"") == b""


async def test_among_too_many_the_oldest_goes_and_the_newest_is_answered() -> None:
    async with web(most=5, head_s=PATIENT_S) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
        assert (await answer(port)).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(silent[0][0].read(), PATIENT_S) == b""
        for _, writer in silent:
            writer.close()


async def test_a_storm_of_connections_leaves_the_loop_to_others_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    waiting: list[socket.socket] = []
    accepted: list[socket.socket] = []

    async def storm(_: socket.socket) -> Any:
        ours, theirs = socket.socketpair()
        waiting.append(theirs)
        accepted.append(ours)
        return ours, ""

    monkeypatch.setattr(loop, "sock_accept", storm)  # as while there is always one more
    async with web(most=5, head_s=PATIENT_S) as _:
        most = open_ = 0
        for _ in range(100):
            await asyncio.sleep(0)
            most = max(most, len(asyncio.all_tasks()))
            open_ = max(open_, sum(each.fileno() >= 0 for each in accepted))
        assert 5 <= most <= 5 + 10
        assert 5 <= open_ <= 5 + 10
    for each in waiting:
        each.close()


async def test_without_descriptors_it_waits_and_does_not_spin(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    accept, tries = loop.sock_accept, 0

    async def lacking(listener: socket.socket) -> Any:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", lacking)
    async with web() as port:
        assert (await answer(port)).startswith(b"HTTP/1.1 200")
        assert tries in (3, 4)
    assert len([said for said in caplog.messages if said == 'accept failed cause="Too many open files"']) == 1


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENT_S) as page:
        return str(page.read(), "utf-8")


@contextlib.contextmanager
def metrics() -> Any:
    registry = CollectorRegistry()
    counter = Counter("some_total", "Anything.", registry=registry)
    listener = take_port("127.0.0.1", 0, "any")
    with exporting(listener, registry, Gate(), None):
        yield counter, listener.getsockname()[1]


def test_every_scrape_of_a_few_is_fresh() -> None:
    with metrics() as (counter, port):
        for number in range(3):
            assert f"some_total {number}.0" in scrape(port)
            counter.inc()


def test_a_storm_of_scrapes_takes_one_thread_and_few_new_pages() -> None:
    with metrics() as (counter, port):
        before = threading.active_count()
        began, seen = time.monotonic(), set()
        for _ in range(60):
            seen.add(next(line for line in scrape(port).splitlines() if line.startswith("some_total ")))
            counter.inc()
        took_s = time.monotonic() - began
        assert threading.active_count() <= before  # one of an earlier test may have ended meanwhile
        # As many as fit into every second that it took, and into those that it began and ended in.
        assert len(seen) <= FRESH_SCRAPES_PER_S * (took_s + 2)


def test_a_thread_that_the_system_does_not_give_is_named() -> None:
    class None_(threading.Thread):  # noqa: N801
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with pytest.raises(ConfigError, match="no further thread"):
        start_thread(None_())


async def test_nothing_is_left_when_it_closes() -> None:
    before = len(asyncio.all_tasks())
    async with web(head_s=PATIENT_S) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await writer.wait_closed()
    gc.collect()
    assert len(asyncio.all_tasks()) == before
