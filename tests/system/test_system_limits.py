"""What a server does when the system gives it little: threads, descriptors, somebody who reads its log."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from edgemux.multiplexer.errors import ExecutionError
from edgemux.wire import Client

PATIENT_S = 60.0
MODEL = "fashion-mnist"
PRLIMIT, SETPRIV = shutil.which("prlimit"), shutil.which("setpriv")
needs_prlimit = pytest.mark.skipif(PRLIMIT is None, reason="there is no prlimit command here")


def command(part: str, bundle: Path) -> list[str]:
    ports = [word for name in ("grpc", "http", "metrics") for word in (f"--{name}-port", "0")]
    return [sys.executable, "-m", "edgemux.cli.main", part, "--bundle", str(bundle), *ports]


@contextlib.contextmanager
def ended_with_the_block(command: list[str], **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that a failure does not leave behind."""
    with subprocess.Popen(command, text=True, **how) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def for_anybody(tiny_bundle: Path) -> Iterator[Path]:
    """The tiny bundle, where all may read it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copytree(tiny_bundle, Path(folder) / "bundle"))


@needs_prlimit
@pytest.mark.parametrize("part", ["edge", "cloud"])
def test_without_threads_it_ends_with_status_2_and_one_line(part: str, for_anybody: Path) -> None:
    limited = [str(PRLIMIT), "--nproc=5", *command(part, for_anybody)]
    if os.getuid() == 0:  # for whom there are no limits: somebody else, with this one's files
        if SETPRIV is None:
            pytest.skip("there is no setpriv command to be somebody else with")
        limited = [SETPRIV, "--ruid", "65534", "--bounding-set", "-sys_resource,-sys_admin", *limited]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=PATIENT_S, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "the system allows no further thread" in done.stderr


def cpu_s(process: subprocess.Popen[str]) -> float:
    after_name = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def is_ready(address: str) -> bool:
    try:
        with Client(address) as client:
            return client.ready(PATIENT_S)
    except ExecutionError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never was so")


@needs_prlimit
@pytest.mark.parametrize("port", ["grpc", "http", "metrics"])
def test_without_descriptors_those_who_are_in_are_served_and_the_rest_when_there_are_some(
    port: str, tiny_bundle: Path, samples: dict[str, NDArray[Any]]
) -> None:
    limited = [str(PRLIMIT), "--nofile=48", *command("cloud", tiny_bundle)]
    with ended_with_the_block(limited, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        said = dict(word.split("=", 1) for word in process.stdout.readline().split() if "=" in word)
        with Client(said["grpc"]) as inside:
            inside.infer(MODEL, {"image": samples["images"][:1]}, PATIENT_S)
            host, _, number = said[port].rpartition(":")
            crowd = [socket.create_connection((host, int(number)), PATIENT_S) for _ in range(80)]
            wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) >= 46)
            before_s = cpu_s(process)
            threading.Event().wait(1.0)
            # Whoever tries to accept all the time takes all of it.
            assert cpu_s(process) - before_s < 0.25
            assert "label" in inside.infer(MODEL, {"image": samples["images"][:1]}, PATIENT_S).outputs
            for each in crowd:
                each.close()
            # The library looks for descriptors once a second, which is when a new client gives up.
            wait_until(lambda: is_ready(said["grpc"]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENT_S) == 0


def fill(pipe: int) -> None:
    os.set_blocking(pipe, False)
    try:
        while True:
            os.write(pipe, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(pipe, True)


def test_a_stderr_that_is_full_from_the_start_holds_up_nobody(
    tiny_bundle: Path, tmp_path: Path, samples: dict[str, NDArray[Any]]
) -> None:
    source, sink = os.pipe()
    fill(sink)
    token = tmp_path / "token"
    token.write_text("a-token-of-twenty-ch")
    full = [*command("cloud", tiny_bundle), "--token-file", str(token)]
    with ended_with_the_block(full, stdout=subprocess.PIPE, stderr=sink) as process:
        os.close(sink)
        assert process.stdout is not None
        said = dict(word.split("=", 1) for word in process.stdout.readline().split() if "=" in word)
        with Client(said["grpc"], token_file=token) as client:
            for _ in range(5):
                process.send_signal(signal.SIGHUP)  # each is a line in the log
                client.infer(MODEL, {"image": samples["images"][:1]}, PATIENT_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENT_S) == 0
    os.close(source)


def test_a_stdout_that_is_closed_holds_up_nobody(tiny_bundle: Path, tmp_path: Path) -> None:
    source, sink = os.pipe()
    os.close(source)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENT_S)
        environment = os.environ | {"NOTIFY_SOCKET": manager.getsockname()}
        with ended_with_the_block(command("edge", tiny_bundle), stdout=sink, env=environment) as process:
            os.close(sink)
            assert manager.recv(100) == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENT_S) == 0


# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN), which outlives exec, and what it refuses.
NO_WRITE_EXECUTE = """
import ctypes, mmap, os, sys
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    sys.exit("not refused")
except PermissionError:
    os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("part", ["edge", "cloud"])
def test_no_memory_needs_to_be_written_and_executed(
    part: str, serving_by: Callable[..., Any], tiny_bundle: Path, samples: dict[str, NDArray[Any]]
) -> None:
    # PR_GET_MDWE says whether the kernel knows it.
    if ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0:
        pytest.skip("this kernel cannot refuse it (Linux 6.3 can)")
    with serving_by(NO_WRITE_EXECUTE, *command(part, tiny_bundle)) as server, Client(server.grpc) as client:
        assert "label" in client.infer(MODEL, {"image": samples["images"][:1]}, PATIENT_S).outputs
