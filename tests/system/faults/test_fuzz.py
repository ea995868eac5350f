"""Rows 34 to 41 and 52: a million mutated requests through validation, and a sample of them through a running agent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgemux.multiplexer.domain import Placement, Reason

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

PROGRAM = str(Path(__file__).with_name("fuzz.py"))
# More by hand: EDGEMUX_FUZZ=10000000 takes six minutes on two cores.
COUNT = int(os.environ.get("EDGEMUX_FUZZ", "1000000"))
PROCESSES = 2
SAMPLE = 20_000
WARM_UP = 5_000
MOST_GROWTH_BYTES = 20 * 2**20
# Of CPU time, which is what a request costs on a machine that does nothing else.
HANG_S = 1.0
PATIENCE_S = 580.0


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a fuzzing process printed."""
    with process:
        try:
            out, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out)
    print(found)
    return found


def test_a_million_mutated_requests_get_typed_errors_or_right_tensors_and_leave_no_memory_behind(
    tiny_bundle: Path,
) -> None:
    running = [started("wire", tiny_bundle, seed, COUNT // PROCESSES) for seed in range(1, PROCESSES + 1)]
    reports = [told(process) for process in running]
    for report in reports:
        assert report["wrong"] == []
        assert report["slowest_s"] < HANG_S
        assert report["grown_bytes"] <= MOST_GROWTH_BYTES
        # The mutations are worth something only if they reach what lies behind each check.
        assert set(report["codes"]) >= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
        assert 0.02 < report["codes"]["OK"] / report["requests"] < 0.5
    assert sum(report["requests"] for report in reports) == COUNT // PROCESSES * PROCESSES


def test_the_same_check_catches_a_kilobyte_that_is_kept_of_every_request(tiny_bundle: Path) -> None:
    report = told(started("wire", tiny_bundle, 3, 50_000, 1024))
    assert report["grown_bytes"] > MOST_GROWTH_BYTES


def of_closed_sets(series: str) -> bool:
    """Whether it counts answers by route, variant and reason, which are made on use, and says nothing of a client's."""
    name, _, labels = series.partition("{")
    values = dict(re.findall(r'(\w+)="([^"]*)"', labels))
    return (
        name.startswith("edgemux_requests_")
        and values.keys() == {"model", "route", "variant", "reason"}
        and values["model"] == "fashion-mnist"
        and values["route"] in set(Placement)
        and values["variant"] in ("level-1", "level-2", "level-3", "level-4", "cloud")
        and values["reason"] in set(Reason)
    )


def resident_bytes(server: Any) -> int:
    return int(Path(f"/proc/{server.popen.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_running_agent_takes_mutated_requests_without_a_crash_a_hang_or_a_new_metric_series(
    agent: Any, tiny_bundle: Path, ask_well: Callable[[], None]
) -> None:
    told(started("endpoint", tiny_bundle, 4, WARM_UP, agent.grpc))
    ask_well()
    before, series = resident_bytes(agent), set(agent.scrape())
    report = told(started("endpoint", tiny_bundle, 5, SAMPLE, agent.grpc))
    assert report["wrong"] == []
    assert report["hung"] == []
    assert report["codes"]["OK"] > SAMPLE * 0.02
    assert resident_bytes(agent) - before <= MOST_GROWTH_BYTES
    assert agent.popen.poll() is None
    assert {made for made in set(agent.scrape()) - series if not of_closed_sets(made)} == set()
    ask_well()


def test_a_running_cloud_takes_mutated_rows_of_packed_bits_without_a_crash_a_hang_or_a_failed_batch(
    serving: Any, split_bundle: Path
) -> None:
    """Its tail, which is asked all the time by others too: what is wrong with one request is not told to another."""
    with serving("cloud", "--bundle", str(split_bundle)) as cloud:
        told(started("tail", split_bundle, 6, WARM_UP, cloud.grpc))
        before = resident_bytes(cloud)
        report = told(started("tail", split_bundle, 7, SAMPLE // 2, cloud.grpc))
        assert report["wrong"] == []
        assert report["hung"] == []
        assert report["codes"]["OK"] > SAMPLE // 2 * 0.02
        assert resident_bytes(cloud) - before <= MOST_GROWTH_BYTES
        assert cloud.popen.poll() is None


@pytest.fixture
def ask_well(agent: Any, samples: dict[str, Any]) -> Callable[[], None]:
    """Good requests, answered wherever they are answered: every series that they can make is there afterwards."""

    def ask() -> None:
        with agent.client() as client:
            for image in samples["images"]:
                assert client.ask(image[None]).as_numpy("label") is not None

    return ask
