"""A model that another server answers for: passed on, checked, refused in its own words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from edgemux.cloud import proxy, repository
from edgemux.cloud.config import CloudConfig, ModelSettings
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.service import CloudService, Hosted
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import (
    BadAnswer,
    DeadlineExceeded,
    Incompatible,
    Overloaded,
    TooLarge,
    Unreachable,
)
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import get_parameters
from tests.simulated_cloud import SimulatedCloud, listening

ROWS = {"image": np.zeros((2, 28, 28), np.uint8)}


class Described(SimulatedCloud):
    """One that says what its model takes and gives, and keeps the latest request."""

    latest: Any = None
    described = True
    version = "7"

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name != "there" or not self.described:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        described = oip.ModelMetadataResponse(name="there", versions=[self.version], platform="somebody's")
        described.inputs.add(name="image", datatype="UINT8", shape=[-1, 28, 28])
        described.outputs.add(name="probabilities", datatype="FP32", shape=[-1, 10])
        return described

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.latest = request
        return await super().ModelInfer(request, context)


@pytest.fixture
async def there(tiny_bundle: Any) -> AsyncIterator[Described]:
    async with listening(Described(Bundle.open(tiny_bundle))) as cloud:
        assert isinstance(cloud, Described)
        yield cloud


@contextlib.asynccontextmanager
async def hosted(cloud: Described, **settings: Any) -> AsyncIterator[Hosted]:
    """The proxy's model, closed with the block."""
    model = ModelSettings(name="here", address=cloud.address, **({"model": "there"} | settings))
    (made,) = await proxy.open_proxy(model, CloudConfig(models=(model,)), Metrics())
    try:
        yield made
    finally:
        await made.engine.close()


def _soon(seconds: float = 30.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_the_model_is_served_as_the_other_server_describes_it(there: Described) -> None:
    async with hosted(there) as made:
        assert (made.served.name, made.served.version, made.served.max_batch) == ("here", "7", 32)
        assert [tensor.shape for tensor in made.served.inputs] == [(-1, 28, 28)]


async def test_a_request_is_passed_on_with_its_deadline_and_priority(there: Described) -> None:
    async with hosted(there) as made:
        answer = await made.engine.infer(ROWS, ["probabilities"], _soon(10.0), priority=2)
    assert answer.outputs["probabilities"].shape == (2, 10)
    assert there.latest.model_name == "there"
    assert [output.name for output in there.latest.outputs] == ["probabilities"]
    parameters = get_parameters(there.latest)
    assert parameters["priority"] == 2
    assert 9e6 < float(parameters["timeout"]) < 10e6


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "[request id: x] Exceeds maximum queue size", Overloaded),
        (grpc.StatusCode.UNAVAILABLE, "Request timeout expired", Overloaded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", Overloaded),
        (grpc.StatusCode.UNAVAILABLE, "gone", Unreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", DeadlineExceeded),
        (grpc.StatusCode.INVALID_ARGUMENT, "/home/secret", BadAnswer),
    ],
)
async def test_a_refusal_is_told_in_our_own_words(there: Described, code: Any, text: str, kind: Any) -> None:
    there.answer = there.refusing(code, text)
    async with hosted(there) as made:
        with pytest.raises(kind) as raised:
            await made.engine.infer(ROWS, ["probabilities"], _soon())
    assert text not in str(raised.value)


async def test_an_answer_that_is_not_what_was_described_is_none(there: Described) -> None:
    there.answer = there.bending(lambda response: response.outputs[0].shape.__setitem__(1, 5))
    async with hosted(there) as made:
        with pytest.raises(BadAnswer):
            await made.engine.infer(ROWS, ["probabilities"], _soon())


async def test_what_is_too_much_is_refused_without_asking(there: Described) -> None:
    there.answer = there.silent
    async with hosted(there, max_batch=2) as made:
        with pytest.raises(TooLarge):
            await made.engine.infer({"image": np.zeros((3, 28, 28), np.uint8)}, ["probabilities"], _soon())
        asking = [asyncio.ensure_future(made.engine.infer(ROWS, ["probabilities"], _soon())) for _ in range(128)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await made.engine.infer(ROWS, ["probabilities"], _soon())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert made.engine.status()["rows_under_way"] == 0
        with pytest.raises(DeadlineExceeded):
            await made.engine.infer(ROWS, ["probabilities"], _soon(0.0))


async def test_a_model_that_is_not_described_is_said_to_be_missing(there: Described) -> None:
    with pytest.raises(Incompatible, match="nowhere"):
        async with hosted(there, model="nowhere"):
            pass


async def test_a_server_that_is_away_is_named(there: Described) -> None:
    model = ModelSettings(name="here", address="127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        await proxy.open_proxy(model, CloudConfig(models=(model,)), Metrics())


async def test_that_the_other_server_is_away_does_not_make_this_one_unwell(there: Described) -> None:
    async with hosted(there) as made:
        assert await made.well()
        assert made.follows is not None
        assert not await made.follows()


async def test_a_model_is_ready_as_the_other_server_says_and_described_anew_when_that_is_back(
    there: Described, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "FOLLOW_S", 0.01)
    model = ModelSettings(name="here", model="there", address=there.address)
    config, metrics = CloudConfig(models=(model,)), Metrics()
    service = CloudService([], config.admission, metrics, config.batching)
    models = repository.Repository(config, service, metrics)
    told: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()

    async def announce(name: str, ready: bool) -> None:
        told.put_nowait((name, ready))

    there.ready, there.described = True, False
    await models.open()
    try:
        models.announced(announce)
        assert await asyncio.wait_for(told.get(), 30.0) == ("here", False)
        asked = oip.ModelReadyRequest(name="here")
        assert not (await service.ModelReady(asked, None)).ready
        assert [each[2] for each in service.index()] == ["UNAVAILABLE"]
        with pytest.raises(Unreachable):
            await service.ModelInfer(oip.ModelInferRequest(model_name="here"), None)
        there.described = True
        assert await asyncio.wait_for(told.get(), 30.0) == ("here", True)
        assert (await service.ModelReady(asked, None)).ready
        there.ready, there.version = False, "8"
        assert await asyncio.wait_for(told.get(), 30.0) == ("here", False)
        assert not (await service.ModelReady(asked, None)).ready
        assert [each[2] for each in service.index()] == ["UNAVAILABLE"]
        there.ready = True
        assert await asyncio.wait_for(told.get(), 30.0) == ("here", True)
        assert [each[1:3] for each in service.index()] == [("8", "READY")]
    finally:
        await models.close()
        await service.stop()
