"""The emulated link: its schedule as arithmetic, and the proxy with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgemux.cli.link import BUFFER_BYTES, Conditions, Link, Wire, parse_link, schedule
from edgemux.multiplexer.errors import ConfigError

TIMES = st.floats(min_value=0, max_value=1e6, allow_nan=False)
SIZES = st.integers(min_value=0, max_value=10**6)
LINKS = st.builds(
    Conditions,
    round_trip_s=st.floats(min_value=0, max_value=10),
    bits_per_s=st.floats(min_value=1e3, max_value=1e10),
)
FAST = Conditions(round_trip_s=0.0, bits_per_s=1e9)


@given(TIMES, SIZES, TIMES, LINKS)
def test_a_chunk_never_arrives_before_its_delay_and_its_size_allow(
    now: float, size: int, free_at: float, link: Conditions
) -> None:
    left, arrives = schedule(now, size, free_at, link)
    assert left >= now
    assert left >= free_at
    assert arrives >= left
    assert arrives == pytest.approx(max(now, free_at) + size * 8 / link.bits_per_s + link.round_trip_s / 2)


@given(st.lists(SIZES, min_size=1, max_size=50), LINKS)
def test_chunks_that_enter_together_take_their_total_size_and_one_delay(sizes: list[int], link: Conditions) -> None:
    wire = Wire()
    arrivals = [wire.enter(0.0, size, link) for size in sizes]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(sum(sizes) * 8 / link.bits_per_s + link.round_trip_s / 2)


@given(TIMES, SIZES, LINKS, st.floats(min_value=0, max_value=10))
def test_jitter_only_ever_delays_and_by_no_more_than_it_says(
    now: float, size: int, link: Conditions, jitter_s: float
) -> None:
    steady = Wire().enter(now, size, link)
    shaken = Wire().enter(now, size, replace(link, jitter_s=jitter_s))
    assert steady <= shaken <= steady + jitter_s


@given(st.lists(st.tuples(TIMES, SIZES), min_size=1, max_size=30), LINKS)
def test_a_wire_never_carries_more_than_its_bandwidth(entries: list[tuple[float, int]], link: Conditions) -> None:
    wire = Wire()
    busy_s = 0.0
    begin_s = min(now for now, _ in entries)
    for now, size in sorted(entries):
        wire.enter(now, size, link)
        busy_s += size * 8 / link.bits_per_s
        assert wire.free_at_s >= (begin_s + busy_s) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("text", "round_trip_s", "bits_per_s"),
    [
        ("40ms,10mbit", 0.04, 10e6),
        ("0.4s, 500kbit", 0.4, 5e5),
        ("1gbit,0ms", 0.0, 1e9),
        ("80ms", 0.08, Conditions().bits_per_s),
        ("2mbit", Conditions().round_trip_s, 2e6),
    ],
)
def test_a_link_is_read_from_words(text: str, round_trip_s: float, bits_per_s: float) -> None:
    link = parse_link(text)
    assert link.round_trip_s == pytest.approx(round_trip_s)
    assert link.bits_per_s == pytest.approx(bits_per_s)


@pytest.mark.parametrize(
    "text", ["", "40", "fast", "-3ms,10mbit", "40ms,0mbit", "40ms,10ms", "1mbit,1mbit", "40ms;1mbit"]
)
def test_a_link_that_makes_no_sense_is_refused_with_the_word_that_is_wrong(text: str) -> None:
    with pytest.raises(ConfigError, match="--link"):
        parse_link(text)


@contextlib.asynccontextmanager
async def echo_behind(link: Link) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection through the link to a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    link.lead_to(f"{host}:{port}")
    async with server:
        through = link.address.rpartition(":")
        reader, writer = await asyncio.open_connection(through[0], int(through[2]))
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def timed_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes) -> float:
    began = monotonic()
    writer.write(content)
    assert await reader.readexactly(len(content)) == content
    return monotonic() - began


async def test_what_goes_through_is_unchanged_and_takes_at_least_the_round_trip() -> None:
    async with Link(Conditions(round_trip_s=0.1, bits_per_s=1e9)) as link, echo_behind(link) as (reader, writer):
        assert await timed_echo(reader, writer, b"ping") >= 0.1
        # More than the queues hold: back-pressure and order.
        content = bytes(range(256)) * (4 * BUFFER_BYTES // 256)
        assert await timed_echo(reader, writer, content) >= 0.1


async def test_bandwidth_is_a_cap_in_each_direction() -> None:
    async with Link(Conditions(round_trip_s=0.0, bits_per_s=1e6)) as link, echo_behind(link) as (reader, writer):
        # 25,000 bytes are 0.2 s of a megabit per second.
        assert await timed_echo(reader, writer, bytes(25_000)) >= 0.2


async def test_a_change_of_the_link_counts_at_once_and_keeps_the_order() -> None:
    async with Link(Conditions(round_trip_s=0.3, bits_per_s=1e9)) as link, echo_behind(link) as (reader, writer):
        writer.write(b"first,")
        await asyncio.sleep(0.02)
        link.set(FAST)
        writer.write(b"second")
        assert await reader.readexactly(12) == b"first,second"


async def test_a_stalled_link_holds_everything_back_until_it_flows_again() -> None:
    async with Link(FAST) as link, echo_behind(link) as (reader, writer):
        await timed_echo(reader, writer, b"before")
        link.set(Conditions(state="stalled"))
        writer.write(b"held")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(4), 0.1)
        link.set(FAST)
        assert await reader.readexactly(4) == b"held"


async def test_a_refusing_link_resets_what_is_open_and_what_comes() -> None:
    async with Link(FAST) as link, echo_behind(link) as (reader, writer):
        await timed_echo(reader, writer, b"before")
        link.set(Conditions(state="refused"))
        assert await read_or_reset(reader) == b""
        host, _, port = link.address.rpartition(":")
        late_reader, late_writer = await asyncio.open_connection(host, int(port))
        assert await read_or_reset(late_reader) == b""
        late_writer.transport.abort()


async def test_a_target_that_is_gone_ends_the_connection() -> None:
    async with Link(FAST) as link:
        async with echo_behind(link) as (reader, writer):
            await timed_echo(reader, writer, b"before")
        host, _, port = link.address.rpartition(":")
        late_reader, late_writer = await asyncio.open_connection(host, int(port))
        assert await read_or_reset(late_reader) == b""
        late_writer.transport.abort()


async def test_what_was_sent_before_the_end_of_a_stream_arrives() -> None:
    content = bytes(range(256)) * (4 * BUFFER_BYTES // 256)

    async def send_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(content)
        writer.close()

    server = await asyncio.start_server(send_and_close, "127.0.0.1", 0)
    async with server, Link(FAST) as link:
        host, port = server.sockets[0].getsockname()
        link.lead_to(f"{host}:{port}")
        through = link.address.rpartition(":")
        reader, writer = await asyncio.open_connection(through[0], int(through[2]))
        writer.write_eof()
        assert await reader.read() == content
        writer.close()
        await writer.wait_closed()


async def test_connections_wait_until_the_link_leads_somewhere() -> None:
    async with Link(FAST) as link:
        host, _, port = link.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"early")
        async with echo_behind(link):
            assert await reader.readexactly(5) == b"early"
        writer.transport.abort()


async def read_or_reset(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""
