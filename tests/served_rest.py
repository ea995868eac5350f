"""A REST server in front of a servicer that answers what a test wants, and plain HTTP connections to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np

from edgemux.multiplexer.errors import UnknownModel
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import make_response
from edgemux.wire.http import Page
from edgemux.wire.process import take_port
from edgemux.wire.rest import Rest
from edgemux.wire.security import Gate
from edgemux.wire.service import Door
from edgemux.wire.web import Web

PATIENT_S = 30.0
SOON_S = 0.3
LIMIT = 64 * 2**10
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
        with contextlib.suppress(ConnectionError):
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
