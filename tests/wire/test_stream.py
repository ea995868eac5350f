"""ModelStreamInfer: answers in order, each request with its own error, and a stream that nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from edgemux.multiplexer.errors import InputError
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import bind, open_channel, server_options
from edgemux.wire.service import MAX_STREAMED, SERVICE, STREAM, Door, register


class _Echo:
    """Answers with the request's id; the slower the longer the name of the model is."""

    def __init__(self) -> None:
        self.begun = 0

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.begun += 1
        await asyncio.sleep(len(request.model_name) / 100)
        if request.model_name == "bad":
            raise InputError("x", "is wrong")
        return oip.ModelInferResponse(id=request.id, model_name=request.model_name)


@pytest.fixture
async def served() -> AsyncIterator[tuple[_Echo, Any, Door]]:
    server = grpc.aio.server(options=server_options())
    servicer, door = _Echo(), Door()
    register(server, servicer, door)
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    stream = channel.stream_stream(
        f"/{SERVICE}/{STREAM}",
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=oip.ModelStreamInferResponse.FromString,
    )
    yield servicer, stream, door
    await channel.close()
    await server.stop(0)


async def test_answers_come_in_the_order_of_the_requests(served: Any) -> None:
    call = served[1]()
    for number, name in enumerate(("slow" * 4, "a", "ab", "a")):
        await call.write(oip.ModelInferRequest(model_name=name, id=str(number)))
    await call.done_writing()
    answers = [answer async for answer in call]
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2", "3"]
    assert not any(answer.error_message for answer in answers)


async def test_a_refused_request_tells_its_error_and_the_stream_goes_on(served: Any) -> None:
    call = served[1]()
    await call.write(oip.ModelInferRequest(model_name="bad", id="first"))
    await call.write(b"\xff\xff\xff")
    await call.write(oip.ModelInferRequest(model_name="a", id="last"))
    await call.done_writing()
    answers = [answer async for answer in call]
    assert [answer.error_message for answer in answers] == [
        "x: is wrong",
        "request: not a valid message of this method",
        "",
    ]
    assert answers[0].infer_response.id == "first"
    assert answers[2].infer_response.id == "last"


async def test_a_stream_whose_answers_nobody_reads_is_not_read_any_further(served: Any) -> None:
    servicer, stream, _ = served
    call = stream()
    payload = "y" * 60_000  # so that answers fill what the transport holds

    async def write() -> None:
        for _ in range(2000):
            await call.write(oip.ModelInferRequest(model_name="a", id=payload))

    writing = asyncio.ensure_future(write())
    begun = -1
    while begun != servicer.begun or begun < MAX_STREAMED:
        begun = servicer.begun
        await asyncio.sleep(0.3)
    assert begun < 1000
    assert not writing.done()
    call.cancel()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_a_server_that_stops_says_so_in_the_stream(served: Any) -> None:
    _, stream, door = served
    call = stream()
    await call.write(oip.ModelInferRequest(model_name="a", id="1"))
    assert (await call.read()).infer_response.id == "1"
    door.closed = True
    await call.write(oip.ModelInferRequest(model_name="a", id="2"))
    assert (await call.read()).error_message == "the server is stopping"
    assert door.inside == 0
    call.cancel()
