"""Servers as processes of their own, and a stock tritonclient to speak to them."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from edgemux.multiplexer.bundle import Bundle

MODEL = "fashion-mnist"
PATIENCE_S = 60.0
PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
READY = re.compile(r"^edgemux (?:cloud|edge) ready model=\S+ grpc=(\S+) http=(\S+) metrics=(\S+)(?: admin=(\S+))?$")


# A cloud server whose model takes as long as its last argument says, a row at a time.
SLOW = """
import sys, time
from edgemux.cloud import hosting
from edgemux.cloud.config import load
from edgemux.cloud.server import serve

class Slow(hosting.BundleBackend):
    seconds = 0.0
    def run(self, inputs, outputs):
        time.sleep(Slow.seconds)
        return super().run(inputs, outputs)

measure = hosting.measure
def measured(backend, row, max_batch):
    Slow.seconds = 0.02
    timing = measure(backend, row, max_batch)
    Slow.seconds = float(sys.argv[2])
    return timing

hosting.BundleBackend, hosting.measure = Slow, measured
ports = {f"listen.{name}_port": 0 for name in ("grpc", "http", "metrics")}
serve(load(None, {"bundle": sys.argv[1], "batching.max_batch": 1, "listen.drain_s": 60.0, **ports}))
"""


class Client(triton.InferenceServerClient):  # type: ignore[misc]
    """tritonclient's, which takes pictures as they are."""

    def ask(self, images: NDArray[np.uint8], model: str = MODEL, **how: Any) -> Any:
        """Classify UINT8 [n, 28, 28]; ``how`` as for ``infer``."""
        tensor = triton.InferInput("image", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        return self.infer(model, [tensor], **({"client_timeout": PATIENCE_S} | how))


class Server(msgspec.Struct):
    """A running server and where it listens."""

    popen: Any
    log: Any
    grpc: str
    http: str
    metrics: str
    admin: str | None = None

    def client(self) -> Client:
        """A client of it, to be closed."""
        return Client(self.grpc)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and content of an HTTP page."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=PATIENCE_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def scrape(self) -> dict[str, float]:
        """Every series of its metrics."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=PATIENCE_S) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end: the exit status."""
        self.popen.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait for its end: the exit status."""
        return int(self.popen.wait(PATIENCE_S))

    def errors(self) -> str:
        """What it has written to stderr."""
        self.log.seek(0)
        return str(self.log.read())


Serving = Callable[..., AbstractContextManager[Server]]


@contextlib.contextmanager
def _serve(command: list[str]) -> Iterator[Server]:
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as popen,
    ):
        try:
            assert popen.stdout is not None
            line = popen.stdout.readline()
            ready = READY.match(line.strip())
            if not ready:
                popen.terminate()
                popen.wait(PATIENCE_S)
                log.seek(0)
            assert ready, f"no ready line but {line!r}: {log.read()}"
            yield Server(popen, log, *ready.groups())
        finally:
            popen.kill()


def _command(part: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "edgemux.cli.main", part, *PORTS, *options]


@pytest.fixture(scope="session")
def serving() -> Serving:
    """``serving(part, *options)``: a server by the command line, on free ports, killed with the block.

    ``within``: the words of a command that runs another, to be put before it.
    """
    return lambda *arguments, within=(): _serve([*within, *_command(*arguments)])


@pytest.fixture(scope="session")
def serving_by() -> Serving:
    """``serving_by(program, *arguments)``: a server by a Python program."""
    return lambda *arguments: _serve([sys.executable, "-c", *arguments])


@pytest.fixture(scope="session")
def ended() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``ended(part, *options)``: what became of a server that cannot start."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    return run


@pytest.fixture(scope="module")
def cloud(tiny_bundle: Path, serving: Serving) -> Iterator[Server]:
    """A cloud server with the tiny bundle."""
    with serving("cloud", "--bundle", str(tiny_bundle)) as server:
        yield server


@pytest.fixture(scope="module")
def agent(tiny_bundle: Path, cloud: Server, serving: Serving) -> Iterator[Server]:
    """An agent with the tiny bundle, in front of ``cloud``."""
    with serving("edge", "--bundle", str(tiny_bundle), "--cloud", cloud.grpc) as server:
        yield server


@pytest.fixture(scope="session")
def samples(tiny_bundle: Path) -> dict[str, NDArray[Any]]:
    """The tiny bundle's images UINT8 [n, 28, 28] and labels."""
    return Bundle.open(tiny_bundle).arrays("samples.npz")


@pytest.fixture
def message(samples: dict[str, NDArray[Any]]) -> Any:
    """A good request for the first of the samples, as a message of the protocol."""
    made = service_pb2.ModelInferRequest(model_name=MODEL)
    made.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    made.raw_input_contents.append(samples["images"][0].tobytes())
    return made
