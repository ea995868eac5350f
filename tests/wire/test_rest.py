"""The REST side over sockets, in front of a servicer that answers what the test wants."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.multiplexer.errors import DeadlineExceeded, InputError, Overloaded, UnknownModel, Unreachable
from edgemux.wire.security import Gate, TokenFile
from tests.served_rest import ASK, LIMIT, PATIENT_S, serving, until

TOKEN = "a-token-of-twenty-ch"


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("/v2", 200, {"name": "test", "version": "0", "extensions": ["parameters", "binary_tensor_data"]}),
        ("/v2/", 200, {"name": "test", "version": "0", "extensions": ["parameters", "binary_tensor_data"]}),
        ("/v2/health/live", 200, {"live": True}),
        ("/v2/health/ready", 200, {"ready": True}),
        ("/v2/models/m/ready", 200, {"ready": True}),
        ("/v2/models/m/versions/1/ready", 200, {"ready": True}),
        ("/v2/models/a%2Fb/ready", 200, {"ready": True}),
        ("/v2/models/m/versions/2/ready", 404, {"error": "name: no such model here"}),
        ("/v2/models/other", 404, {"error": "name: no such model here"}),
        ("/v2/models/m/config", 501, {"error": "not implemented here"}),
        ("/v2/models/m/nothing", 404, {"error": "no such page"}),
        ("/nothing", 404, {"error": "no such page"}),
        ("/status", 200, {"well": True}),
    ],
)
async def test_each_path_answers(path: str, status: int, expected: Any) -> None:
    async with serving() as served:
        reply = await (await served.client()).ask("GET", path)
        assert (reply.status, reply.json) == (status, expected)
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["date"].endswith("GMT")


async def test_one_connection_serves_everything_of_the_protocol_in_turn() -> None:
    async with serving() as served:
        client = await served.client()
        assert (await client.ask("GET", "/v2/models/m")).json["versions"] == ["1"]
        assert (await client.ask("GET", "/v2/models/m/stats")).json["model_stats"][0]["inference_count"] == 2**40
        assert (await client.ask("GET", "/v2/models/stats")).json["model_stats"][0]["name"] == "all"
        index = [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
        assert (await client.ask("POST", "/v2/repository/index", {"ready": True})).json == index
        assert (await client.ask("POST", "/v2/repository/index", b"")).json[0]["state"] == "ANY"
        assert (await client.ask("POST", "/v2/repository/index", b"[")).status == 400
        refused = await client.ask("POST", "/v2/repository/models/m/load", {})
        assert (refused.status, "admin address" in refused.error) == (403, True)
        head = await client.ask("HEAD", "/v2/models/m")
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) > 10
        wrong = await client.ask("GET", "/v2/models/m/infer")
        assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
        served.servicer.ready = False
        assert (await client.ask("GET", "/v2/health/ready")).status == 503


async def test_json_is_answered_in_json_and_binary_where_binary_is_asked_for() -> None:
    async with serving() as served:
        client = await served.client()
        reply = await client.infer(ASK | {"id": "one"})
        assert reply.json == {
            "model_name": "m",
            "model_version": "1",
            "id": "one",
            "parameters": {"said": "so"},
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [2.0, 4.0]}],
        }
        raw = np.float32([3, 4]).tobytes()
        given = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
        head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        for body, more in ((head + raw, {}), (gzip.compress(head + raw), {"Content_Encoding": "gzip"})):
            reply = await client.infer(body, Inference_Header_Content_Length=len(head), **more)
            length = int(reply.headers["inference-header-content-length"])
            assert reply.headers["content-type"] == "application/octet-stream"
            assert json.loads(reply.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
            assert np.frombuffer(reply.body[length:], "<f4").tolist() == [6.0, 8.0]
        (request, left_s, peer), *_ = served.servicer.asked
        assert (request.model_name, request.model_version, left_s) == ("m", "", None)
        assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", peer)


async def test_the_shortest_timeout_is_the_deadline() -> None:
    async with serving() as served:
        client = await served.client()
        await client.infer(ASK | {"parameters": {"timeout_ms": 50_000}}, "?timeout_ms=90000", Timeout_Ms="70000")
        left_s = served.servicer.asked[-1][1]
        assert left_s is not None
        assert 40 < left_s <= 50
        for body, query, headers in ((ASK, "?timeout_ms=x", {}), (ASK, "", {"Timeout_Ms": "-1"})):
            reply = await client.infer(body, query, **headers)
            assert (reply.status, reply.error.split(":")[0]) == (400, "timeout_ms")


@pytest.mark.parametrize(
    ("error", "status", "text", "header"),
    [
        (InputError("x", "is wrong"), 400, "x: is wrong", None),
        (UnknownModel("model_name", "no such model here"), 404, "model_name: no such model here", None),
        (Overloaded("full", retry_after_s=2.4), 429, "full", ("retry-after", "3")),
        (Overloaded("full"), 429, "full", ("retry-after", "1")),
        (DeadlineExceeded("late"), 504, "late", None),
        (Unreachable("stopping"), 503, "stopping", ("connection", "close")),
        (MemoryError(), 429, "out of memory", ("retry-after", "1")),
        (RuntimeError("a secret"), 500, r"internal error [0-9a-f]{8}", None),
    ],
)
async def test_what_is_raised_becomes_a_status_and_a_reason(
    error: Exception, status: int, text: str, header: tuple[str, str] | None
) -> None:
    async def then(_: Any) -> None:
        raise error

    async with serving() as served:
        served.servicer.then = then  # type: ignore[method-assign]
        reply = await (await served.client()).infer()
        assert reply.status == status
        assert re.fullmatch(text, reply.error)
        assert header is None or reply.headers[header[0]] == header[1]


async def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    first = asyncio.Event()

    async def then(request: Any) -> None:
        if request.id == "0":
            await first.wait()

    async with serving() as served:
        served.servicer.then = then  # type: ignore[method-assign]
        client = await served.client()
        for number in range(10):
            client.send("POST", "/v2/models/m/infer", json.dumps(ASK | {"id": str(number)}).encode())
        client.send("GET", "/v2/health/live")
        client.send("POST", "/v2/models/m/infer", b"{", Connection="close")
        await until(lambda: served.servicer.asked)
        first.set()
        assert [(await client.reply()).json["id"] for _ in range(10)] == [str(number) for number in range(10)]
        assert (await client.reply()).json == {"live": True}
        assert (await client.reply()).status == 400
        assert await client.ended() == b""


async def test_more_sent_ahead_than_anybody_needs_is_not_heard() -> None:
    async with serving() as served:
        client = await served.client()
        client.writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
        answers = (await client.ended()).count(b"HTTP/1.1 200")
        assert 60 <= answers <= 70


async def test_a_client_that_goes_away_cancels_its_inference() -> None:
    async def then(_: Any) -> None:
        await asyncio.sleep(PATIENT_S)

    async with serving() as served:
        served.servicer.then = then  # type: ignore[method-assign]
        client = await served.client()
        client.send("POST", "/v2/models/m/infer", json.dumps(ASK).encode())
        await until(lambda: served.servicer.asked)
        client.writer.close()
        await until(lambda: served.servicer.cancelled)
        assert served.door.inside == 0


async def test_a_closed_door_refuses_and_ends_the_connection_while_those_inside_are_answered() -> None:
    inside = asyncio.Event()

    async def then(_: Any) -> None:
        await inside.wait()

    async with serving() as served:
        served.servicer.then = then  # type: ignore[method-assign]
        first, second = await served.client(), await served.client()
        first.send("POST", "/v2/models/m/infer", json.dumps(ASK).encode())
        await until(lambda: served.door.inside)
        served.door.closed = True
        refused = await second.infer()
        assert (refused.status, refused.error) == (503, "the server is stopping")
        assert await second.ended() == b""
        inside.set()
        answered = await first.reply()
        assert (answered.status, answered.headers["connection"]) == (200, "close")


async def test_a_body_that_is_too_large_is_refused_before_it_comes() -> None:
    async with serving() as served:
        client = await served.client()
        client.send("POST", "/v2/models/m/infer", b"", Content_Length=LIMIT + 1)
        reply = await client.reply()
        assert (reply.status, reply.error) == (413, f"body: more than {LIMIT} bytes")
        assert await client.ended() == b""
        chunked = await served.client()
        chunked.send("POST", "/v2/models/m/infer", Transfer_Encoding="chunked")
        for _ in range(9):
            chunked.writer.write(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
        assert (await chunked.reply()).status == 413
        folded = await (await served.client()).infer(gzip.compress(bytes(LIMIT + 1)), Content_Encoding="gzip")
        assert folded.status == 413
        assert (await (await served.client()).infer(b"x", Content_Encoding="br")).status == 415
        assert served.servicer.asked == []


async def test_a_client_that_asks_first_is_told_to_go_on_or_refused() -> None:
    async with serving() as served:
        body = json.dumps(ASK).encode()
        client = await served.client()
        client.send("POST", "/v2/models/m/infer", Content_Length=len(body), Expect="100-continue")
        assert (await client.reply()).status == 100
        client.writer.write(body)
        assert (await client.reply()).status == 200
        client.send("POST", "/v2/models/m/infer", Content_Length=LIMIT + 1, Expect="100-continue")
        assert (await client.reply()).status == 413


async def test_chunks_are_taken() -> None:
    async with serving() as served:
        client = await served.client()
        body = json.dumps(ASK).encode()
        client.send("POST", "/v2/models/m/infer", Transfer_Encoding="chunked")
        for byte in body:
            client.writer.write(b"1\r\n" + bytes([byte]) + b"\r\n")
        client.writer.write(b"0\r\n\r\n")
        assert (await client.reply()).status == 200
        assert served.web.buffered_bytes == 0


async def test_strangers_are_refused_before_their_body_and_health_is_open(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    async with serving(Gate(TokenFile(tmp_path / "tokens", "t"))) as served:
        client = await served.client()
        assert (await client.ask("GET", "/v2/health/ready")).status == 200
        assert (await client.infer(Authorization=f"Bearer {TOKEN}")).status == 200
        client.send("POST", "/v2/models/m/infer", b"", Content_Length=1000)
        reply = await client.reply()
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert await client.ended() == b""
        assert (await (await served.client()).ask("GET", "/status")).status == 401


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("how", [{"Content_Length": LIMIT}, {"Transfer_Encoding": "chunked"}])
async def test_a_stranger_sends_no_body_to_what_is_open_either(
    tmp_path: Path, method: str, how: dict[str, Any]
) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    async with serving(Gate(TokenFile(tmp_path / "tokens", "t"))) as served:
        client = await served.client()
        client.send(method, "/v2/health/ready", **how)
        assert (await client.reply()).status == 401
        assert served.web.buffered_bytes == 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nbad\x00header: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10 + b"".join(b"h%d: 1\r\n" % n for n in range(200)) + b"\r\n", 431),
        (b"GET /" + b"a" * 400_000, 431),
        (b"GET / HTTP/1.1\r\na: " + b"a" * 400_000, 431),
    ],
)
async def test_what_is_no_request_gets_one_answer_and_the_end(sent: bytes, status: int) -> None:
    async with serving() as served:
        client = await served.client()
        client.writer.write(sent)
        reply = await client.reply()
        assert (reply.status, "error" in reply.json) == (status, True)
        assert await client.ended() == b""


async def test_an_upgrade_is_answered_as_if_it_had_not_been_asked_for() -> None:
    async with serving() as served:
        client = await served.client()
        reply = await client.infer(Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AAMAAABk")
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        old = await served.client()
        old.writer.write(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert (await old.reply()).status == 200
        assert await old.ended() == b""


async def test_the_same_app_answers_behind_any_asgi_server() -> None:
    async with serving() as served:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def call(method: str, path: str, *pieces: bytes) -> tuple[int, bytes]:
            messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
            messages.append({"type": "http.request", "body": b"", "more_body": False})

            async def receive() -> Any:
                return messages.pop(0)

            sent.clear()
            asked = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}
            await served.rest(asked | {"client": ("127.0.0.1", 5)}, receive, send)
            return sent[0]["status"], sent[1]["body"]

        body = json.dumps(ASK).encode()
        status, answer = await call("POST", "/v2/models/m/infer", body[:10], body[10:])
        assert (status, json.loads(answer)["outputs"][0]["data"]) == (200, [2.0, 4.0])
        assert (await call("GET", "/v2/health/live"))[0] == 200
        assert await call("HEAD", "/status") == (200, b"")
        assert (await call("POST", "/v2/models/m/infer", *[bytes(LIMIT // 2)] * 3))[0] == 413
