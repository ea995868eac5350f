"""Row 86: a hundred thousand requests with faults mixed in: none lost, doubled, late or wrong, and nothing held on to.

EDGEMUX_SOAK=10000000 soaks for hours.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.faults.flatness import Sample, Watch, growth, held
from tests.system.faults.ledgers import Entry, percentile
from tests.system.faults.load import Load
from tests.system.faults.stage import Pictures, Stage, found_by, stage
from tests.system.faults.table import Found

COUNT = int(os.environ.get("EDGEMUX_SOAK", "100000"))
CONNECTIONS, CLIENTS = 4, 4
# One request in eight is wanted in the cloud, so that there is something for the faults to befall.
ONE_IN = 8
FAULT_S, REST_S = 0.6, 1.2
# A cloud that starts takes a core from everybody for a second or two.
KILLS = 5
TIMEOUT_S = 1.0
CONTROL = 12_000
LEAKED_BYTES = 2048

pytestmark = pytest.mark.timeout(600 + COUNT // 100)


def in_threads(seen: Pictures) -> list[int]:
    """The pictures in the order in which they are asked for."""
    doubtful, sure = range(seen.doubtful), range(seen.doubtful, len(seen.images))
    clear = itertools.cycle(sure)
    return [picture for number in doubtful for picture in (number, *itertools.islice(clear, ONE_IN - 1))]


class Weather:
    """One fault after the other between an agent and its cloud, and now and then the cloud is killed."""

    def __init__(self, scene: Stage, restart: Callable[[], str]) -> None:
        self.befallen = 0
        self.kills = 0
        self._scene = scene
        self._restart = restart
        proxy, chance = scene.proxy, random.Random(86)
        self._faults: list[Callable[[], Any]] = [
            proxy.stall,
            lambda: proxy.stall("mute"),
            lambda: proxy.stall("deaf"),
            proxy.reset,
            proxy.refuse,
            lambda: proxy.link(round_trip_s=0.3),
            lambda: proxy.link(bits_per_s=16_000.0),
            lambda: proxy.trouble(corrupt=0.1),
            lambda: proxy.trouble(truncate_after=20),
            lambda: proxy.greet(b""),
            lambda: proxy.greet(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ]
        chance.shuffle(self._faults)

    def step(self) -> None:
        """A fault, its end, and a while of quiet."""
        self._faults[self.befallen % len(self._faults)]()
        self.befallen += 1
        time.sleep(FAULT_S)
        self._scene.proxy.heal()
        self._scene.proxy.reset()
        time.sleep(REST_S)

    def kill(self) -> None:
        """The cloud dies and another is started."""
        self._scene.proxy.lead_to(self._restart())
        self.kills += 1


@pytest.fixture
def clouds(serving: Any, tiny_bundle: Path) -> Iterator[Callable[[], str]]:
    """Called: kills the cloud that it started before and starts another; returns the new address."""
    with contextlib.ExitStack() as running:
        current: list[Any] = []

        def restart() -> str:
            if current:
                current.pop().popen.kill()
            current.append(running.enter_context(serving("cloud", "--bundle", str(tiny_bundle))))
            return str(current[0].grpc)

        yield restart


def outcomes(loads: list[Load]) -> int:
    return sum(len(load.entries) for load in loads)


def test_a_hundred_thousand_requests_under_faults_lose_nothing_and_leave_nothing_behind(
    serving: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    seen: Pictures,
    clouds: Callable[[], str],
    report: Callable[[Found], None],
) -> None:
    with stage(serving, tmp_path, tiny_bundle, seen) as scene, contextlib.ExitStack() as stack:
        pid = scene.agent.server.popen.pid
        scene.proxy.lead_to(clouds())
        scene.proxy.reset()
        weather = Weather(scene, clouds)
        watch = stack.enter_context(Watch(pid, interval_s=0.25))
        began_s = time.monotonic()
        order = in_threads(seen)
        loads = [
            scene.load(rate_per_s=None, clients=CLIENTS, timeout_s=TIMEOUT_S, order=order[number:] + order[:number])
            for number in range(CONNECTIONS)
        ]
        with contextlib.ExitStack() as under_way:
            for load in loads:
                under_way.enter_context(load)
            while outcomes(loads) < COUNT:
                weather.step()
                if outcomes(loads) > (weather.kills + 1) * COUNT // (KILLS + 1):
                    weather.kill()
        took_s = time.monotonic() - began_s
        entries: list[Entry] = [entry for load in loads for entry in load.entries]
        first = loads[0]
        first.entries[:] = entries
        verdict = scene.judge(first)
        samples = watch.samples
    note = (
        f"{took_s:.0f} s, {weather.befallen} faults, {weather.kills} kills, "
        f"{growth(samples, lambda sample: sample.resident_bytes) / 2**20:+.1f} MB"
    )
    report(found_by(verdict, 86, "soak", first, note=note))
    print(note, percentile([entry.elapsed_s for entry in entries], 0.99), verdict.faults[:10], verdict.refused[:10])
    assert len(entries) >= COUNT
    assert weather.kills >= min(KILLS, 1)
    assert any(entry.route == "cloud" for entry in entries)
    assert verdict.faults == ()
    # A refusal is no fault, but the device can answer all of this; a moment without a CPU may cost a few.
    assert len(verdict.refused) <= len(entries) // 1000
    assert held(samples) == []


LEAKING = f"""
import sys
from edgemux.edge import server, service
from edgemux.edge.config import load

kept = []

class Leaking(service.EdgeService):
    async def ModelInfer(self, request, context):
        kept.append(bytearray({LEAKED_BYTES}))
        return await super().ModelInfer(request, context)

server.EdgeService = Leaking
ports = {{f"listen.{{name}}_port": 0 for name in ("grpc", "http", "metrics")}}
server.serve(load(None, {{"bundle": sys.argv[1], "audit_share": 0.0, **ports}}))
"""


def test_the_same_check_catches_an_agent_that_keeps_two_kilobytes_of_every_request(
    shared_stage: Stage, serving_by: Any, tiny_bundle: Path, seen: Pictures
) -> None:
    with serving_by(LEAKING, str(tiny_bundle)) as server, Watch(server.popen.pid, interval_s=0.1) as watch:
        load = Load(shared_stage.backstage, server.grpc, seen.images, rate_per_s=None, clients=8, timeout_s=10.0)
        with load:
            load.wait(lambda: len(load.entries) >= CONTROL, within_s=120.0)
    assert len(held(watch.samples)) == 1
    assert held(watch.samples)[0].endswith("MB of memory")


def test_files_and_threads_that_pile_up_are_held_against_it() -> None:
    piling = [Sample(10**8, 20 + number, 10 + number // 2) for number in range(40)]
    assert held(piling) == ["24.5 files", "12.5 threads"] or len(held(piling)) == 2
    assert held([Sample(10**8 + number % 3 * 4096, 20 + number % 2, 10) for number in range(40)]) == []
