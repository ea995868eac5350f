"""Other servers of the trade, each in an environment of its own: Triton, MLServer, LitServe.

    python benchmarks/serving_bench/peers.py make [NAME...]
    python benchmarks/serving_bench/peers.py serve NAME --onnx FILE [--model NAME] [--max-batch N]

The environments lie in ~/.cache/edgemux/peers/NAME, or below EDGEMUX_PEERS. ``serve`` listens on free ports of
loopback, prints ``peer ready name=... grpc=HOST:PORT http=HOST:PORT version=...`` and runs until it is interrupted.
Triton comes from the PyPI wheel of its Python package, whose server works with the Python backend only; so, like
MLServer and LitServe, it runs ONNX Runtime in a model of ours (peer_models/), with one thread each.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

START_PATIENCE_S = 90.0
MODELS = Path(__file__).parent / "peer_models"
LOOPBACK = "127.0.0.1"
REQUIREMENTS = {
    "triton": ("nvidia-pytriton==0.7.0", "onnxruntime"),
    # msgspec: for edgemux itself beside it, in tests/wire/test_coexistence.py.
    "mlserver": ("mlserver==1.7.1", "onnxruntime", "msgspec"),
    "litserve": ("litserve==0.2.19", "onnxruntime"),
}
READY_PATHS = {"triton": "/v2/health/ready", "mlserver": "/v2/health/ready", "litserve": "/health"}
# ONNX Runtime's names -> Triton's, the protocol's.
_TYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32", "tensor(int64)": "INT64", "tensor(double)": "FP64"}


class Unavailable(Exception):
    """The peer cannot be had here; says why."""


class Peer(NamedTuple):
    """A running one. grpc: empty where it speaks HTTP only."""

    name: str
    pid: int
    grpc: str
    http: str
    version: str


class Tensors(NamedTuple):
    """What the file's inputs and outputs are: (name, datatype, shape without the batch)."""

    inputs: list[tuple[str, str, list[int]]]
    outputs: list[tuple[str, str, list[int]]]


# --- environments ---------------------------------------------------------------------------------------------------
def home(name: str) -> Path:
    """Where a peer's environment lies."""
    root = os.environ.get("EDGEMUX_PEERS") or Path.home() / ".cache" / "edgemux" / "peers"
    return Path(root) / name


def ready_to_use(name: str) -> bool:
    """Whether its environment has been made, with what is wanted now."""
    stamp = home(name) / "requirements.txt"
    return stamp.is_file() and stamp.read_text().split() == list(REQUIREMENTS[name])


def make(name: str) -> Path:
    """Make a peer's environment unless it is there. Raises Unavailable with pip's last line."""
    folder = home(name)
    if ready_to_use(name):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    steps = [
        # Not this interpreter's own environment: what it was made with.
        [str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"), "-m", "venv", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input", *REQUIREMENTS[name]],
    ]
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
        except OSError as error:
            raise Unavailable(f"{name}: {error.strerror}: {step[0]}") from error
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "pip failed").splitlines()[-1]
            raise Unavailable(f"{name}: {last[:200]}")
    (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS[name]) + "\n")
    return folder


def versions(name: str) -> dict[str, str]:
    """What its environment holds of what matters."""
    program = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    )
    found = subprocess.run([home(name) / "bin" / "python", "-c", program], capture_output=True, text=True, check=True)
    there = json.loads(found.stdout)
    wanted = ("nvidia-pytriton", "mlserver", "litserve", "onnxruntime", "numpy", "grpcio", "protobuf")
    return {each: there[each] for each in wanted if each in there}


# --- models in each one's form --------------------------------------------------------------------------------------
def tensors(onnx: Path) -> Tensors:
    """What a file has; the first dimension is taken to be the batch."""
    import onnxruntime  # here, so that environments can be made without it

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])

    def each(arguments: Any) -> list[tuple[str, str, list[int]]]:
        return [
            (a.name, _TYPES[a.type], [size if isinstance(size, int) else -1 for size in a.shape[1:]]) for a in arguments
        ]

    return Tensors(each(session.get_inputs()), each(session.get_outputs()))


def triton_repository(folder: Path, onnx: Path, model: str, max_batch: int) -> Path:
    """A repository of one model that batches as soon as an instance is free."""

    def lines(kind: str, wanted: list[tuple[str, str, list[int]]]) -> str:
        entries = [
            f'  {{ name: "{name}" data_type: TYPE_{datatype} dims: {shape} }}' for name, datatype, shape in wanted
        ]
        return f"{kind} [\n" + ",\n".join(entries) + "\n]\n"

    found = tensors(onnx)
    (folder / model / "1").mkdir(parents=True)
    (folder / model / "config.pbtxt").write_text(
        f'backend: "python"\nmax_batch_size: {max_batch}\n{lines("input", found.inputs)}'
        f"{lines('output', found.outputs)}"
        "dynamic_batching { default_queue_policy { allow_timeout_override: true } }\n"
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    )
    shutil.copy(MODELS / "triton_model.py", folder / model / "1" / "model.py")
    shutil.copy(onnx, folder / model / "1" / "model.onnx")
    return folder


