"""The load and the judge together, against a server that is no agent: what it loses and delays must be found."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemux.edge.request_log import Line
from edgemux.multiplexer.bundle import Bundle
from tests.simulated_cloud import SimulatedCloud, listening
from tests.system.faults import answers
from tests.system.faults.ledgers import ANSWERED, BUSY_S, GRACE_S, Agent, Verdict, reconcile
from tests.system.faults.load import Load
from tests.system.faults.proxy import Backstage
from tests.system.faults.stage import Pictures

TIMEOUT_S = 0.3


class Server:
    """A simulated cloud for an agent: it says of every answer that the device gave it."""

    def __init__(self, backstage: Backstage, cloud: SimulatedCloud, seen: Pictures) -> None:
        self.backstage = backstage
        self.cloud = cloud
        self.seen = seen

    async def well(self, request: Any, context: Any) -> Any:
        """The cloud's answer and its label."""
        response = await self.cloud.well(request, context)
        probabilities = response.raw_output_contents[0]
        response.raw_output_contents[0] = answers.label_of(probabilities)
        response.parameters["edgemux_route"].string_param = "cloud"
        response.parameters["edgemux_variant"].string_param = "cloud"
        response.parameters["edgemux_reason"].string_param = "offloaded"
        return response

    def judged(self, load: Load) -> Verdict:
        """With a log that has every answer."""
        said = ("cloud",), ("cloud",), ("offloaded",)
        lines = [
            Line(e.id, "fashion-mnist", ANSWERED, 0.01, 1, *said, (e.label or 0,))
            for e in load.entries
            if e.outcome == ANSWERED
        ]
        return reconcile(load.entries, Agent(lines), self.seen.labels)


@pytest.fixture
def server(tiny_bundle: Path, seen: Pictures) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        backstage = stack.enter_context(contextlib.closing(Backstage()))
        cloud = backstage.enter(listening(backstage.call(SimulatedCloud, Bundle.open(tiny_bundle))), stack)
        made = Server(backstage, cloud, seen)
        cloud.answer = made.well
        yield made


def loaded(server: Server, **how: Any) -> Load:
    return Load(server.backstage, server.cloud.address, server.seen.images, timeout_s=TIMEOUT_S, **how)


def test_a_server_that_answers_everything_is_beyond_reproach(server: Server) -> None:
    with loaded(server) as load:
        load.more(100)
    verdict = server.judged(load)
    assert verdict.requests >= 100
    assert verdict.faults + verdict.refused == ()


def test_what_a_server_never_answers_is_lost(server: Server) -> None:
    with loaded(server) as load:
        load.more(40)
        server.cloud.answer = server.cloud.silent
        load.more(20)
        server.cloud.answer = server.well
        load.more(20)
    verdict = server.judged(load)
    assert len(verdict.lost) >= 20
    assert (verdict.doubled, verdict.late, verdict.wrong) == ((), (), ())


def test_what_a_server_answers_after_the_deadline_is_late(server: Server) -> None:
    async def slowly(request: Any, context: Any) -> Any:
        await asyncio.sleep(TIMEOUT_S + GRACE_S + BUSY_S + 0.05)
        return await server.well(request, context)

    with loaded(server) as load:
        load.more(40)
        server.cloud.answer = slowly
        load.more(20)
    verdict = server.judged(load)
    # Each is late, or lost where the machine was so busy that the client did not wait any longer.
    assert len(verdict.late) + len(verdict.lost) >= 20
    assert verdict.late
    assert verdict.wrong == ()


def test_what_a_server_answers_wrongly_is_wrong(server: Server) -> None:
    async def off_by_one(request: Any, context: Any) -> Any:
        response = await server.well(request, context)
        label = int.from_bytes(response.raw_output_contents[0], "little")
        response.raw_output_contents[0] = ((label + 1) % 10).to_bytes(8, "little")
        return response

    with loaded(server) as load:
        load.more(20)
        server.cloud.answer = off_by_one
        load.more(20)
    assert len(server.judged(load).wrong) >= 20


def test_a_closed_loop_has_as_many_under_way_as_it_has_clients(server: Server) -> None:
    inside, most = [0], [0]

    async def counted(request: Any, context: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        await asyncio.sleep(0.01)
        inside[0] -= 1
        return await server.well(request, context)

    server.cloud.answer = counted
    with loaded(server, rate_per_s=None, clients=7) as load:
        load.more(100)
    assert most[0] == 7
    assert server.judged(load).faults == ()
