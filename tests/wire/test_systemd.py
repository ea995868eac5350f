"""What the service manager hears: ready, stopping, and signs of life only while there is life."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemux.wire.systemd import Notifier, show_life

PATIENT_S = 20.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(PATIENT_S)
        yield listening


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def test_without_a_manager_nothing_is_sent_and_nothing_fails() -> None:
    notifier = Notifier({})
    notifier.tell("READY=1")
    notifier.close()
    assert notifier.watchdog_s is None


def test_it_is_told_and_its_end_is_no_failure(manager: socket.socket) -> None:
    notifier = Notifier(environment(manager))
    notifier.tell("READY=1")
    assert manager.recv(100) == b"READY=1"
    manager.close()
    notifier.tell("STOPPING=1")
    notifier.close()


def test_an_abstract_socket_is_one_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0edgemux-test-{os.getpid()}")
        listening.settimeout(PATIENT_S)
        notifier = Notifier({"NOTIFY_SOCKET": f"@edgemux-test-{os.getpid()}"})
        notifier.tell("READY=1")
        assert listening.recv(100) == b"READY=1"
        notifier.close()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_interval_is_the_manager_s_when_it_is_about_this_process(
    manager: socket.socket, more: dict[str, str], expected: float | None
) -> None:
    notifier = Notifier(environment(manager, **more))
    assert notifier.watchdog_s == expected
    notifier.close()


class Health:
    """A server's health, as told."""

    def __init__(self, told: object) -> None:
        self.told, self.asked = told, asyncio.Event()

    async def well(self) -> bool:
        self.asked.set()
        if isinstance(self.told, Exception):
            raise self.told
        if self.told is None:
            await asyncio.Event().wait()
        return bool(self.told)


@pytest.mark.parametrize("told", [False, ValueError("broken"), None])
async def test_only_one_that_is_well_shows_life(
    manager: socket.socket, told: object, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(environment(manager, WATCHDOG_USEC="40000"))
    health = Health(told)
    life = asyncio.create_task(show_life(notifier, health.well))
    for _ in range(3):
        health.asked.clear()
        await asyncio.wait_for(health.asked.wait(), PATIENT_S)
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)
    health.told = True
    manager.settimeout(PATIENT_S)
    assert await asyncio.to_thread(manager.recv, 100) == b"WATCHDOG=1"
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    notifier.close()
    assert "not well" in caplog.messages


async def test_without_a_watchdog_nobody_is_asked(manager: socket.socket) -> None:
    notifier = Notifier(environment(manager))
    health = Health(True)
    await show_life(notifier, health.well)
    assert not health.asked.is_set()
    notifier.close()
