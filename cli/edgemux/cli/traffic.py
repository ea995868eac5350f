"""Open-loop traffic: requests leave on schedule, whether or not the earlier ones have been answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Manifest
from edgemux.multiplexer.errors import BadAnswer
from edgemux.wire.codec import get_parameters, make_request, read_outputs
from edgemux.wire.service import Stub


class Outcome(msgspec.Struct, frozen=True):
    """What became of one request. ``image``: its index among the samples; ``elapsed_s``: from sending to the end.

    label None and ``error`` set: there was no answer. late: the end came after the deadline.
    """

    image: int
    elapsed_s: float
    late: bool
    label: int | None = None
    route: str = ""
    reason: str = ""
    variant: str = ""
    error: str = ""


class Caller:
    """Sends sample images to an agent, one a request."""

    def __init__(
        self, channel: grpc.aio.Channel, manifest: Manifest, images: NDArray[np.uint8], timeout_s: float
    ) -> None:
        self._infer = Stub(channel).ModelInfer
        self._manifest = manifest
        self._images = images
        self._timeout_s = timeout_s

    async def ask(self, image: int) -> Outcome:
        """One request, with the deadline on the call; failures are outcomes too."""
        pixels = self._images[image : image + 1]
        request = make_request(self._manifest.name, {self._manifest.inputs[0].name: pixels})
        now = asyncio.get_running_loop().time
        sent_s = now()
        try:
            response = await self._infer(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            elapsed_s = now() - sent_s
            late = elapsed_s > self._timeout_s or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return Outcome(image, elapsed_s, late, error=error.code().name.lower())
        elapsed_s = now() - sent_s
        return self._outcome(image, elapsed_s, response)

    def _outcome(self, image: int, elapsed_s: float, response: Any) -> Outcome:
        late = elapsed_s > self._timeout_s
        try:
            label = read_outputs(response, self._manifest.outputs, 1)["label"]
        except BadAnswer:
            return Outcome(image, elapsed_s, late, error="bad_answer")
        said = get_parameters(response)
        return Outcome(
            image,
            elapsed_s,
            late,
            label=int(label[0]),
            route=str(said.get("edgemux_route", "unknown")),
            reason=str(said.get("edgemux_reason", "unknown")),
            variant=str(said.get("edgemux_variant", "unknown")),
        )


def sequence(count: int, samples: int, seed: int) -> list[int]:
    """Which sample each of ``count`` requests sends: shuffled passes, so none comes again before all have come."""
    draw = np.random.default_rng(seed)
    passes = -(-count // samples)
    return [int(image) for _ in range(passes) for image in draw.permutation(samples)][:count]


async def open_loop(
    images: list[int],
    rate_per_s: float,
    ask: Callable[[int], Awaitable[Outcome]],
    outcomes: list[Outcome],
    sent: Callable[[int], None] | None = None,
) -> None:
    """Send one request every 1 / rate; return when the last is answered.

    Outcomes are appended as they come in. ``sent`` is called after each sending, with the number sent so far.
    """

    async def one(image: int) -> None:
        outcomes.append(await ask(image))

    now = asyncio.get_running_loop().time
    start_s = now()
    async with asyncio.TaskGroup() as requests:
        for index, image in enumerate(images):
            # A loop that fell behind sends at once: the schedule does not wait for anybody.
            await asyncio.sleep(max(0.0, start_s + index / rate_per_s - now()))
            requests.create_task(one(image))
            if sent is not None:
                sent(index + 1)
