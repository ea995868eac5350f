"""The doctor's way to a cloud, step by step: real servers, and what is not there or not what it should be."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edgemux.edge import EdgeConfig
from edgemux.edge.config import CloudSettings
from edgemux.edge.doctor.cloud_probe import Target, look_at_cloud
from edgemux.edge.doctor.examination import examine
from edgemux.edge.doctor.link import LinkSeen
from edgemux.edge.peer import Peer
from edgemux.edge.split_planning import SplitSettings
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import Incompatible, Unauthenticated
from edgemux.multiplexer.findings import Grade
from edgemux.wire.codec import CHECKSUM
from edgemux.wire.security import ClientTls
from tests.authority import DAY, Authority
from tests.simulated_cloud import SimulatedCloud, listening


@pytest.fixture
def target_of(tiny_bundle: Path) -> Callable[..., Target]:
    """``target_of(address, ...)``: the tiny bundle's cloud model is asked for, with two inputs."""
    bundle = Bundle.open(tiny_bundle)

    def make(address: str, tls: ClientTls = ClientTls(), token: Path | None = None) -> Target:  # noqa: B008 - frozen
        peer = Peer.of(bundle.manifest, bundle.sha256("cloud.onnx"))
        return Target(address, tls, token, peer, {"image": np.zeros((2, 28, 28), np.uint8)})

    return make


async def looked(target: Target) -> LinkSeen:
    return await asyncio.to_thread(look_at_cloud, target, 20.0)


def with_digest(digest: str) -> Callable[[Any], None]:
    def bend(response: Any) -> None:
        response.parameters.pop(CHECKSUM, None)  # it is of the whole answer
        response.parameters["edgemux_model_digest"].string_param = digest

    return bend


@pytest.mark.parametrize("told", ["right", "other", "unknown"])
async def test_the_model_that_a_cloud_serves_is_told_apart(
    cloud: SimulatedCloud, target_of: Callable[..., Target], told: str
) -> None:
    target = target_of(cloud.address)
    assert target.peer is not None
    cloud.ready = True
    digest = {"right": str(target.peer.digest), "other": "0" * 64, "unknown": ""}[told]
    if digest:
        cloud.answer = cloud.bending(with_digest(digest))
    seen = await looked(target)
    assert (seen.error, seen.cause, seen.digest) == ("", None, told)
    assert seen.rtt_s is not None
    # A server of other make is not asked for several inputs at once.
    assert [call.rows for call in seen.calls] == ([1] if told == "unknown" else [1, 2])


async def test_a_cloud_without_the_model_and_one_that_wants_a_token_are_told_apart(
    cloud: SimulatedCloud, target_of: Callable[..., Target]
) -> None:
    seen = await looked(target_of(cloud.address))
    assert (seen.step, type(seen.cause)) == ("model", Incompatible)
    cloud.ready = True
    cloud.answer = cloud.refusing(grpc.StatusCode.UNAUTHENTICATED)
    assert type((await looked(target_of(cloud.address))).cause) is Unauthenticated


def test_a_cloud_that_is_not_there_ends_at_the_step_that_failed(target_of: Callable[..., Target]) -> None:
    assert look_at_cloud(target_of("cloud.invalid:8001")).step == "resolve"
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    assert look_at_cloud(target_of(f"127.0.0.1:{number}")).step == "connect"


def test_something_that_never_says_a_word_is_given_up(target_of: Callable[..., Target]) -> None:
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        seen = look_at_cloud(target_of(f"127.0.0.1:{silent.getsockname()[1]}"), timeout_s=0.3)
    assert (seen.step, seen.cause is None) == ("gRPC", False)
    assert time.monotonic() - began < 30.0


def served(authority: Authority, name: str, **issued: Any) -> grpc.ServerCredentials:
    pair = authority.issue(name, **issued)
    return grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.cert.read_bytes())])


@pytest.mark.parametrize(
    ("name", "issued", "word"),
    [
        ("doctor-good", {}, ""),
        ("doctor-expired", {"first": -9 * DAY, "last": -DAY}, "expired"),
        ("doctor-early", {"first": DAY}, "not yet valid"),
        ("doctor-elsewhere", {"names": "DNS:elsewhere"}, "mismatch"),
    ],
)
async def test_what_is_wrong_with_a_cloud_s_certificate_is_told(
    tiny_bundle: Path,
    authority: Authority,
    target_of: Callable[..., Target],
    name: str,
    issued: dict[str, Any],
    word: str,
) -> None:
    cloud = SimulatedCloud(Bundle.open(tiny_bundle))
    cloud.ready = True
    async with listening(cloud, served(authority, name, **issued)):
        seen = await looked(target_of(cloud.address, ClientTls(ca=authority.ca)))
    if word:
        assert word in seen.tls_error
        assert seen.calls == ()
    else:
        assert seen.tls_error == ""
        assert seen.peer_until is not None
        assert seen.calls


async def test_a_cloud_in_plaintext_and_one_of_another_authority_are_told_apart(
    cloud: SimulatedCloud, tiny_bundle: Path, authority: Authority, target_of: Callable[..., Target]
) -> None:
    seen = await looked(target_of(cloud.address, ClientTls(ca=authority.ca)))
    assert seen.tls_error != ""
    assert "certificate" not in seen.tls_error
    other = SimulatedCloud(Bundle.open(tiny_bundle))
    async with listening(other, served(authority, "doctor-stranger")):
        seen = await looked(target_of(other.address, ClientTls(enabled=True)))
    assert "certificate" in seen.tls_error


async def test_where_whole_inputs_must_not_leave_the_cloud_is_looked_at_without_one(
    cloud: SimulatedCloud, tiny_bundle: Path
) -> None:
    never = SplitSettings(never_send_raw=True)
    config = EdgeConfig(bundle=tiny_bundle, cloud=CloudSettings(address=cloud.address), split=never)
    found = await asyncio.to_thread(lambda: list(examine(config)))
    (alone,) = (finding for finding in found if finding.part == "splits")
    assert alone.grade is Grade.PROBLEM
    assert cloud.seen == 0
