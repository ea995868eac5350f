"""Pictures on their way into a service: beside the loop, within the deadline, and given up when nobody waits."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from PIL import Image

from edgemux.multiplexer.bundle import Bundle, Manifest, Tensor
from edgemux.multiplexer.errors import ConfigError, DeadlineExceeded, InputError, Unreachable
from edgemux.wire import image, process
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.channel import bind, open_channel, server_options
from edgemux.wire.codec import add_checksum, make_request
from edgemux.wire.model_service import ModelService, Served
from edgemux.wire.service import Door, Stub, register

MODEL = "fashion-mnist"
PATIENCE_S = 30.0


class Shapes(ModelService):
    """Answers with nothing; what counts is that the inputs could be read."""

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self.tensors(request, asyncio.get_running_loop().time() + PATIENCE_S)
        return oip.ModelInferResponse(model_name=MODEL)


class Decoder(msgspec.Struct):
    """Every picture waits for a permit. ``begun`` says how many were begun, ``reached`` that one was."""

    permits: threading.Semaphore
    reached: threading.Event
    begun: int = 0

    def pixels(self, *_: Any) -> NDArray[np.uint8]:
        self.begun += 1
        self.reached.set()
        assert self.permits.acquire(timeout=PATIENCE_S)
        return np.zeros((28, 28), np.uint8)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    made = Decoder(threading.Semaphore(0), threading.Event())
    monkeypatch.setattr(image, "_pixels", made.pixels)
    yield made
    made.permits.release(1000)


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


@pytest_asyncio.fixture
async def service(manifest: Manifest) -> AsyncIterator[Shapes]:
    made = Shapes("test", [Served.of(manifest, "test", 8)], max_decoding=8)
    yield made
    made.close()


def pictures(count: int) -> Any:
    buffer = io.BytesIO()
    Image.new("L", (28, 28)).save(buffer, "PNG")
    return oip.ModelInferRequest.FromString(
        make_request(MODEL, {"image": [buffer.getvalue()] * count}).SerializeToString()
    )


def later() -> float:
    return asyncio.get_running_loop().time() + PATIENCE_S


async def reached(decoder: Decoder) -> None:
    assert await asyncio.to_thread(decoder.reached.wait, PATIENCE_S)


async def until_idle(service: ModelService) -> None:
    while service._decoding:  # noqa: ASYNC110 - what is waited for is another thread's doing
        await asyncio.sleep(0.001)


async def test_the_loop_goes_on_while_pictures_are_decoded(service: Shapes, decoder: Decoder) -> None:
    decoding = asyncio.ensure_future(service.tensors(pictures(2), later()))
    await reached(decoder)
    dense = await service.tensors(make_request(MODEL, {"image": np.ones((1, 28, 28), np.uint8)}), later())
    assert dense["image"].sum() == 784
    assert not decoding.done()
    decoder.permits.release(2)
    assert (await decoding)["image"].shape == (2, 28, 28)


@pytest.mark.parametrize("sizes", [(3, -3), (3, 3), (-3, 3), (3, 0)])
async def test_no_count_that_a_client_claims_brings_pictures_into_the_loop(
    service: Shapes, decoder: Decoder, sizes: tuple[int, int]
) -> None:
    request = pictures(3)
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    for tensor, size in zip(request.inputs, sizes, strict=True):
        tensor.shape[:] = [size]
    add_checksum(request)
    with pytest.raises(InputError, match=r"^image: "):
        await service.tensors(request, later())
    assert decoder.begun == 0
    assert service._decoding == 0


async def test_the_deadline_ends_the_wait_and_the_pictures_that_are_left(service: Shapes, decoder: Decoder) -> None:
    first = asyncio.ensure_future(service.tensors(pictures(1), later()))
    await reached(decoder)
    with pytest.raises(DeadlineExceeded, match=r"^deadline: "):
        await service.tensors(pictures(5), asyncio.get_running_loop().time() + 0.05)
    assert service._decoding == 6  # until the thread has come to them
    decoder.permits.release(1)
    await first
    await until_idle(service)
    assert decoder.begun == 1


async def test_pictures_of_a_caller_who_went_away_are_given_up(service: Shapes, decoder: Decoder) -> None:
    waiting = asyncio.ensure_future(service.tensors(pictures(5), later()))
    await reached(decoder)
    waiting.cancel()
    await asyncio.wait({waiting})
    decoder.permits.release(1)
    await until_idle(service)
    assert waiting.cancelled()
    assert decoder.begun == 1


async def test_a_closed_service_gives_up_after_the_picture_at_hand(service: Shapes, decoder: Decoder) -> None:
    waiting = asyncio.ensure_future(service.tensors(pictures(5), later()))
    await reached(decoder)
    service.close()
    decoder.permits.release(1)
    with pytest.raises(Unreachable, match="stopping"):
        await waiting
    assert decoder.begun == 1


@pytest.mark.parametrize("second_signal", [False, True])
async def test_a_stopping_server_answers_unavailable_to_those_whose_pictures_take_too_long(
    service: Shapes, decoder: Decoder, second_signal: bool
) -> None:
    door, stop_now = Door(), asyncio.Event()
    server = grpc.aio.server(options=server_options())
    port = bind(server, "127.0.0.1", 0)
    register(server, service, door)
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        call = Stub(channel).ModelInfer(pictures(2), timeout=PATIENCE_S)
        answered = asyncio.ensure_future(call.code())
        await reached(decoder)
        if second_signal:
            stop_now.set()
        await process._stop(server, door, stop_now, drain_s=0.01)
        assert await answered is grpc.StatusCode.UNAVAILABLE
    assert door.inside == 0


async def test_a_row_that_no_message_can_hold_is_refused_naming_the_setting(
    service: Shapes, manifest: Manifest
) -> None:
    service.check_fits(64 * 2**10)
    large = msgspec.structs.replace(manifest, inputs=(Tensor("image", "FP32", (-1, 1024, 1024)),))
    other = Shapes("test", [Served.of(large, "test", 8)], max_decoding=8)
    other.check_fits(4 * 2**20 + 1024)
    with pytest.raises(ConfigError, match=r"^listen\.max_message_bytes: 4194304, one input of fashion-mnist needs "):
        other.check_fits(4 * 2**20)
    other.close()
