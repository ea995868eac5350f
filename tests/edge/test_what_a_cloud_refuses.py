"""One of our own servers that takes tensors only, or few rows: what that costs the agent, and for how long."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.edge.breaker import State
from edgemux.edge.vigil import Standing, Withdrawal
from edgemux.multiplexer.bundle import Bundle, Payload, seal
from edgemux.multiplexer.domain import Placement
from edgemux.multiplexer.estimate import LinkEstimate
from edgemux.wire.payload import RAW

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]
PATIENT_S = 20.0
SIZES = {RAW: 784.0, "jpeg-70": 100.0, "jpeg-85": 110.0, "jpeg-95": 120.0, "webp-85": 130.0, "png": 140.0}


@pytest.fixture
def measured(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with figures of forms, as if a build had measured them."""
    shutil.copytree(tiny_bundle, tmp_path / "measured")
    bundle = Bundle.open(tmp_path / "measured")
    forms = tuple(Payload(name, size, 0.9, (0.8, 1.0), 0.0, 0.0, 0.0, 1000) for name, size in SIZES.items())
    seal(bundle.folder, msgspec.structs.replace(bundle.manifest, payloads=forms))
    return bundle.folder


@pytest.fixture
def slow_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link of 1 kB/s, as far as the agent knows."""
    monkeypatch.setattr(LinkEstimate, "bytes_per_s", lambda self, now_s: 1000.0)
    monkeypatch.setattr("edgemux.edge.packing.LOOK_SHARE", 0.0)


async def ask(agent: Any, images: NDArray[np.uint8]) -> list[Any]:
    return [(await agent.infer({"image": images[i : i + 1]}, PATIENT_S))[0] for i in range(len(images))]


def tensors_only(cloud: Any) -> Callable[[Any, Any], Any]:
    """As a server of ours does that has the model, and not the bundle's preprocessing."""

    async def answer(request: Any, context: Any) -> Any:
        if request.inputs[0].datatype == "BYTES":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "image: encoded pictures are not taken here")
        return await cloud.well(request, context)

    return answer


async def test_a_server_of_ours_that_takes_no_pictures_is_asked_once_and_opens_no_breaker(
    cloud: Any, agent_of: Any, measured: Path, pictures: Pictures, slow_link: None
) -> None:
    cloud.answer = tensors_only(cloud)
    images, _ = pictures(20, 4)
    async with agent_of(cloud.address, bundle=measured, policy="cloud-only") as agent:
        found = await ask(agent, images)
        assert agent.cloud.breaker.state(agent.cloud._clock()) is State.CLOSED
    assert {answer.prediction.route.placement for answer in found} == {Placement.CLOUD}
    assert cloud.seen == 21, "one of them was sent again"


async def test_a_server_of_ours_that_takes_fewer_rows_costs_one_call(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    sizes: list[int] = []

    async def answer(request: Any, context: Any) -> Any:
        sizes.append(request.inputs[0].shape[0])
        if sizes[-1] > 1:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "image: a batch of more than 1")
        return await cloud.well(request, context)

    cloud.answer = answer
    images, _ = pictures(17, 4)
    async with agent_of(cloud.address, policy="cloud-only", there={"most_together": 16}) as agent:
        await ask(agent, images[:1])
        await agent.infer({"image": images}, PATIENT_S)
        assert agent.cloud.breaker.state(agent.cloud._clock()) is State.CLOSED
        sizes.clear()
        found = await agent.infer({"image": images}, PATIENT_S)
    assert {answer.prediction.route.placement for answer in found} == {Placement.CLOUD}
    assert set(sizes) == {1}


async def test_a_form_that_loses_something_is_not_sent_while_a_new_certificate_is_made(
    cloud: Any, agent_of: Any, measured: Path, pictures: Pictures, slow_link: None
) -> None:
    images, _ = pictures(8, 4)
    async with agent_of(cloud.address, bundle=measured, policy="cloud-only") as agent:
        await ask(agent, images)
        sent = agent.metrics.registry.get_sample_value
        assert sent("edgemux_offload_payloads_total", {"payload": "jpeg-70"}) == 7
        agent.vigil.withdraw(Withdrawal.AUDITS)
        assert agent.vigil.state.standing is Standing.WITHDRAWN
        await ask(agent, images)
        assert sent("edgemux_offload_payloads_total", {"payload": "jpeg-70"}) == 7
        assert sent("edgemux_offload_payloads_total", {"payload": "png"}) == 8
