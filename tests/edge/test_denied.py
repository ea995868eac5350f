"""A cloud that does not let the agent ask: the device answers, the cloud is left alone, and it is said why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.edge.causes import cause_of
from edgemux.multiplexer.domain import Placement, Reason, Route
from edgemux.multiplexer.errors import Forbidden, Unauthenticated, Unreachable, Untrusted
from edgemux.wire.status import from_peer

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]
PATIENT_S = 20.0
CLOUD = Route("cloud", Placement.CLOUD)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
async def test_a_cloud_that_denies_is_asked_twice_and_then_left_alone_until_it_says_that_it_is_ready(
    cloud: Any, agent_of: Any, pictures: Pictures, code: grpc.StatusCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.answer = cloud.refusing(code)
    images, _ = pictures(60, 4)
    async with agent_of(cloud.address) as agent:
        reasons = set()
        for i in range(len(images)):
            (answer,) = await agent.infer({"image": images[i : i + 1]}, PATIENT_S)
            assert answer.prediction.route.placement is Placement.EDGE
            reasons.add(answer.reason)
        assert cloud.seen == 2
        assert reasons == {Reason.CONFIDENT, Reason.CLOUD_DENIED}
        cloud.answer, cloud.ready = cloud.well, True
        monkeypatch.setattr("edgemux.edge.agreement.RECHECK_S", 0.0)
        agent.cloud.agreement.recheck_s = 0.0
        while agent.cloud.incompatible:  # the link is looked after meanwhile
            await agent.cloud.ping(PATIENT_S)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Untrusted("x"), Reason.CLOUD_TLS),
        (Unreachable("x"), Reason.CLOUD_UNREACHABLE),
        (Unauthenticated("x"), Reason.CLOUD_DENIED),
        (Forbidden("x"), Reason.CLOUD_DENIED),
    ],
)
def test_each_cause_has_a_reason_of_its_own(error: Any, reason: Reason) -> None:
    assert cause_of(CLOUD, error) is reason


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ("... Tls handshake failed: CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", Untrusted),
        ("... Ssl handshake failed: SSL_ERROR_SSL: WRONG_VERSION_NUMBER", Untrusted),
        ("... Custom verification check failed with error: Hostname Verification Check failed.", Untrusted),
        ("failed to connect to all addresses; last error: Connection refused", Unreachable),
        ("Socket closed", Unreachable),
    ],
)
def test_what_the_library_says_of_a_handshake_is_no_mere_absence(details: str, kind: type) -> None:
    assert type(from_peer(grpc.StatusCode.UNAVAILABLE, details)) is kind


async def test_an_agent_whose_own_certificate_has_expired_says_so(
    agent_of: Any, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = pictures(20, 4)
    async with agent_of("127.0.0.1:1") as agent:
        monkeypatch.setattr(agent.cloud._secured, "trouble", lambda: "expired on some day")
        reasons = set()
        for i in range(len(images)):
            (answer,) = await agent.infer({"image": images[i : i + 1]}, PATIENT_S)
            reasons.add(answer.reason)
        assert Reason.CLOUD_TLS in reasons
        assert Reason.CLOUD_UNREACHABLE not in reasons
        assert agent.cloud.security()["trouble"] == "the own certificate expired on some day"
