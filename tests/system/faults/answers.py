"""What a cloud must not say: ways to spoil a good answer, and answers that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np

from edgemux.wire.codec import MODEL_DIGEST, add_checksum
from tests.simulated_cloud import SimulatedCloud

Answer = Callable[[Any, Any], Awaitable[Any]]
CLASSES = 10


def meant(cloud: SimulatedCloud, bend: Callable[[Any], None]) -> Answer:
    """Spoilt by the cloud itself, not on the way: the checksum is that of what it says."""

    def bend_and_sign(response: Any) -> None:
        bend(response)
        add_checksum(response)

    return cloud.bending(bend_and_sign)


def with_content(response: Any, content: np.ndarray[Any, Any], datatype: str = "FP32") -> None:
    """Say ``content`` instead, as somebody would who believes in it: shape, datatype and bytes agree."""
    output = response.outputs[0]
    output.datatype = datatype
    del output.shape[:]
    output.shape.extend(content.shape)
    response.raw_output_contents[0] = content.tobytes()


def uniform(*shape: int) -> np.ndarray[Any, Any]:
    """Probabilities FP32 that add up to 1 in the last axis."""
    return np.full(shape, 1 / shape[-1], np.float32)


def transposed(response: Any) -> None:
    with_content(response, uniform(CLASSES, 1))


def of_another_rank(response: Any) -> None:
    with_content(response, uniform(1, 1, CLASSES))


def doubles(response: Any) -> None:
    with_content(response, uniform(1, CLASSES).astype(np.float64), "FP64")


def one_class_more(response: Any) -> None:
    with_content(response, uniform(1, CLASSES + 1))


def one_class_less(response: Any) -> None:
    with_content(response, uniform(1, CLASSES - 1))


def nothing_is_a_number(response: Any) -> None:
    with_content(response, np.full((1, CLASSES), np.nan, np.float32))


def one_is_infinite(response: Any) -> None:
    content = uniform(1, CLASSES)
    content[0, 3] = np.inf
    with_content(response, content)


def no_distribution(response: Any) -> None:
    with_content(response, np.full((1, CLASSES), 0.7, np.float32))


def cut_short(response: Any) -> None:
    response.raw_output_contents[0] = response.raw_output_contents[0][:-4]


def claims_too_much(response: Any) -> None:
    response.outputs[0].shape[0] = 2**40


def another_id(response: Any) -> None:
    response.id = response.id + "1"


def two_answers(response: Any) -> None:
    response.outputs.add().CopyFrom(response.outputs[0])
    response.raw_output_contents.append(response.raw_output_contents[0])


def of_another_model(response: Any) -> None:
    response.parameters[MODEL_DIGEST].string_param = "f" * 64


def oversize(response: Any) -> None:
    response.parameters["note"].string_param = "x" * (2 * 2**20)


def raw(content: bytes) -> Answer:
    """Bytes, whatever they are, with status OK."""

    async def answer(request: Any, context: Any) -> bytes:
        return content

    return answer


def slow(cloud: SimulatedCloud, delay_s: float) -> Answer:
    """Right, but later."""

    async def answer(request: Any, context: Any) -> Any:
        await asyncio.sleep(delay_s)
        return await cloud.well(request, context)

    return answer


def previous(cloud: SimulatedCloud) -> Answer:
    """To each request the answer to the one before it, whole and well."""
    before: list[Any] = []

    async def answer(request: Any, context: Any) -> Any:
        before.append(await cloud.well(request, context))
        return before[-2] if len(before) > 1 else before[-1]

    return answer


def overloaded(pushback_s: float, seen_s: list[float]) -> Answer:
    """A refusal that says when to come back; ``seen_s`` gets the time of each request, by the loop's clock."""

    async def answer(request: Any, context: Any) -> Any:
        seen_s.append(asyncio.get_running_loop().time())
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(round(pushback_s * 1000))),))
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    return answer


def label_of(probabilities: bytes) -> bytes:
    """The label INT64 of probabilities FP32 [classes], as raw contents."""
    return np.frombuffer(probabilities, np.float32).argmax().astype(np.int64).tobytes()
