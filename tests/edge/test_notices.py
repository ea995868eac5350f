"""What an operator hears of an agent: that the cloud is gone and back, and each once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc
import msgspec
import pytest

from edgemux.edge.breaker import BreakerSettings
from edgemux.edge.config import LimitSettings
from edgemux.edge.events import (
    BreakerClosed,
    BreakerOpened,
    BudgetExhausted,
    BudgetRefilled,
    CertificateWithdrawn,
    CloudFound,
    CloudLost,
    CloudServes,
    DriftAlarmed,
    LevelChanged,
    ReCertified,
)
from edgemux.edge.notices import REFILLED_S, Notices
from edgemux.edge.vigil import Standing, Withdrawal
from edgemux.edge.watch import attend
from edgemux.wire.events import Event, InternalError, Name, OverloadBegan, OverloadEnded, told

Pictures = Callable[..., Any]
MODEL = Name("fashion-mnist")


def said(notices: Notices, now_s: float) -> list[Event]:
    return list(notices.look(now_s))


async def test_nothing_is_said_of_an_agent_that_is_well(cloud: Any, agent_of: Any, pictures: Pictures) -> None:
    async with agent_of(cloud.address) as agent:
        notices = Notices([agent])
        await agent.infer({"image": pictures(20, 1)[0]})
        assert said(notices, time.monotonic()) == []


async def test_a_cloud_that_goes_and_comes_back_is_said_once_each(
    cloud: Any, agent_of: Any, pictures: Pictures
) -> None:
    cloud.answer = cloud.refusing(grpc.StatusCode.UNAVAILABLE, "secret text")
    async with agent_of(cloud.address, breaker=BreakerSettings(failures=2, max_open_s=1e3, open_s=1e3)) as agent:
        notices = Notices([agent])
        for image in pictures(60, 2)[0]:
            await agent.infer({"image": image[None]})
        now_s = time.monotonic()
        assert said(notices, now_s) == [
            BreakerOpened(peer=0, failures=2, cause=Name("unreachable")),
            CloudLost(reason=Name("breaker")),
        ]
        assert said(notices, now_s + 0.1) == []
        breaker = agent.cloud.breaker
        call = breaker.begin(now_s + 2e3)
        breaker.succeeded(call, 0.1, now_s + 2e3)
        closed, found = said(notices, now_s + 2e3)
        assert isinstance(closed, BreakerClosed)
        assert isinstance(found, CloudFound)
        assert closed.seconds == found.seconds == pytest.approx(2e3)


async def test_a_defect_in_what_is_said_does_not_end_the_watch(agent_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "edgemux.edge")

    class Idle:
        def tick(self, now_s: float) -> None:
            pass

    async with agent_of(None) as agent:
        notices = Notices([agent])
        levels, notices._levels = notices._levels, {}
        attend([agent], Idle(), notices, 1.0)  # type: ignore[arg-type]
        assert [event.error for event in map(told, caplog.records) if isinstance(event, InternalError)] == ["KeyError"]
        notices._levels = levels | {MODEL: 7}
        attend([agent], Idle(), notices, 2.0)  # type: ignore[arg-type]
        assert "level changed" in caplog.records[-1].getMessage()


async def test_a_cloud_that_serves_after_all_is_said(cloud: Any, agent_of: Any) -> None:
    async with agent_of(cloud.address) as agent:
        notices = Notices([agent])
        agent.cloud.agreement.against = 2
        assert said(notices, 1.0) == [CloudLost(reason=Name("cloud_incompatible"))]
        agent.cloud.agreement.against = 0
        assert said(notices, 3.0) == [CloudFound(seconds=2.0), CloudServes(peer=0, model=MODEL)]


async def test_a_certificate_s_end_and_its_successor_are_said_and_levels_too(agent_of: Any) -> None:
    async with agent_of(None) as agent:
        notices = Notices([agent])
        agent.vigil.withdraw(Withdrawal.AUDITS)
        certified = agent.manifest.certificate is not None
        kind = CertificateWithdrawn if certified else DriftAlarmed
        assert said(notices, 1.0) == [kind(model=MODEL, reason=Name("audits"))]
        agent.vigil.state = msgspec.structs.replace(agent.vigil.state, standing=Standing.RE_CERTIFIED)
        assert said(notices, 2.0) == [ReCertified(model=MODEL, levels=0)]
        before, agent.planned, agent.share = agent.planned, 1, 0.25
        assert said(notices, 3.0) == [LevelChanged(model=MODEL, to=1, before=before, share=0.25)]
        assert said(notices, 4.0) == []


async def test_a_spent_budget_and_an_overload_are_said_when_they_begin_and_when_they_are_over(
    cloud: Any, agent_of: Any
) -> None:
    async with agent_of(cloud.address, limits=LimitSettings(offloads_per_s=1.0, burst_s=2.0)) as agent:
        notices = Notices([agent])
        now_s = time.monotonic()
        while agent.purse.pay({"offloads": 1.0}, now_s):
            pass
        agent.metrics.refused("overloaded")
        agent.metrics.refused("input")
        assert said(notices, now_s) == [BudgetExhausted(budget=Name("offloads")), OverloadBegan(refused=1)]
        assert said(notices, now_s + 1.0) == []
        over = said(notices, now_s + REFILLED_S + 1.0)
        assert [type(event) for event in over] == [BudgetRefilled, OverloadEnded]
