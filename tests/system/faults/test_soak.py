"""Row 86: a hundred thousand requests with faults mixed in: none lost, doubled, late or wrong, and nothing held on to.

EDGEMUX_SOAK=10000000 soaks for hours.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.system.faults.flatness import Sample, Watch, growth, held
from tests.system.faults.ledgers import Entry, percentile, reconcile
from tests.system.faults.stage import Pictures, Stage, stage
from tests.system.faults.table import Found

ROOT = Path(__file__).parents[3]
COUNT = int(os.environ.get("EDGEMUX_SOAK", "100000"))
CLIENTS = 16
# One request in eight is wanted in the cloud, so that there is something for the faults to befall.
ONE_IN = 8
FAULT_S, REST_S = 0.6, 1.2
# A cloud that starts takes a core from everybody for a second or two.
KILLS = 5
TIMEOUT_S = 1.0
CONTROL = 10_000
LEAKED_BYTES = 2048

pytestmark = pytest.mark.timeout(600 + COUNT // 100)


def order(seen: Pictures) -> list[int]:
    """The pictures in the order in which they are asked for."""
    clear = itertools.cycle(range(seen.doubtful, len(seen.images)))
    return [picture for number in range(seen.doubtful) for picture in (number, *itertools.islice(clear, ONE_IN - 1))]


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


class Soaking:
    """The load, in a process of its own."""

    def __init__(self, folder: Path, address: str, seen: Pictures, count: int) -> None:
        self._out = folder / "entries.msgpack"
        pictures = folder / "pictures.npz"
        np.savez(pictures, images=seen.images, order=np.array(order(seen)))
        told = (address, pictures, count, CLIENTS, TIMEOUT_S, self._out)
        command = [sys.executable, "-m", "tests.system.faults.soaking", *map(str, told)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.done = 0
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def _count(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.done = int(line)

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    def entries(self) -> list[Entry]:
        """Every request, once all are done."""
        assert self._process.wait() == 0
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return msgspec.msgpack.decode(self._out.read_bytes(), type=list[Entry])


def test_a_hundred_thousand_requests_under_faults_lose_nothing_and_leave_nothing_behind(
    serving: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    seen: Pictures,
    clouds: Callable[[], str],
    report: Callable[[Found], None],
) -> None:
    with stage(serving, tmp_path, tiny_bundle, seen) as scene:
        scene.lead_to(clouds())
        weather = Weather(scene, clouds)
        began_s = time.monotonic()
        with Watch(scene.agent.server.popen.pid, interval_s=0.25) as watch:
            soaking = Soaking(tmp_path, scene.agent.server.grpc, seen, COUNT)
            while not soaking.over:
                weather.step()
                if soaking.done > (weather.kills + 1) * COUNT // (KILLS + 1):
                    weather.kill()
            entries = soaking.entries()
        took_s = time.monotonic() - began_s
        verdict = reconcile(entries, scene.agent.ledger(entries), seen.labels)
    grown = growth(watch.samples, lambda sample: sample.resident_bytes) / 2**20
    note = f"{took_s:.0f} s, {weather.befallen} faults, {weather.kills} kills of the cloud, {grown:+.1f} MB"
    counts = {name: len(getattr(verdict, name)) for name in ("lost", "doubled", "late", "wrong", "refused")}
    p99_ms = percentile([entry.elapsed_s for entry in entries], 0.99) * 1000
    report(Found(86, "soak", len(entries), p99_ms=p99_ms, note=note, **counts))
    print(note, counts, verdict.faults[:5], verdict.refused[:5])
    assert len(entries) == COUNT
    assert weather.kills >= 1
    assert any(entry.route == "cloud" for entry in entries)
    assert verdict.faults == ()
    # A refusal is no fault, but the device can answer all of this; a moment without a CPU may cost a few.
    assert len(verdict.refused) <= COUNT // 1000
    assert held(watch.samples) == []


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
    serving_by: Any, tiny_bundle: Path, tmp_path: Path, seen: Pictures
) -> None:
    with serving_by(LEAKING, str(tiny_bundle)) as server, Watch(server.popen.pid, interval_s=0.1) as watch:
        assert len(Soaking(tmp_path, server.grpc, seen, CONTROL).entries()) == CONTROL
    assert len(held(watch.samples)) == 1
    assert held(watch.samples)[0].endswith("MB of memory")


def test_files_and_threads_that_pile_up_are_held_against_it() -> None:
    piling = [Sample(10**8, 20 + number, 10 + number // 2) for number in range(40)]
    assert held(piling) == ["24.5 files", "12.5 threads"] or len(held(piling)) == 2
    assert held([Sample(10**8 + number % 3 * 4096, 20 + number % 2, 10) for number in range(40)]) == []
