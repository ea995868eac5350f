"""Rows 42 to 47, 50 and 53: what clients do to an agent on purpose or by being broken, whatever their requests say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import statistics
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from edgemux.wire.channel import MAX_REQUEST_BYTES, client_options
from tests.system.faults import http2
from tests.system.faults.table import Found

pytestmark = pytest.mark.timeout(300)

CANCELS = int(os.environ.get("EDGEMUX_CANCELS", "10000"))
PATIENCE_S = 60.0
# What one message of the greatest size may cost in memory, twice over, and what an allocator keeps for itself.
MOST_GROWTH_BYTES = 2 * MAX_REQUEST_BYTES + 8 * 2**20
Report = Callable[[Found], None]


@pytest.fixture
def good(message: Any) -> bytes:
    """A good request."""
    return bytes(message.SerializeToString())


def memory_bytes(server: Any, key: str = "VmRSS") -> int:
    """Resident now, or ``VmHWM``, at most so far."""
    lines = Path(f"/proc/{server.popen.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def inflight(server: Any) -> float:
    return sum(value for name, value in server.scrape().items() if name.startswith("edgemux_inflight"))


def until(condition: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)


def asked(address: str, good: bytes, count: int) -> list[float]:
    """Seconds that so many good requests took, one after the other, on a connection of their own."""
    elapsed = []
    with grpc.insecure_channel(address, options=client_options()) as channel:
        infer = channel.unary_unary(http2.INFER)
        infer(good, timeout=10.0)
        for _ in range(count):
            began = time.monotonic()
            infer(good, timeout=10.0)
            elapsed.append(time.monotonic() - began)
    return elapsed


def unharmed(address: str, good: bytes, report: Report, row: int, fault: str, before: list[float]) -> None:
    """Good requests are answered about as quickly as before."""
    during = asked(address, good, len(before))
    p99 = sorted(during)[int(len(during) * 0.99)]
    report(Found(row, fault, len(during), p99_ms=p99 * 1000))
    assert statistics.median(during) < 5 * statistics.median(before) + 0.010


@pytest.mark.parametrize("how", ["over", "gzip", "deflate"])
def test_a_message_over_the_limit_is_refused_packed_or_not_and_takes_no_memory(
    agent: Any, good: bytes, report: Report, how: str
) -> None:
    compression = {"over": None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}[how]
    # 64 MB of zeros as raw contents: a tag, a length of four bytes, and what they announce.
    size = 2 * MAX_REQUEST_BYTES if how == "over" else 2**26
    content = good + b"\x3a" + http2.varint(size) + bytes(size)
    asked(agent.grpc, good, 20)
    before = memory_bytes(agent, "VmHWM")
    with grpc.insecure_channel(agent.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        infer = channel.unary_unary(http2.INFER)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                infer(content, timeout=30.0, compression=compression)
            assert caught.value.code().name == "RESOURCE_EXHAUSTED"
    assert memory_bytes(agent, "VmHWM") - before <= MOST_GROWTH_BYTES
    asked(agent.grpc, good, 20)
    report(Found(42, f"message over the limit: {how}", 3, refused=3))


def test_a_message_in_a_hundred_thousand_pieces_costs_no_more_memory_than_whole(
    agent: Any, good: bytes, report: Report
) -> None:
    before = asked(agent.grpc, good, 100)
    held = memory_bytes(agent, "VmHWM")
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(http2.Connection(agent.grpc))
            stream = connection.call(http2.message(b"", claimed=MAX_REQUEST_BYTES))
            for _ in range(100):
                connection.socket.sendall(http2.frame(http2.DATA, 0, stream, b"\0") * 250)
                connection.drain()
        unharmed(agent.grpc, good, report, 42, "chunk flood: 100,000 frames of a byte", before)
    # Four messages at once, of which at most the greatest size is kept each.
    assert memory_bytes(agent, "VmHWM") - held <= 4 * MOST_GROWTH_BYTES


def test_twenty_kilobytes_of_metadata_are_refused(agent: Any, good: bytes, report: Report) -> None:
    with grpc.insecure_channel(agent.grpc) as channel:
        infer = channel.unary_unary(http2.INFER)
        infer(good, timeout=10.0, metadata=(("x-much", "a" * 15 * 1024),))
        with pytest.raises(grpc.RpcError) as caught:
            infer(good, timeout=10.0, metadata=(("x-much", "a" * 20 * 1024),))
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        infer(good, timeout=10.0)
    report(Found(43, "20 KB of metadata", 3, refused=1))


@pytest.mark.parametrize(
    ("timeout", "code"),
    [(None, "OK"), (0.0, "DEADLINE_EXCEEDED"), (-1.0, "DEADLINE_EXCEEDED"), (10 * 365.25 * 86400, "OK")],
    ids=["missing", "0", "negative", "10 years"],
)
def test_any_deadline_is_taken_for_what_it_is(
    agent: Any, good: bytes, report: Report, timeout: float | None, code: str
) -> None:
    # A library lets no call with such a deadline out of the house: the header goes by hand, too.
    with grpc.insecure_channel(agent.grpc) as channel:
        infer = channel.unary_unary(http2.INFER)
        try:
            infer(good, timeout=timeout)
            found = "OK"
        except grpc.RpcError as error:
            found = error.code().name
    assert found == code
    report(Found(44, f"deadline of {timeout} s", 1, refused=int(code != "OK")))


@pytest.mark.parametrize("header", ["0S", "-5S", "99999999H", "000000001n", "x", ""])
def test_no_deadline_that_is_written_by_hand_does_harm(agent: Any, good: bytes, report: Report, header: str) -> None:
    with http2.Connection(agent.grpc) as connection:
        connection.call(http2.message(good), end=True, timeout=header)
        answered = connection.until(b"grpc-status")
    assert answered, "the call was not ended"
    report(Found(44, f"deadline header {header!r}", 1))
    asked(agent.grpc, good, 1)


async def cancelling(address: str, good: bytes, count: int, seed: int) -> Counter[str]:
    """Calls that are given up at random times, most of them while they are under way."""
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    numbers = iter(range(count))
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        infer = channel.unary_unary(http2.INFER)

        async def some() -> None:
            for _ in numbers:
                call = infer(good, timeout=10.0)
                await asyncio.sleep(chance.choice((0.0, 0.0005, 0.001, 0.002, 0.005)) * chance.random() * 2)
                call.cancel()
                try:
                    await call
                    ends["answered"] += 1
                except asyncio.CancelledError:
                    ends["cancelled"] += 1
                except grpc.aio.AioRpcError as error:
                    ends[error.code().name] += 1

        await asyncio.gather(*(some() for _ in range(8)))
    return ends


def test_ten_thousand_calls_given_up_at_random_times_leave_nothing_behind(
    agent: Any, good: bytes, report: Report
) -> None:
    before = asked(agent.grpc, good, 100)
    ends = asyncio.run(cancelling(agent.grpc, good, CANCELS, seed=1))
    assert sum(ends.values()) == CANCELS
    assert ends["cancelled"] > CANCELS // 10
    # Calls that are given up before they are taken in count as waiting: the library refuses those beyond its bound.
    assert set(ends) <= {"answered", "cancelled", "CANCELLED"}
    until(lambda: inflight(agent) == 0, "nothing in flight any more")
    # Whoever gives up says nothing about the cloud.
    assert agent.scrape()["edgemux_breaker_state"] == 0
    unharmed(agent.grpc, good, report, 45, f"{CANCELS:,} calls given up at random times", before)


def test_clients_that_leave_in_the_middle_of_an_upload_leave_nothing_behind(
    agent: Any, good: bytes, report: Report
) -> None:
    before = asked(agent.grpc, good, 100)
    chance = random.Random(2)
    whole = http2.message(good)
    for number in range(500):
        connection = http2.Connection(agent.grpc)
        connection.call(whole[: chance.randrange(len(whole))])
        if number % 2:
            connection.reset()
        else:
            connection.socket.close()
    until(lambda: inflight(agent) == 0, "nothing in flight any more")
    unharmed(agent.grpc, good, report, 46, "500 clients leave in mid-upload", before)


@pytest.mark.parametrize("bytes_said", [0, 10])
def test_who_does_not_say_hello_is_sent_away_within_seconds_and_nobody_else_notices(
    agent: Any, good: bytes, report: Report, bytes_said: int
) -> None:
    before = asked(agent.grpc, good, 100)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(http2.Connection(agent.grpc, speak=False)) for _ in range(50)]
        for connection in slow:
            connection.socket.sendall(http2.PREFACE[:bytes_said])
        unharmed(agent.grpc, good, report, 47, f"50 clients that say {bytes_said} bytes of gRPC's hello", before)
        # Three seconds; a machine that is busy takes longer to notice that they are over.
        assert all(connection.closed_within(15.0) for connection in slow)


def test_fifty_uploads_that_never_end_keep_nobody_else_from_being_answered(
    agent: Any, good: bytes, report: Report
) -> None:
    before = asked(agent.grpc, good, 100)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(http2.Connection(agent.grpc))
            connection.more(connection.call(http2.message(good)[:100]), b"\0")
        unharmed(agent.grpc, good, report, 47, "50 uploads that stop in the middle", before)
    assert inflight(agent) == 0


def answers(address: str, good: bytes) -> bool:
    """Whether a request is answered now."""
    try:
        asked(address, good, 1)
    except grpc.RpcError:
        return False
    return True


class Flood:
    """A client that gives calls up as soon as they are sent, ``calls`` on a connection, or breaks the connection."""

    def __init__(self, address: str, good: bytes, calls: int, pause_s: float) -> None:
        self.sent = 0
        self._address, self._good = address, good
        self._calls, self._pause_s = calls, pause_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._pause_s):
            connection = http2.Connection(self._address)
            with contextlib.suppress(OSError):  # the server has had enough of it
                for _ in range(max(1, self._calls)):
                    stream = connection.call(http2.message(self._good), end=True)
                    self.sent += 1
                    if self._calls:
                        connection.cancel(stream)
                        connection.drain()
            connection.reset()


@pytest.mark.parametrize("calls", [10, 0], ids=["calls", "connections"])
def test_clients_whose_time_is_over_at_once_keep_nobody_else_from_being_answered(
    agent: Any, good: bytes, report: Report, calls: int
) -> None:
    with Flood(agent.grpc, good, calls, pause_s=0.02) as flood:
        during = asked(agent.grpc, good, 300)
    p99 = sorted(during)[int(len(during) * 0.99)]
    what = "calls" if calls else "connections"
    report(Found(50, f"a stream of reset {what}", len(during), p99_ms=p99 * 1000, note=f"{flood.sent} reset meanwhile"))
    assert flood.sent > 10
    until(lambda: inflight(agent) == 0, "nothing in flight any more")
    assert agent.scrape()["edgemux_breaker_state"] == 0


def test_a_flood_of_more_calls_than_can_be_taken_in_is_bounded_in_memory_and_over_when_it_is_over(
    agent: Any, good: bytes, report: Report
) -> None:
    asked(agent.grpc, good, 50)
    before = memory_bytes(agent)
    codes: Counter[str] = Counter()
    elapsed = []
    with (
        Flood(agent.grpc, good, calls=50, pause_s=0.002) as flood,
        grpc.insecure_channel(agent.grpc, options=client_options()) as channel,
    ):
        infer = channel.unary_unary(http2.INFER)
        for _ in range(20):
            began = time.monotonic()
            try:
                infer(good, timeout=10.0)
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1
            elapsed.append(time.monotonic() - began)
    # The library answers CANCELLED to what it has no room for; nobody waits for longer than the backlog takes.
    assert set(codes) <= {"OK", "CANCELLED", "RESOURCE_EXHAUSTED"}
    assert statistics.median(elapsed) < 5.0
    assert memory_bytes(agent) - before < 128 * 2**20
    until(lambda: inflight(agent) == 0, "nothing in flight any more")
    until(lambda: answers(agent.grpc, good), "what the library still held of the flood is gone")
    after = asked(agent.grpc, good, 50)
    worst_ms = max(elapsed) * 1000
    said = f"{flood.sent:,} given up meanwhile; {codes['OK']} of 20 answered, then all of {len(after)}"
    report(Found(50, "a flood of calls given up at once", 20, refused=20 - codes["OK"], p99_ms=worst_ms, note=said))


def test_a_slow_reader_and_a_storm_of_scrapes_keep_nobody_from_being_answered(
    agent: Any, good: bytes, report: Report
) -> None:
    before = asked(agent.grpc, good, 200)
    stopped = threading.Event()
    scraped = [0]

    def storm() -> None:
        while not stopped.is_set():
            with urllib.request.urlopen(f"http://{agent.metrics}/metrics", timeout=PATIENCE_S) as page:
                scraped[0] += page.read().count(b"\n") > 0
            time.sleep(0.02)

    with contextlib.ExitStack() as stack:
        for _ in range(20):
            reader = stack.enter_context(http2.Connection(agent.metrics, speak=False))
            reader.socket.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")  # and reads not a byte of it
        thread = threading.Thread(target=storm)
        thread.start()
        try:
            unharmed(agent.grpc, good, report, 53, "20 scrapes that are not read, and a storm of them", before)
            until(lambda: scraped[0] > 10, "scrapes are answered")
        finally:
            stopped.set()
            thread.join()
    assert scraped[0] > 10


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """Room for the connections of a flood, which linger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
