"""A wrong setting is named, and what is allowed is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgemux.edge.config import load
from edgemux.multiplexer.errors import ConfigError

WRONG = {
    "cloud.address": "nowhere",
    "listen.grpc_port": 70000,
    "limits.offloads_per_s": -1,
    "limits.compute_share": 0,
    "request.default_timeout_s": 0,
    "audit_share": 2,
}


def test_defaults_need_only_a_bundle() -> None:
    config = load(None, {"bundle": "b"})
    assert (config.listen.grpc_port, config.listen.http_port, config.listen.metrics_port) == (9001, 9000, 9002)
    assert config.listen.host == "127.0.0.1"


@pytest.mark.parametrize(("key", "value"), WRONG.items())
def test_a_value_out_of_range_is_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key.rsplit(".", 1)[-1]):
        load(None, {"bundle": "b", key: value})


def test_an_unknown_key_is_refused_and_named(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('bundle = "b"\n[limits]\noffloads = 3\n')
    with pytest.raises(ConfigError, match=r"limits\.offloads"):
        load(file, {})


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('bundle = "b"\n[listen]\ngrpc_port = 1\nhttp_port = 2\n')
    config = load(file, {"listen.grpc_port": 7, "cloud.address": None})
    assert (config.listen.grpc_port, config.listen.http_port) == (7, 2)


def test_a_bundle_is_needed() -> None:
    with pytest.raises(ConfigError, match="bundle"):
        load(None, {})
