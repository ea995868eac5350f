"""The doctor's looks at this machine, at bundles and at clouds: real files, ports and servers, and a fake /sys."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemux.cli.main import run
from edgemux.edge import ApplicationSettings, EdgeConfig
from edgemux.edge.config import CloudSettings, LogSettings
from edgemux.edge.doctor import probes, timing
from edgemux.edge.doctor.access import Port
from edgemux.edge.doctor.examination import examine
from edgemux.edge.sensors import cpu_limit, memory_limit
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.findings import Finding, Grade, can_serve
from edgemux.wire.process import Listen
from edgemux.wire.tracing import TracingSettings
from tests.authority import Authority
from tests.simulated_cloud import SimulatedCloud

FREE = Listen(grpc_port=0, http_port=0, metrics_port=0)


# --- looks that end


def test_a_look_that_hangs_is_left_behind() -> None:
    forever = threading.Event()
    with pytest.raises(TimeoutError):
        probes.within(0.05, forever.wait)
    forever.set()


def test_a_look_gives_what_it_found_and_raises_what_it_raised() -> None:
    assert probes.within(60.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        probes.within(60.0, lambda: 1 // 0)


# --- sensors, memory, firmware, disks


class Says:
    def __init__(self, said: Any) -> None:
        self.said = said

    def read(self) -> dict[str, float]:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said  # type: ignore[no-any-return]


def made(name: str) -> Says:
    if name == "unknown":
        raise ConfigError("no plug-in 'unknown'")
    said: dict[str, Any] = {
        "fine": {"temperature_c": 40.0},
        "nonsense": {"temperature_c": 4000.0},
        "broken": OSError("no such device"),
    }
    return Says(said[name])


def test_each_sensor_is_read_and_what_is_wrong_with_one_does_not_hide_the_others() -> None:
    seen = {s.name: s for s in probes.look_at_sensors(["unknown", "fine", "nonsense", "broken"], made, pause_s=0.0)}
    assert seen["unknown"].unknown
    assert seen["fine"].readings == {"temperature_c": 40.0}
    assert seen["nonsense"].wrong == ("temperature_c",)
    assert seen["broken"].trouble == "cannot be read (OSError)"


def test_a_sensor_that_hangs_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()

    class Hangs:
        def read(self) -> dict[str, float]:
            forever.wait()
            return {}

    monkeypatch.setattr(probes, "SENSOR_TIMEOUT_S", 0.05)
    (seen,) = probes.look_at_sensors(["mine"], lambda name: Hangs(), pause_s=0.0)
    assert "does not answer" in seen.trouble
    forever.set()


def test_limits_of_the_control_group_are_found_in_either_version(tmp_path: Path) -> None:
    proc, system = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/edge.slice/agent.service\n")
    group = system / "fs/cgroup/edge.slice"
    (group / "agent.service").mkdir(parents=True)
    assert (cpu_limit(proc, system), memory_limit(proc, system)) == (None, None)
    (group / "cpu.max").write_text("50000 100000\n")
    (group / "memory.max").write_text("200000000\n")
    (group / "agent.service/memory.max").write_text("max\n")
    assert (cpu_limit(proc, system), memory_limit(proc, system)) == (0.5, 2e8)
    (proc / "self/cgroup").write_text("3:memory:/old\n")
    (system / "fs/cgroup/memory/old").mkdir(parents=True)
    (system / "fs/cgroup/memory/old/memory.limit_in_bytes").write_text("150000000\n")
    assert memory_limit(proc, system) == 1.5e8
    assert probes.look_at_memory(0.0, False, proc, system).limit == 1.5e8


def test_the_firmware_s_flags_are_read_from_the_kernel_else_from_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probes.look_at_firmware(tmp_path) is None
    command = tmp_path / "vcgencmd"
    command.write_text("#!/bin/sh\necho throttled=0x50005\n")
    command.chmod(0o755)
    assert probes.look_at_firmware(tmp_path) == 0x50005
    command.write_text("#!/bin/sh\necho VCHI initialization failed\n")
    assert probes.look_at_firmware(tmp_path) is None
    flags = tmp_path / "devices/platform/soc/soc:firmware/get_throttled"
    flags.parent.mkdir(parents=True)
    flags.write_text("40004\n")
    assert probes.look_at_firmware(tmp_path) == 0x40004


def test_a_folder_that_is_to_be_made_is_looked_at_where_it_would_be(tmp_path: Path) -> None:
    seen = probes.look_at_disk("state_dir", tmp_path / "not" / "yet")
    assert seen.writable
    assert seen.free is not None
    (tmp_path / "file").write_text("")
    assert not probes.look_at_disk("state_dir", tmp_path / "file" / "below").writable


# --- ports


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_port_is_free_or_taken(taken: socket.socket) -> None:
    number = taken.getsockname()[1]
    listen = Listen(grpc_port=number, http_port=0, metrics_port=0)
    assert [seen.state for seen in probes.look_at_ports(listen)] == [Port.TAKEN, Port.FREE, Port.FREE]
    taken.close()
    assert probes.look_at_ports(listen)[0].state is Port.FREE


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    listen = Listen(host="192.0.2.1", grpc_port=40001, http_port=0, metrics_port=0)
    assert probes.look_at_ports(listen)[0].state is Port.NO_ADDRESS


def test_what_is_at_the_http_port_and_is_no_agent_is_not_taken_for_one(
    taken: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "PORT_TIMEOUT_S", 0.1)
    listen = Listen(grpc_port=0, http_port=taken.getsockname()[1], metrics_port=0)
    assert probes.look_at_ports(listen)[1].state is Port.TAKEN


# --- bundles and their levels


def test_a_whole_bundle_is_timed_level_by_level(tiny_bundle: Path) -> None:
    seen, loaded, instead = timing.look_at_bundle("bundle", ApplicationSettings(tiny_bundle), False)
    assert (seen.trouble, seen.levels, instead) == ("", 4, None)
    assert loaded is not None
    timings = timing.time_levels(loaded, runs=7)
    assert [(each.level, each.runs) for each in timings] == [(1, 7), (2, 7), (3, 7), (4, 7)]
    assert all(0 < each.median_s <= each.worst_s for each in timings)


def test_timing_ends_when_it_has_taken_long_enough(tiny_bundle: Path) -> None:
    _, loaded, _ = timing.look_at_bundle("bundle", ApplicationSettings(tiny_bundle), False)
    assert loaded is not None
    clock = iter(range(10**6)).__next__
    timings = timing.time_levels(loaded, clock=lambda: float(clock()), cpu_clock=lambda: 0.0)
    assert {each.runs for each in timings} == {timing.LEAST_RUNS}
    assert {each.median_s for each in timings} == {1.0}


def damaged(bundle: Path, folder: Path, file: str) -> Path:
    shutil.copytree(bundle, folder)
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    return folder


def test_a_damaged_bundle_says_what_is_served_instead(tiny_bundle: Path, tmp_path: Path) -> None:
    bad = damaged(tiny_bundle, tmp_path / "bad", "level-2.onnx")
    seen, loaded, instead = timing.look_at_bundle("bundle", ApplicationSettings(bad), False)
    assert (loaded, instead) == (None, None)
    assert "level-2.onnx" in seen.trouble
    _, _, instead = timing.look_at_bundle("bundle", ApplicationSettings(bad, previous_bundle=tiny_bundle), False)
    assert instead == timing.INSTEAD[timing.Fallback.PREVIOUS]
    _, _, instead = timing.look_at_bundle("bundle", ApplicationSettings(bad), True)
    assert instead == timing.INSTEAD[timing.Fallback.CLOUD_ONLY]


def test_a_damaged_file_of_the_cloud_s_is_told_and_in_nobody_s_way(tiny_bundle: Path, tmp_path: Path) -> None:
    bad = damaged(tiny_bundle, tmp_path / "bad", "cloud.onnx")
    seen, loaded, _ = timing.look_at_bundle("bundle", ApplicationSettings(bad), False)
    assert (seen.trouble, loaded is not None) == ("", True)
    assert "cloud.onnx" in seen.others


# --- files, and the whole


def test_own_files_are_read_as_a_server_reads_them(authority: Authority, tmp_path: Path) -> None:
    from edgemux.wire.security import ServerTls

    pair = authority.issue("doctor-own")
    pair.key.chmod(0o644)
    token = tmp_path / "tokens"
    token.write_text("short")
    listen = Listen(grpc_port=0, http_port=0, metrics_port=0, tls=ServerTls(cert=pair.cert, key=pair.key))
    seen = probes.look_at_own_files(listen)
    assert (seen.tls, seen.token, seen.error, seen.open_keys) == (True, False, "", ("listen.tls.key",))
    assert seen.until is not None
    unusable = Listen(grpc_port=0, http_port=0, metrics_port=0, token_file=token)
    assert probes.look_at_own_files(unusable).error.startswith("listen.token_file: ")
    exposed = Listen(host="0.0.0.0", grpc_port=0, http_port=0, metrics_port=0)
    assert "listen.host" in probes.look_at_own_files(exposed).error


async def test_a_device_with_its_cloud_is_examined_whole(
    cloud: SimulatedCloud, tiny_bundle: Path, tmp_path: Path
) -> None:
    cloud.ready = True
    config = EdgeConfig(
        bundle=tiny_bundle,
        listen=FREE,
        cloud=CloudSettings(address=cloud.address),
        state_dir=tmp_path / "state",
        log=LogSettings(requests=tmp_path / "requests.jsonl"),
    )
    found = await asyncio.to_thread(lambda: list(examine(config)))
    assert can_serve(found)
    assert [f for f in found if f.grade is Grade.PROBLEM and f.part != "memory"] == []
    parts = list(dict.fromkeys(finding.part for finding in found))
    for part in (
        "memory",
        "sensors",
        "disk",
        "security",
        "ports",
        "policy",
        "onnxruntime",
        "bundle",
        "levels",
        "cloud",
    ):
        assert part in parts
    assert not (tmp_path / "state").exists(), "a doctor changes nothing"


def test_a_policy_that_is_not_installed_stops_an_agent(tiny_bundle: Path) -> None:
    found = list(examine(EdgeConfig(bundle=tiny_bundle, listen=FREE, policy="wishful")))
    assert not can_serve(found)
    assert any(finding.part == "policy" and finding.stops for finding in found)


def test_a_bundle_that_is_not_there_is_a_wrong_path(tmp_path: Path) -> None:
    found = list(examine(EdgeConfig(bundle=tmp_path / "none", listen=FREE)))
    assert any(finding.part == "bundle" and finding.fix.startswith("correct the path") for finding in found)


def tracing_found(tiny_bundle: Path) -> list[Finding]:
    config = EdgeConfig(bundle=tiny_bundle, listen=FREE, tracing=TracingSettings(endpoint="http://127.0.0.1:1"))
    return [finding for finding in examine(config) if finding.part == "tracing"]


def test_traces_without_their_extra_stop_an_agent(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "edgemux.wire.otel", None)
    (without,) = tracing_found(tiny_bundle)
    assert without.stops
    assert without.says == "needs OpenTelemetry: pip install '.[otel]' in a checkout"


def test_traces_with_their_extra_do_not_stop_an_agent(tiny_bundle: Path) -> None:
    pytest.importorskip("edgemux.wire.otel")
    assert [finding.grade for finding in tracing_found(tiny_bundle)] == [Grade.OK]


# --- the command


def doctor(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgemux.cli.main", "doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def settings(tmp_path: Path, bundle: Path, more: str = "") -> str:
    path = tmp_path / "edge.toml"
    ports = "grpc_port = 0\nhttp_port = 0\nmetrics_port = 0"
    path.write_text(f'bundle = "{bundle}"\n{more}\n[listen]\n{ports}\n')
    return str(path)


def test_the_command_says_it_in_lines_and_exits_with_0_where_it_can_serve(tiny_bundle: Path, tmp_path: Path) -> None:
    done = doctor("--config", settings(tmp_path, tiny_bundle))
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "level 4" in done.stdout
    assert "It can serve" in done.stdout.splitlines()[-1]


def test_the_command_exits_with_1_where_something_is_in_the_way(tiny_bundle: Path, tmp_path: Path) -> None:
    bad = damaged(tiny_bundle, tmp_path / "bad", "level-1.onnx")
    done = doctor("--config", settings(tmp_path, bad), "--json")
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads(done.stdout)
    assert said["serves"] is False
    assert [f["part"] for f in said["findings"] if f["stops"]] == ["bundle"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--config", "/nowhere.toml"), "/nowhere.toml"),
        (("--cloud", "nonsense"), "HOST:PORT"),
        (("--wrong",), "--wrong"),
    ],
)
def test_the_command_exits_with_2_and_a_line_on_wrong_use(
    options: tuple[str, ...], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert word in said.err


def test_a_wrong_setting_is_told_with_its_key(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--config", settings(tmp_path, tiny_bundle, "treads = 2")]) == 2
    assert "treads: no such setting" in capsys.readouterr().err
