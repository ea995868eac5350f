"""The shell of a server process: what it holds while it starts, and closes when that fails."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import urllib.request
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.process import Listen, Serving, serve

ANY = Listen(grpc_port=0, http_port=0, metrics_port=0, drain_s=1.0)


class Servicer:
    """Serves nothing; every method is there."""

    too_small = False

    def check_fits(self, max_message_bytes: int) -> None:
        if self.too_small:
            raise ConfigError(f"listen.max_message_bytes: {max_message_bytes}, too small")

    def __getattr__(self, name: str) -> Any:
        return self.__init__


class Made:
    """Makes a Serving, and counts how often it was told to drain and to close."""

    def __init__(self) -> None:
        self.servicer = Servicer()
        self.registry = CollectorRegistry()
        Counter("some_total", "Anything.", registry=self.registry)
        self.drained = self.closed = 0

    async def make(self) -> Serving:
        return Serving("test", ("some-model",), self.servicer, self.registry, {}, self._drain, self._close)

    def _drain(self) -> None:
        self.drained += 1

    async def _close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("size", [0, 64 * 2**10 - 1, 2**30 + 1])
def test_a_message_size_out_of_bounds_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="max_message_bytes must be between"):
        Listen(grpc_port=0, http_port=0, metrics_port=0, max_message_bytes=size)


def test_four_mebibytes_are_taken_by_default() -> None:
    assert ANY.max_message_bytes == 4 * 2**20


async def test_what_was_made_is_closed_when_it_cannot_be_served() -> None:
    made = Made()
    made.servicer.too_small = True
    with pytest.raises(ConfigError, match="max_message_bytes: 4194304"):
        await serve(ANY, made.make)
    assert made.closed == 1


async def test_what_was_made_is_closed_when_the_web_pages_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("no thread")

    made = Made()
    monkeypatch.setattr("edgemux.wire.process.exporting", broken)
    with pytest.raises(OSError, match="no thread"):
        await serve(ANY, made.make)
    assert made.closed == 1


async def test_a_failure_to_make_frees_the_ports() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    held = []

    async def make() -> Serving:
        with socket.socket() as other:
            try:
                other.bind(("127.0.0.1", port))
            except OSError:
                held.append(port)
        raise ConfigError("no such model")

    with pytest.raises(ConfigError, match="no such model"):
        await serve(Listen(grpc_port=0, http_port=0, metrics_port=port), make)
    # Nobody could take the metrics port while the model was loaded, and anybody can now.
    assert held == [port]
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


async def test_metrics_are_served_until_a_signal_and_then_all_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    made = Made()
    serving = asyncio.create_task(serve(ANY, made.make))
    line = ""
    while "\n" not in line:
        assert not serving.done()
        await asyncio.sleep(0.005)
        line += capsys.readouterr().out
    words = dict(word.split("=", 1) for word in line.split() if "=" in word)

    def scrape() -> str:
        with urllib.request.urlopen(f"http://{words['metrics']}/metrics", timeout=30) as page:
            return str(page.read(), "utf-8")

    assert "some_total 0.0" in await asyncio.to_thread(scrape)
    assert (made.drained, made.closed) == (0, 0)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serving, 30)
    assert (made.drained, made.closed) == (1, 1)
