"""The REST side over sockets, in front of a servicer that answers what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgemux.multiplexer.errors import DeadlineExceeded, InputError, Overloaded, UnknownModel, Unreachable
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import make_response
from edgemux.wire.http import Page
from edgemux.wire.process import take_port
from edgemux.wire.rest import Rest
from edgemux.wire.security import Gate, TokenFile
from edgemux.wire.service import Door
from edgemux.wire.web import Web

PATIENT_S = 30.0
SOON_S = 0.3
LIMIT = 64 * 2**10
TOKEN = "a-token-of-twenty-ch"
ASK = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}]}


class Servicer:
    """Doubles its input; does what ``then`` says before."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, float | None, str]] = []
        self.cancelled = 0
        self.ready = True

    async def then(self, request: Any) -> None:
        """To be replaced."""

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append((request, context.time_remaining(), context.peer()))
        try:
            await self.then(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        values = np.frombuffer(request.raw_input_contents[0], "<f4") * 2
        return make_response("m", "1", request.id, {"y": values}, {"said": "so"})

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerReadyResponse(ready=self.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ServerMetadataResponse(name="test", version="0", extensions=["parameters"])

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return oip.ModelReadyResponse(ready=self.ready and request.name in ("m", "a/b") and request.version in "1")

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name not in ("m", "a/b") or request.version not in "1":
            raise UnknownModel("name", "no such model here")
        return oip.ModelMetadataResponse(name=request.name, versions=["1"])

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = oip.ModelStatisticsResponse()
        response.model_stats.add(name=request.name or "all", inference_count=2**40)
        return response

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = oip.RepositoryIndexResponse()
        response.models.add(name="m", version="1", state="READY" if request.ready else "ANY")
        return response


class Reply(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, method: str, path: str, body: bytes | None = None, **headers: Any) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: x"]
        if body is not None:
            headers.setdefault("Content_Length", len(body))
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    async def reply(self, head: bool = False) -> Reply:
        async with asyncio.timeout(PATIENT_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            body = b"" if head else await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Reply(int(lines[0].split()[1]), headers, body)

    async def ask(self, method: str, path: str, body: Any = None, **headers: Any) -> Reply:
        content = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
        self.send(method, path, content, **headers)
        return await self.reply(head=method == "HEAD")

    async def infer(self, body: Any = ASK, query: str = "", **headers: Any) -> Reply:
        return await self.ask("POST", f"/v2/models/m/infer{query}", body, **headers)

    async def ended(self) -> bytes:
        """What comes until the server has closed."""
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(self.reader.read(), PATIENT_S)
        return b""


class Served:
    """A server for a test: its servicer, its door, and connections to it."""

    def __init__(self, servicer: Servicer, door: Door, rest: Rest, web: Web, port: int) -> None:
        self.servicer, self.door, self.rest, self.web, self.port = servicer, door, rest, web, port
        self._writers: list[asyncio.StreamWriter] = []

    async def client(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return Client(reader, writer)

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        await self.web.close()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(gate: Gate | None = None, **how: Any) -> AsyncIterator[Served]:
    listener = take_port("127.0.0.1", 0, "any")
    servicer, door = Servicer(), Door()
    rest = Rest(servicer, door, {"/status": lambda: Page(200, {"well": True})}, gate, LIMIT)
    served = Served(servicer, door, rest, Web(listener, rest, **how), listener.getsockname()[1])
    try:
        yield served
    finally:
        await served.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENT_S):
        while not condition():  # noqa: ASYNC110 - a test
            await asyncio.sleep(0.01)


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
