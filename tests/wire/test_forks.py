"""A child that is forked from a process that serves: the parent does not notice, and the child is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from edgemux.multiplexer.errors import ConfigError, Unreachable
from edgemux.wire import Client
from edgemux.wire.forks import Home

PATIENT_S = 60.0

# A parent that serves nothing: its child is stopped, and it must not stop with it; its own signal still stops it.
PROGRAM = """
import asyncio, os, signal, sys, time
from prometheus_client import CollectorRegistry
from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.forks import Home
from edgemux.wire.process import Listen, Serving, serve

class Servicer:
    def check_fits(self, size): pass
    def __getattr__(self, name): return self.__init__

async def closed(): pass

home = Home()

async def main():
    async def make():
        return Serving("test", ("m",), Servicer(), CollectorRegistry(), {}, lambda: None, closed)
    serving = asyncio.create_task(serve(Listen(grpc_port=0, http_port=0, metrics_port=0, drain_s=0.1), make))
    await asyncio.sleep(0)
    while not signal.getsignal(signal.SIGTERM):
        await asyncio.sleep(0.01)
    while signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        await asyncio.sleep(0.01)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            home.check()
        except ConfigError:
            os.write(writing, b"told")
        while True:
            time.sleep(1)
    assert os.read(reading, 4) == b"told"
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    await asyncio.sleep(0.2)
    assert not serving.done()
    home.check()
    os.kill(os.getpid(), signal.SIGTERM)
    await serving

asyncio.run(main())
print("unharmed")
"""


def test_a_parent_is_not_harmed_by_its_child_s_end_and_the_child_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=PATIENT_S, check=False
    )
    assert done.stdout.splitlines()[-1] == "unharmed", done.stderr


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_client_is_of_no_use_in_a_child_and_says_so() -> None:
    with Client("127.0.0.1:1") as client:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                client.ready(1.0)
            except ConfigError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(Unreachable):
            client.ready(PATIENT_S)


def test_at_home_nothing_is_said() -> None:
    Home().check()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_does_not_serve_keeps_its_signals_in_a_child(number: int) -> None:
    before = signal.getsignal(number)
    child = os.fork()
    if child == 0:
        os._exit(0 if signal.getsignal(number) is before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
