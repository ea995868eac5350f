"""A wrong setting is named, and what is allowed is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgemux.edge.config import LimitSettings, load
from edgemux.multiplexer.errors import ConfigError

NAN, INF = math.nan, math.inf
WRONG = [
    ("cloud.address", "nowhere"),
    ("cloud.address", ":8001"),
    ("cloud.address", "cloud:"),
    ("cloud.address", "cloud:0"),
    ("cloud.address", "cloud:65536"),
    ("cloud.address", "cloud:-1"),
    ("cloud.address", "cloud:8\u00b2"),
    ("cloud.address", "cloud:800 1"),
    ("cloud.address", "cl oud:8001"),
    ("cloud.address", " cloud:8001"),
    ("cloud.address", "cloud\0:8001"),
    ("cloud.address", "cloud\n:8001"),
    ("cloud.address", "http://cloud:8001"),
    ("cloud.address", "::1:8001"),
    ("cloud.address", "[cloud]:8001"),
    ("cloud.address", "[::1 ]:8001"),
    ("cloud.address", "[]:8001"),
    ("cloud.model", ""),
    ("cloud.probe_interval_s", 0),
    ("cloud.probe_interval_s", NAN),
    ("cloud.probe_interval_s", INF),
    ("listen.grpc_port", 70000),
    ("listen.host", ""),
    ("listen.host", "a b"),
    ("listen.host", "a\0"),
    ("limits.offloads_per_s", -1),
    ("limits.offloads_per_s", NAN),
    ("limits.bytes_per_s", -1),
    ("limits.bytes_per_s", NAN),
    ("limits.burst_s", 0),
    ("limits.burst_s", NAN),
    ("limits.burst_s", INF),
    ("limits.spend", "all"),
    ("limits.compute_share", 0),
    ("limits.compute_share", 1.1),
    ("limits.compute_share", NAN),
    ("limits.memory_bytes", 0),
    ("limits.memory_bytes", NAN),
    ("request.default_timeout_s", 0),
    ("request.default_timeout_s", NAN),
    ("request.default_timeout_s", 60.1),
    ("request.default_timeout_s", INF),
    ("request.max_timeout_s", 0.5),
    ("request.max_timeout_s", NAN),
    ("request.max_timeout_s", INF),
    ("request.margin_s", -0.1),
    ("request.margin_s", 1.0),
    ("request.margin_s", NAN),
    ("request.max_batch", 0),
    ("energy.active_watts", -1),
    ("energy.active_watts", NAN),
    ("energy.active_watts", INF),
    ("energy.joules_per_byte", -1e-9),
    ("energy.joules_per_byte", NAN),
    ("energy.joules_per_byte", INF),
    ("drift.run_length", 0),
    ("drift.run_length", NAN),
    ("drift.run_length", INF),
    ("drift.every", 0),
    ("drift.reference_inputs", 10),
    ("drift.reference_inputs", 10**9),
    ("drift.audit_share_alarm", 2),
    ("drift.audit_share_alarm", NAN),
    ("sensor_interval_s", 0),
    ("sensor_interval_s", NAN),
    ("sensor_interval_s", INF),
    ("sensor_interval_s", 3601),
    ("audit_share", 2),
    ("audit_share", NAN),
]


def test_defaults_need_only_a_bundle() -> None:
    config = load(None, {"bundle": "b"})
    assert (config.listen.grpc_port, config.listen.http_port, config.listen.metrics_port) == (9001, 9000, 9002)
    assert config.listen.host == "127.0.0.1"


@pytest.mark.parametrize(("key", "value"), WRONG)
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


@pytest.mark.parametrize(
    "address",
    ["cloud:8001", "127.0.0.1:1", "my_cloud-1.example.org:65535", "[::1]:8001", "[fe80::1%eth0]:8001"],
)
def test_names_and_addresses_of_both_kinds_are_accepted(address: str) -> None:
    assert load(None, {"bundle": "b", "cloud.address": address}).cloud.address == address


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "::", "::1"])
def test_an_agent_can_listen_on_names_and_addresses_of_both_kinds(host: str) -> None:
    assert load(None, {"bundle": "b", "listen.host": host}).listen.host == host


def test_numbers_that_are_none_are_refused_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('bundle = "b"\n[energy]\nactive_watts = nan\n')
    with pytest.raises(ConfigError, match=r"edge\.toml: energy: active_watts must be finite"):
        load(file, {})


def test_a_burst_holds_at_least_one_offload_however_low_the_rate() -> None:
    limits = LimitSettings(offloads_per_s=0.01, bytes_per_s=2.0, burst_s=10.0)
    assert limits.bucket(limits.offloads_per_s, least=1.0).available(0.0) == 1.0
    assert limits.bucket(limits.bytes_per_s, least=984.0).available(0.0) == 984.0


def test_a_burst_is_as_long_as_is_set_when_that_is_more() -> None:
    limits = LimitSettings(offloads_per_s=2.0, burst_s=10.0)
    assert limits.bucket(limits.offloads_per_s, least=1.0).available(0.0) == 20.0


def test_a_rate_of_nothing_allows_nothing_and_an_infinite_one_everything() -> None:
    limits = LimitSettings(offloads_per_s=0.0)
    assert limits.bucket(limits.offloads_per_s, least=1.0).available(1e9) == 0.0
    assert limits.bucket(limits.bytes_per_s, least=1.0).available(0.0) == math.inf
