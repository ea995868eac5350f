"""`edgemux traffic` and `edgemux ready` against a server that runs as a user runs it."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemux.cli.children import Ready, parse_ready
from edgemux.cli.main import run
from edgemux.cli.ready import context_of, is_ready
from edgemux.cli.scrape import counter_in, scrape
from edgemux.cli.steady import MOST_UNDER_WAY, Stop, Tally, schedule, send
from edgemux.multiplexer.errors import ConfigError, Overloaded
from tests.authority import OPENSSL, Authority

Capture = pytest.CaptureFixture[str]
REQUESTS = "edgemux_requests_total"
EDGEMUX = [sys.executable, "-m", "edgemux.cli.main"]
PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


@pytest.fixture(scope="module")
def agent(tiny_bundle: Path) -> Iterator[Ready]:
    with subprocess.Popen(
        [*EDGEMUX, "edge", "--bundle", str(tiny_bundle), *PORTS], stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            addresses = parse_ready(running.stdout.readline())
            assert addresses is not None
            yield addresses
        finally:
            running.terminate()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_a_server_that_answers_is_ready(agent: Ready, capsys: Capture) -> None:
    assert run(["ready", agent.http]) == 0
    assert capsys.readouterr().out == f"{agent.http} is ready\n"


def test_where_nobody_listens_nothing_is_ready(nobody: str, capsys: Capture) -> None:
    assert run(["ready", nobody, "--timeout", "1"]) == 1
    assert capsys.readouterr().err == f"edgemux: {nobody} does not answer\n"


def test_a_port_that_speaks_something_else_is_not_ready(agent: Ready, capsys: Capture) -> None:
    assert run(["ready", agent.grpc]) == 1
    assert "gives no HTTP answer; is it an HTTP port, and without TLS?" in capsys.readouterr().err
    assert run(["ready", agent.metrics]) == 1
    assert "not as an edgemux server does" in capsys.readouterr().err
    assert run(["ready", agent.http, "--tls"]) == 1
    assert "does not speak TLS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "'nowhere' is not HOST:PORT"),
        (["127.0.0.1:1", "--server-name", "cloud"], "give --tls or --tls-ca too"),
        (["127.0.0.1:1", "--tls", "--tls-cert", "a.pem"], "--tls-cert and --tls-key go together"),
        (["127.0.0.1:1", "--tls-ca", "missing.pem"], "cannot be used"),
    ],
)
def test_wrong_use_of_ready_is_one_line(arguments: list[str], said: str, capsys: Capture) -> None:
    assert run(["ready", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl")
def test_ready_speaks_tls_and_believes_only_its_authority(tiny_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("cloud", "DNS:cloud,DNS:localhost")
    files = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-client-ca", str(authority.ca))
    command = [*EDGEMUX, "cloud", "--bundle", str(tiny_bundle), *PORTS, *files]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            addresses = parse_ready(running.stdout.readline())
            assert addresses is not None
            own = ["--tls-ca", str(authority.ca), "--tls-cert", str(pair.cert), "--tls-key", str(pair.key)]
            assert run(["ready", addresses.http, *own, "--server-name", "cloud"]) == 0
            assert run(["ready", addresses.http, *own]) == 1
            assert "IP address mismatch" in capsys.readouterr().err
            assert run(["ready", addresses.http, *own[:2], "--server-name", "cloud"]) == 1
            assert run(["ready", addresses.http, "--tls"]) == 1
            assert run(["ready", addresses.http]) == 1
        finally:
            running.terminate()


def test_a_server_that_says_it_is_not_ready_is_not() -> None:
    answers = [b"HTTP/1.1 503 x\r\nContent-Length: 15\r\n\r\n" + b'{"ready":false}']
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answers[0])

        thread = threading.Thread(target=serve)
        thread.start()
        assert not is_ready(f"127.0.0.1:{listener.getsockname()[1]}", 30.0, None)
        thread.join()


def test_a_client_without_files_trusts_whom_the_system_trusts() -> None:
    assert context_of(None, None, None).verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(ConfigError):
        context_of(None, None, Path("key.pem"))


def test_so_many_requests_are_sent_and_counted(agent: Ready, tiny_bundle: Path, capsys: Capture) -> None:
    arguments = ["traffic", "--to", agent.grpc, "--bundle", str(tiny_bundle), "--rate", "200", "--timeout", "30"]
    assert run([*arguments, "--requests", "25", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"edge": 25}


def test_traffic_that_nobody_answers_has_failed(nobody: str, tiny_bundle: Path, capsys: Capture) -> None:
    arguments = ["traffic", "--to", nobody, "--bundle", str(tiny_bundle), "--requests", "2", "--timeout", "0.2"]
    assert run(arguments) == 1
    said = capsys.readouterr()
    assert said.out == "0 answered; unanswered 2\n"
    assert said.err.startswith(f"edgemux: {nobody} answered none of the requests, the last one because: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_traffic_goes_on_until_it_is_stopped(agent: Ready, tiny_bundle: Path, number: int) -> None:
    command = [*EDGEMUX, "traffic", "--to", agent.grpc, "--bundle", str(tiny_bundle), "--rate", "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            before = counter_in(scrape(agent.metrics), REQUESTS) or 0
            deadline_s = time.monotonic() + 60
            while (counter_in(scrape(agent.metrics), REQUESTS) or 0) < before + 20:
                assert running.poll() is None and time.monotonic() < deadline_s
                time.sleep(0.2)
            running.send_signal(number)
            said, _ = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 0
    assert " answered; " in said


def test_nothing_leaves_before_it_is_due_and_nothing_after_the_stop() -> None:
    stop = Stop()
    began_s, due = time.monotonic(), schedule(100.0, 0, stop)
    assert [next(due) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert time.monotonic() - began_s >= 0.035
    stop.told = True
    assert list(due) == []
    assert list(schedule(1000.0, 3, Stop())) == [0, 1, 2]


def test_what_cannot_leave_is_skipped_and_counted() -> None:
    tally, go_on = Tally(), threading.Event()

    def ask(index: int) -> str:
        go_on.wait(60)
        if index == 0:
            raise Overloaded("queue")
        return "cloud"

    def indices() -> Iterator[int]:
        yield from range(MOST_UNDER_WAY + 3)
        go_on.set()

    send(ask, indices(), tally)
    assert tally.counts() == {"cloud": MOST_UNDER_WAY - 1, "unanswered": 1, "skipped": 3}
    assert tally.answered() == MOST_UNDER_WAY - 1
    assert tally.last_error == "queue"
