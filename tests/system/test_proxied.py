"""A cloud server in front of another: what is here is served whatever becomes of what is there."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from tests.authority import OPENSSL, Authority

PATIENCE_S = 60.0
FAR, NEAR = "far", "near"


@pytest.fixture
def port() -> int:
    """One that is free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def front(port: int, tiny_bundle: Path, tmp_path: Path, serving: Callable[..., Any]) -> Iterator[Any]:
    """A server with a model of its own and one of another server, which is away."""
    config = tmp_path / "cloud.toml"
    config.write_text(
        f'[[models]]\nname = "{NEAR}"\nbundle = "{tiny_bundle}"\n'
        f'[[models]]\nname = "{FAR}"\nmodel = "fashion-mnist"\naddress = "127.0.0.1:{port}"\n'
    )
    with serving("cloud", "--config", str(config)) as server:
        yield server


def _eventually(true: Callable[[], bool]) -> None:
    over_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < over_s, "it never became true"
        time.sleep(0.05)


def test_a_model_of_another_server_comes_and_goes_with_it_and_ours_is_served_throughout(
    front: Any, port: int, tiny_bundle: Path, serving: Callable[..., Any], samples: dict[str, NDArray[Any]]
) -> None:
    images = samples["images"][:3]
    status = health_pb2.HealthCheckResponse

    def refused(client: Any) -> None:
        with pytest.raises(triton.InferenceServerException) as refusal:
            client.ask(images, FAR)
        assert refusal.value.status() == "StatusCode.UNAVAILABLE"
        assert str(port) not in str(refusal.value)
        assert client.ask(images, NEAR).as_numpy("label").shape == (3,)

    with front.client() as client, grpc.insecure_channel(front.grpc) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=FAR), timeout=PATIENCE_S
        )
        _eventually(lambda: next(watch).status == status.NOT_SERVING)
        assert not client.is_model_ready(FAR)
        refused(client)
        for end in (signal.SIGTERM, signal.SIGKILL):
            with serving("cloud", "--bundle", str(tiny_bundle), "--grpc-port", str(port)) as there:
                _eventually(lambda: next(watch).status == status.SERVING)
                assert client.is_model_ready(FAR)
                near, far = client.ask(images, NEAR), client.ask(images, FAR)
                np.testing.assert_array_equal(near.as_numpy("probabilities"), far.as_numpy("probabilities"))
                assert far.get_response().model_name == FAR
                there.stop(end)
            _eventually(lambda: next(watch).status == status.NOT_SERVING)
            refused(client)
        states = {model.name: (model.state, bool(model.reason)) for model in client.get_model_repository_index().models}
        assert states == {NEAR: ("READY", False), FAR: ("UNAVAILABLE", True)}
    assert front.stop() == 0


@pytest.mark.skipif(OPENSSL is None, reason="no openssl here")
def test_another_server_is_spoken_to_with_tls_and_a_token_or_not_at_all(
    tiny_bundle: Path, tmp_path: Path, serving: Callable[..., Any], samples: dict[str, NDArray[Any]]
) -> None:
    authority, token = Authority(tmp_path), tmp_path / "token"
    own = authority.issue("own")
    token.write_text("correct-horse-battery-staple\n")
    known = f'[models.tls]\nca = "{authority.ca}"\n'
    ready = {}
    secured = ("--tls-cert", str(own.cert), "--tls-key", str(own.key), "--token-file", str(token))
    with serving("cloud", "--bundle", str(tiny_bundle), *secured) as there:
        model = f'[[models]]\nname = "{FAR}"\nmodel = "fashion-mnist"\naddress = "{there.grpc}"\n'
        for name, how in {"plain": "", "untold": known, "well": f'token_file = "{token}"\n{known}'}.items():
            config = tmp_path / f"{name}.toml"
            config.write_text(model + how)
            with serving("cloud", "--config", str(config)) as front, front.client() as client:
                ready[name] = client.is_model_ready(FAR)
                if ready[name]:
                    assert client.ask(samples["images"][:1], FAR).as_numpy("label").shape == (1,)
    assert ready == {"plain": False, "untold": False, "well": True}
