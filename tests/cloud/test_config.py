"""The cloud's configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemux.cloud.config import load
from edgemux.multiplexer.errors import ConfigError


def test_the_defaults_are_tritons_ports_on_the_loopback() -> None:
    config = load(None, {"bundle": "some"})
    assert config.bundle == Path("some")
    assert (config.listen.http_port, config.listen.grpc_port, config.listen.metrics_port) == (8000, 8001, 8002)
    assert config.listen.host == "127.0.0.1"


def test_a_file_and_the_command_line_together(tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    path.write_text(
        'bundle = "b"\nthreads = 2\n[batching]\nmax_batch = 16\nlinger_s = 0.002\n[listen]\ngrpc_port = 7\n'
    )
    config = load(path, {"listen.grpc_port": 0, "admission.max_queue": 64})
    assert (config.threads, config.batching.max_batch, config.batching.linger_s) == (2, 16, 0.002)
    assert (config.listen.grpc_port, config.listen.http_port, config.admission.max_queue) == (0, 8000, 64)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({}, "bundle: missing"),
        ({"bundle": "b", "models": [{"onnx": "m"}]}, "exclude each other"),
        ({"models": [{"name": "m"}]}, "exactly one of bundle, onnx, torch, address"),
        ({"models": [{"onnx": "m", "torch": "m"}]}, "exactly one of bundle, onnx, torch, address"),
        ({"models": [{"onnx": "m", "name": "a b"}]}, "name must be"),
        ({"models": [{"onnx": "m", "version": "0"}]}, "version must be"),
        ({"models": [{"onnx": "m", "max_batch": 0}]}, "max_batch must be"),
        ({"models": [{"onnx": "m", "max_batch": 300}]}, "at least every model's max_batch"),
        ({"models": [{"address": "host:8001"}]}, "needs a name"),
        ({"models": [{"address": "host", "name": "m"}]}, "HOST:PORT"),
        ({"bundle": "b", "batching.max_batch": 0}, "batching: max_batch"),
        ({"bundle": "b", "batching.linger_s": -1.0}, "batching: linger_s"),
        ({"bundle": "b", "admission.max_queue": 1}, "max_queue must be at least batching.max_batch"),
        ({"bundle": "b", "listen.grpc_port": 70000}, "listen: grpc_port"),
        ({"bundle": "b", "threads": 0}, "threads must be"),
        ({"bundle": "b", "threads": "two"}, "threads: expected `int`"),
        ({"bundle": "b", "thread": 2}, "thread: no such setting"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(overrides: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(None, overrides)
    assert named in str(refusal.value)


def test_models_are_a_list_each_with_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    path.write_text(
        '[[models]]\nonnx = "a.onnx"\nmax_batch = 8\n[[models]]\nname = "far"\naddress = "10.0.0.1:8001"\n'
        '[[models]]\nname = "many"\nonnx = "folder"\nversions = [1, 3]\n'
    )
    config = load(path, {})
    assert [model.kind for model in config.every_model()] == ["onnx", "address", "onnx"]
    assert [config.batching_of(model).max_batch for model in config.models] == [8, 32, 32]
    assert config.models[2].versions == (1, 3)