def mlserver_folder(folder: Path, onnx: Path, model: str, max_batch: int, ports: list[int]) -> Path:
    """Settings with everything in one process; a ``max_batch`` above 1 turns its adaptive batching on, 1 ms."""
    found = tensors(onnx)
    grpc, http_port, metrics = ports
    settings = {
        "host": LOOPBACK,
        "grpc_port": grpc,
        "http_port": http_port,
        "metrics_port": metrics,
        "parallel_workers": 0,
        "debug": False,
        "logging_settings": None,
    }
    entry: dict[str, Any] = {
        "name": model,
        "implementation": "mlserver_model.OnnxModel",
        "platform": "onnxruntime",
        "inputs": [{"name": n, "datatype": d, "shape": [-1, *s]} for n, d, s in found.inputs],
        "outputs": [{"name": n, "datatype": d, "shape": [-1, *s]} for n, d, s in found.outputs],
        "parameters": {"uri": str(onnx.resolve()), "version": "1"},
    }
    if max_batch > 1:
        entry |= {"max_batch_size": max_batch, "max_batch_time": 0.001}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    (folder / "model-settings.json").write_text(json.dumps(entry))
    shutil.copy(MODELS / "mlserver_model.py", folder / "mlserver_model.py")
    return folder


# --- running --------------------------------------------------------------------------------------------------------
def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def _triton(folder: Path, onnx: Path, model: str, max_batch: int, ports: list[int]) -> tuple[list[str], dict[str, str]]:
    """Command and environment: what the wheel's own launcher would set up, without its proxy."""
    venv = home("triton")
    program = (
        "import sysconfig as s; print(s.get_paths()['purelib'], s.get_config_var('LIBDIR'), s.get_python_version())"
    )
    asked = subprocess.run([venv / "bin" / "python", "-c", program], capture_output=True, text=True, check=True)
    site, libraries, version = asked.stdout.split()
    server = Path(site) / "pytriton" / "tritonserver"
    backends = folder / "backends"  # a copy for each, since the stub is put into it
    shutil.copytree(server / "backends" / "python", backends / "python")
    stub = backends / "python" / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    repository = triton_repository(folder / "models", onnx, model, max_batch)
    command = [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--cache-directory={server / 'caches'}",
    ]
    for kind, port in zip(("grpc", "http", "metrics"), ports, strict=True):
        command += [f"--{kind}-port={port}", f"--{kind}-address={LOOPBACK}"]
    environment = {
        "PYTHONPATH": site,
        "PATH": f"{venv / 'bin'}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": f"{libraries}:{Path(site) / 'nvidia_pytriton.libs'}",
    }
    return command, environment


def _mlserver(
    folder: Path, onnx: Path, model: str, max_batch: int, ports: list[int]
) -> tuple[list[str], dict[str, str]]:
    models = mlserver_folder(folder / "models", onnx, model, max_batch, ports)
    return [str(home("mlserver") / "bin" / "mlserver"), "start", str(models)], {"PYTHONPATH": str(models)}


def _litserve(
    folder: Path, onnx: Path, model: str, max_batch: int, ports: list[int]
) -> tuple[list[str], dict[str, str]]:
    program = str(MODELS / "litserve_model.py")
    python = str(home("litserve") / "bin" / "python")
    return [python, program, str(onnx.resolve()), str(ports[1]), str(max_batch)], {}


COMMANDS = {"triton": _triton, "mlserver": _mlserver, "litserve": _litserve}


@contextlib.contextmanager
def serve(
    name: str, onnx: Path, model: str = "model", max_batch: int = 16, options: Sequence[str] = ()
) -> Iterator[Peer]:
    """A peer that serves ``onnx`` as version 1 of ``model``, ended with the block. Raises Unavailable.

    options: more of its own command line.
    """
    if not ready_to_use(name):
        raise Unavailable(f"{name}: has no environment here; `{Path(__file__).name} make {name}` makes one")
    ports = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="edgemux-peer-") as temporary, tempfile.TemporaryFile() as log:
        command, environment = COMMANDS[name](Path(temporary), onnx, model, max_batch, ports)
        popen = subprocess.Popen(
            [*command, *options],
            env=os.environ | environment,
            cwd=temporary,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            address = f"{LOOPBACK}:{ports[1]}"
            if not _came_up(popen, address, READY_PATHS[name]):
                log.seek(0)
                raise Unavailable(f"{name}: did not start: {log.read()[-2000:].decode(errors='replace')}")
            version = versions(name)["nvidia-pytriton" if name == "triton" else name]
            grpc = "" if name == "litserve" else f"{LOOPBACK}:{ports[0]}"
            yield Peer(name, popen.pid, grpc, address, version)
        finally:
            _end(popen)


def _came_up(popen: subprocess.Popen[bytes], address: str, path: str) -> bool:
    until_s = time.monotonic() + START_PATIENCE_S
    while time.monotonic() < until_s and popen.poll() is None:
        connection = http.client.HTTPConnection(address, timeout=2.0)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return True
        time.sleep(0.1)
    return False


def _end(popen: subprocess.Popen[bytes]) -> None:
    """The whole session of processes that it has made: some leave children behind when only the first is ended."""
    for number, patience_s in ((signal.SIGTERM, 8.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(patience_s)


def main() -> None:
    """The two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("names", nargs="*", choices=[*REQUIREMENTS, []], metavar="NAME")
    serving = commands.add_parser("serve")
    serving.add_argument("name", choices=list(REQUIREMENTS))
    serving.add_argument("--onnx", type=Path, required=True)
    serving.add_argument("--model", default="model")
    serving.add_argument("--max-batch", type=int, default=16)
    options = parser.parse_args()
    try:
        if options.command == "make":
            for name in options.names or REQUIREMENTS:
                make(name)
                print(name, home(name), versions(name))
            return
        with serve(options.name, options.onnx, options.model, options.max_batch) as peer:
            print(f"peer ready name={peer.name} grpc={peer.grpc} http={peer.http} version={peer.version}", flush=True)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    except Unavailable as reason:
        sys.exit(str(reason))


if __name__ == "__main__":
    main()
