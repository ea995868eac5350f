"""The REST side and clients that are slow, silent or very many."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import pytest

from tests.served_rest import ASK, LIMIT, PATIENT_S, SOON_S, serving, until

BODY = json.dumps(ASK).encode()


@pytest.mark.parametrize("came", [b"P", b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: 9\r\n\r\n{"])
async def test_a_request_that_does_not_go_on_is_dropped_also_on_a_connection_that_served(came: bytes) -> None:
    async with serving(head_s=SOON_S) as served:
        client = await served.client()
        assert (await client.infer()).status == 200
        began_s = time.monotonic()
        client.writer.write(came)
        assert await client.ended() == b""
        assert time.monotonic() - began_s >= SOON_S * 0.9
        assert served.web.buffered_bytes == 0


async def test_a_body_that_trickles_is_dropped_and_one_that_is_merely_slow_is_taken() -> None:
    async with serving(head_s=1.0) as served:
        trickling, slow = await served.client(), await served.client()
        for client in (trickling, slow):
            client.send("POST", "/v2/models/m/infer", Content_Length=LIMIT)
        for _ in range(16):  # for longer than one second
            slow.writer.write(b" " * (LIMIT // 16))
            if not trickling.writer.is_closing():
                trickling.writer.write(b" ")
            await asyncio.sleep(0.1)
        assert (await slow.reply()).status == 400
        assert await trickling.ended() == b""


async def test_a_silent_connection_is_kept_for_a_while_and_then_closed() -> None:
    async with serving(head_s=SOON_S, idle_s=SOON_S * 4) as served:
        client = await served.client()
        for _ in range(2):
            assert (await client.infer()).status == 200
            await asyncio.sleep(SOON_S * 2)
        assert await client.ended() == b""


async def test_those_who_are_being_answered_are_never_evicted_and_the_longest_quiet_goes_first() -> None:
    inside = asyncio.Event()

    async def then(request: Any) -> None:
        if request.id == "wait":
            await inside.wait()

    async with serving(most=3) as served:
        served.servicer.then = then  # type: ignore[method-assign]
        busy, early, late = [await served.client() for _ in range(3)]
        busy.send("POST", "/v2/models/m/infer", json.dumps(ASK | {"id": "wait"}).encode())
        await until(lambda: served.door.inside)
        for client in (late, early, late):
            assert (await client.infer()).status == 200
        newest = await served.client()
        assert (await newest.infer()).status == 200
        assert await early.ended() == b""
        assert (await late.infer()).status == 200
        for client in (late, newest):
            client.send("POST", "/v2/models/m/infer", json.dumps(ASK | {"id": "wait"}).encode())
        await until(lambda: served.door.inside == 3)
        assert await (await served.client()).ended() == b""  # nobody can go: the newcomer does
        inside.set()
        for client in (busy, late, newest):
            assert (await client.reply()).status == 200


async def test_bodies_on_their_way_are_bounded_together() -> None:
    async with serving() as served:
        served.web.max_buffered_bytes = 3 * LIMIT
        clients = [await served.client() for _ in range(5)]
        for client in clients:
            client.send("POST", "/v2/models/m/infer", Content_Length=LIMIT)
            client.writer.write(b" " * (LIMIT - 1))
            await client.writer.drain()
        replies = asyncio.as_completed([client.reply() for client in clients])
        refused = await next(iter(replies))
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert served.web.buffered_bytes <= 3 * LIMIT
        for client in clients:
            client.writer.close()
        await until(lambda: served.web.buffered_bytes == 0)
        for reply in replies:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await reply


async def test_a_client_that_takes_no_answers_gets_no_further_ones_made() -> None:
    async with serving(life_s=1.0) as served:
        client = await served.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        ask = b"GET /v2 HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 1000 + b"\r\n\r\n"
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(PATIENT_S):
                while True:
                    client.writer.write(ask * 50)
                    sent += 50
                    await asyncio.wait_for(client.writer.drain(), 0.5)
        assert sent < 200_000


async def test_nobody_and_no_timer_is_left() -> None:
    before = len(asyncio.all_tasks())
    async with serving() as served:
        client = await served.client()
        await client.infer()
        await served.client()
    assert len(asyncio.all_tasks()) == before
    assert served.web._sweeping is None or served.web._sweeping.cancelled()
