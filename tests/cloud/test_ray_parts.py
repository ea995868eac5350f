"""What stands between Ray Serve and our service, without Ray: contexts, methods, statuses, settings."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from edgemux.cloud import ray_engine
from edgemux.cloud.config import CloudConfig, load
from edgemux.cloud.ray_methods import TIME_LEFT, Dated, Methods, add_to_server
from edgemux.cloud.ray_replica import CallContext, Replica
from edgemux.cloud.ray_settings import RaySettings, environment, own_cluster
from edgemux.multiplexer.errors import ConfigError, Overloaded
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.security import Gate, TokenFile
from edgemux.wire.service import METHODS, STREAM

TOKEN = "a-token-of-more-than-16-characters"


class RayContext:
    """What Ray gives to a deployment's method."""

    def __init__(self, left_s: float | None = None) -> None:
        self.code: Any = None
        self.details = ""
        self.trailers: list[tuple[str, str]] = []
        self._metadata = [] if left_s is None else [(TIME_LEFT, repr(left_s))]

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None:
        self.trailers = metadata


async def replica_of(bundle: Path) -> Any:
    """A replica as Ray makes it: its ``__init__`` is awaited."""
    made: Any = Replica.__new__(Replica)
    await made.__init__(load(None, {"bundle": str(bundle)}))
    return made


def request(model: str = "fashion-mnist", side: int = 28) -> bytes:
    message = oip.ModelInferRequest(model_name=model, id="7")
    message.inputs.add(name="image", datatype="UINT8", shape=[1, 28, side])
    message.raw_input_contents.append(bytes(28 * side))
    return message.SerializeToString()


async def test_a_replica_answers_as_the_server_does(tiny_bundle: Path) -> None:
    replica = await replica_of(tiny_bundle)
    context = RayContext(left_s=30.0)
    reply = await replica.ModelInfer(request(), context)
    answer = oip.ModelInferResponse.FromString(reply.SerializeToString())
    assert (answer.id, answer.model_name, context.code) == ("7", "fashion-mnist", None)
    await replica.check_health()
    await replica._serving.closed()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (request(model="other"), grpc.StatusCode.NOT_FOUND),
        (request(side=27), grpc.StatusCode.INVALID_ARGUMENT),
        (b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_errors_are_statuses_and_nothing_is_raised(tiny_bundle: Path, content: bytes, code: Any) -> None:
    replica = await replica_of(tiny_bundle)
    context = RayContext()
    reply = await replica.ModelInfer(content, context)
    assert (reply.SerializeToString(), context.code) == (b"", code)
    assert context.details
    await replica._serving.closed()


async def test_a_refusal_says_in_the_trailers_when_to_come_back(tiny_bundle: Path) -> None:
    replica = await replica_of(tiny_bundle)

    async def full(*_: Any) -> Any:
        raise Overloaded("the queue is full", 0.25)

    replica._serving.servicer._infer = full
    context = RayContext()
    await replica.ModelInfer(request(), context)
    assert context.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert context.trailers == [("grpc-retry-pushback-ms", "250")]
    await replica._serving.closed()


async def test_a_stream_is_answered_in_order_each_with_its_own_error(tiny_bundle: Path) -> None:
    replica = await replica_of(tiny_bundle)

    async def requests() -> AsyncIterator[bytes]:
        for model in ("fashion-mnist", "other", "fashion-mnist"):
            yield request(model)

    replies = [reply async for reply in getattr(replica, STREAM)(requests(), RayContext())]
    answers = [oip.ModelStreamInferResponse.FromString(reply.SerializeToString()) for reply in replies]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    await replica._serving.closed()


async def test_what_is_not_served_is_unimplemented(tiny_bundle: Path) -> None:
    replica = await replica_of(tiny_bundle)
    context = RayContext()
    await replica.RepositoryModelLoad(b"", context)
    assert context.code is grpc.StatusCode.UNIMPLEMENTED
    assert all(callable(getattr(replica, method)) for method in METHODS)
    await replica._serving.closed()


def test_the_time_that_is_left_goes_on_running_in_the_replica() -> None:
    now_s = 100.0
    context = CallContext(RayContext(left_s=2.0), lambda: now_s)
    assert context.time_remaining() == 2.0
    now_s = 101.5
    assert context.time_remaining() == 0.5
    now_s = 200.0
    assert context.time_remaining() == 0.0
    assert CallContext(RayContext()).time_remaining() is None


def test_a_client_cannot_say_how_much_time_is_left() -> None:
    asked = SimpleNamespace(
        invocation_metadata=lambda: ((TIME_LEFT, "99"), ("a", "b")), time_remaining=lambda: 1.5, peer=lambda: "p"
    )
    assert Dated(asked).invocation_metadata() == (("a", "b"), (TIME_LEFT, "1.5"))
    assert Dated(asked).peer() == "p"
    asked.time_remaining = lambda: None
    assert Dated(asked).invocation_metadata() == (("a", "b"),)


async def test_without_a_token_no_method_is_reached(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n")

    async def reached(content: bytes, context: Any) -> bytes:
        return content

    methods = Methods({"/s/m": grpc.unary_unary_rpc_method_handler(reached)}, Gate(TokenFile(file, "tokens")))
    called = SimpleNamespace(method="/s/m", invocation_metadata=(("authorization", f"Bearer {TOKEN}"),))
    context = SimpleNamespace(invocation_metadata=tuple, time_remaining=lambda: None)
    assert await methods.service(called).unary_unary(b"x", context) == b"x"
    stranger = SimpleNamespace(method="/s/m", invocation_metadata=())
    told: list[Any] = []

    async def abort(code: Any, _: str) -> None:
        told.append(code)

    await methods.service(stranger).unary_unary(b"x", SimpleNamespace(abort=abort))
    assert told == [grpc.StatusCode.UNAUTHENTICATED]
    assert methods.service(SimpleNamespace(method="/other/m", invocation_metadata=())) is None


def test_every_method_of_the_protocol_is_registered_with_ray() -> None:
    added: list[Any] = []
    add_to_server(None, SimpleNamespace(add_generic_rpc_handlers=added.extend))
    paths = {path for handler in added for path in handler._method_handlers}
    assert {f"/inference.GRPCInferenceService/{method}" for method in (*METHODS, STREAM)} <= paths
    assert "/grpc.health.v1.Health/Check" in paths


def listening(**how: Any) -> CloudConfig:
    return load(None, {"bundle": "b", **{f"listen.{key}": value for key, value in how.items()}})


def test_ray_is_refused_where_others_could_reach_it_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    with pytest.raises(ConfigError, match="--insecure"):
        ray_engine.check_reach(listening())
    ray_engine.check_reach(listening(insecure=True))
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo")])
    ray_engine.check_reach(listening())


def test_tls_is_refused_since_ray_would_not_speak_it() -> None:
    with pytest.raises(ConfigError, match="speak no TLS"):
        ray_engine.check_reach(load(None, {"bundle": "b", "listen.tls.cert": "c", "listen.tls.key": "k"}))


def test_replicas_are_fixed_unless_a_maximum_is_given() -> None:
    assert RaySettings(replicas=3).scaling() == {"num_replicas": 3}
    scaling: Any = RaySettings(min_replicas=2, max_replicas=5).scaling()["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (2, 5, 8.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("replicas", 0), ("max_replicas", 0), ("target_ongoing", 0.0), ("downscale_s", -1.0), ("cpus_per_replica", 0.0)],
)
def test_impossible_settings_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        load(None, {"bundle": "b", f"ray.{key}": value})


def test_ray_s_environment_turns_its_reports_off_and_its_fast_modes_on(tmp_path: Path) -> None:
    made = environment(RaySettings(), tmp_path, 1, 2, max_message_bytes=2**20, drain_s=10.0)
    assert made["RAY_USAGE_STATS_ENABLED"] == "0"
    assert made["RAY_SERVE_ENABLE_HA_PROXY"] == made["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert made["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] == str(2**20)
    plain = environment(RaySettings(haproxy=False), tmp_path, 1, 2, max_message_bytes=2**20, drain_s=10.0)
    assert plain["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert own_cluster()["RAY_AUTH_TOKEN"] != own_cluster()["RAY_AUTH_TOKEN"]
