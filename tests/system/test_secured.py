"""Agent and cloud as processes with TLS and tokens, and what they refuse to start with."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from edgemux.multiplexer.errors import Unauthenticated, Untrusted
from edgemux.wire import Client
from edgemux.wire.security import ClientTls
from tests.authority import Authority

PATIENT_S = 60.0
TOKEN = "a-token-of-twenty-ch"
OTHER = "another-token-of-27-letters"
MODEL = "fashion-mnist"


def wait_until(condition: Callable[[], bool]) -> None:
    """The test's own timeout ends it."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.05)


@pytest.mark.parametrize("part", ["edge", "cloud"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_listening_to_others_unprotected_is_refused_in_one_line_that_says_what_to_do(
    ended: Callable[..., Any], tiny_bundle: Path, part: str, host: str
) -> None:
    done = ended(part, "--bundle", str(tiny_bundle), "--host", host)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for word in (host, "listen.tls.cert", "listen.token_file", "--insecure"):
        assert word in done.stderr
    assert done.stdout == ""


def test_listening_to_others_may_be_insisted_on(serving: Callable[..., Any], tiny_bundle: Path) -> None:
    with serving("cloud", "--bundle", str(tiny_bundle), "--host", "0.0.0.0", "--insecure") as server:
        assert server.grpc.startswith("0.0.0.0:")


@pytest.mark.parametrize("lacking", ["--tls-cert", "--tls-key"])
def test_half_of_a_pair_is_refused(ended: Callable[..., Any], tiny_bundle: Path, lacking: str, tmp_path: Path) -> None:
    other = "--tls-key" if lacking == "--tls-cert" else "--tls-cert"
    done = ended("cloud", "--bundle", str(tiny_bundle), other, str(tmp_path / "file.pem"))
    assert done.returncode == 2
    assert "cert and key go together" in done.stderr


def test_a_missing_file_is_refused_without_its_path(
    ended: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    done = ended("cloud", "--bundle", str(tiny_bundle), "--token-file", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "listen.token_file: cannot be read" in done.stderr


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(TOKEN)
    return path


def agent_config(path: Path, tls: ClientTls, cloud: str, token_file: Path) -> Path:
    path.write_text(
        f'policy = "cloud-only"\naudit_share = 0.0\n[cloud]\naddress = "{cloud}"\nprobe_interval_s = 0.1\n'
        f'token_file = "{token_file}"\n[cloud.tls]\nca = "{tls.ca}"\ncert = "{tls.cert}"\nkey = "{tls.key}"\n'
    )
    return path


def test_an_agent_offloads_over_mutual_tls_with_a_token_and_answers_itself_while_that_is_revoked(
    serving: Callable[..., Any],
    tiny_bundle: Path,
    authority: Authority,
    token_file: Path,
    tmp_path: Path,
    samples: dict[str, NDArray[Any]],
) -> None:
    own, mine = authority.issue("server"), authority.issue("agent", "DNS:agent")
    known = tmp_path / "known"
    shutil.copyfile(token_file, known)
    secured = ("--tls-cert", own.cert, "--tls-key", own.key, "--tls-client-ca", authority.ca, "--token-file", known)
    with serving("cloud", "--bundle", str(tiny_bundle), *map(str, secured)) as cloud:
        tls = ClientTls(ca=authority.ca, cert=mine.cert, key=mine.key)
        config = agent_config(tmp_path / "edge.toml", tls, cloud.grpc, token_file)
        with (
            serving("edge", "--bundle", str(tiny_bundle), "--config", str(config)) as agent,
            Client(agent.grpc) as client,
        ):

            def reason() -> str:
                said = client.infer(MODEL, {"image": samples["images"][:1]}, PATIENT_S).parameters
                assert said["edgemux_route"] == ("cloud" if said["edgemux_reason"] == "offloaded" else "edge")
                return str(said["edgemux_reason"])

            wait_until(lambda: reason() == "offloaded")
            security = agent.get("/status")[1]["cloud"]["security"]
            assert (security["tls"], security["token"], security["trouble"]) == (True, True, None)
            assert security["own_certificate_until"] is not None
            known.write_text(OTHER)
            cloud.popen.send_signal(signal.SIGHUP)
            wait_until(lambda: "tokens renewed" in cloud.errors())
            wait_until(lambda: reason() == "cloud_denied")
            token_file.write_text(OTHER)
            wait_until(lambda: reason() == "offloaded")


def test_every_port_of_a_server_is_behind_its_certificate_and_token(
    serving: Callable[..., Any], tiny_bundle: Path, authority: Authority, token_file: Path
) -> None:
    own = authority.issue("server")
    secured = ("--tls-cert", own.cert, "--tls-key", own.key, "--token-file", token_file)
    context = ssl.create_default_context(cafile=str(authority.ca))

    def get(address: str, path: str, token: str | None = None) -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"https://{address}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENT_S, context=context) as page:
                return int(page.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    with serving("cloud", "--bundle", str(tiny_bundle), *map(str, secured)) as server:
        assert get(server.http, "/v2/health/ready") == 200
        for address, path in ((server.http, "/status"), (server.http, "/v2"), (server.metrics, "/metrics")):
            assert [get(address, path), get(address, path, OTHER), get(address, path, TOKEN)] == [401, 401, 200]
        request = urllib.request.Request(f"https://{server.metrics}/", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=PATIENT_S, context=context) as page:
            (until,) = (line for line in page.read().decode().splitlines() if line.startswith("edgemux_certificate_"))
        assert float(until.split()[1]) > time.time()
        with Client(server.grpc, ClientTls(ca=authority.ca), token_file) as client:
            assert client.ready(PATIENT_S)
        with Client(server.grpc, ClientTls(ca=authority.ca)) as client, pytest.raises(Unauthenticated):
            client.ready(PATIENT_S)
        with Client(server.grpc, ClientTls(enabled=True), token_file) as client, pytest.raises(Untrusted):
            client.ready(PATIENT_S)
        assert server.stop() == 0


def test_infer_speaks_tls_with_a_token(
    serving: Callable[..., Any], tiny_bundle: Path, authority: Authority, token_file: Path
) -> None:
    own = authority.issue("server")
    secured = ("--tls-cert", own.cert, "--tls-key", own.key, "--token-file", token_file)
    picture = Path(__file__).parents[2] / "deploy" / "samples" / "bag.png"

    def infer(address: str, *options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgemux.cli.main", "infer", str(picture), "--to", address, "--json"]
        more = [str(option) for option in options]
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=PATIENT_S, check=False)

    with serving("cloud", "--bundle", str(tiny_bundle), *map(str, secured)) as server:
        assert infer(server.grpc, "--tls-ca", authority.ca, "--token-file", token_file).returncode == 0
        denied = infer(server.grpc, "--tls-ca", authority.ca)
        assert (denied.returncode, denied.stdout) == (1, "")
        assert "a valid bearer token is needed" in denied.stderr
        assert "nobody whom we trust vouches" in infer(server.grpc, "--tls").stderr


def test_sighup_reloads_and_nothing_else(
    serving: Callable[..., Any], tiny_bundle: Path, token_file: Path, samples: dict[str, NDArray[Any]]
) -> None:
    with (
        serving("cloud", "--bundle", str(tiny_bundle), "--token-file", str(token_file)) as server,
        Client(server.grpc, token_file=token_file) as client,
    ):
        server.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload asked" in server.errors())
        assert client.ready(PATIENT_S)
        assert "label" in client.infer(MODEL, {"image": samples["images"][:1]}, PATIENT_S).outputs


@pytest.mark.parametrize("part", ["edge", "cloud"])
def test_the_service_manager_is_told_and_fed(part: str, tiny_bundle: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENT_S)
        command = [sys.executable, "-m", "edgemux.cli.main", part, "--bundle", str(tiny_bundle)]
        ports = [word for name in ("grpc", "http", "metrics") for word in (f"--{name}-port", "0")]
        environment = os.environ | {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000000"}
        with subprocess.Popen([*command, *ports], env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                assert manager.recv(100) == b"READY=1"
                assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
                process.send_signal(signal.SIGTERM)
                heard = manager.recv(100)
                while heard == b"WATCHDOG=1":
                    heard = manager.recv(100)
                assert heard == b"STOPPING=1"
                assert process.wait(PATIENT_S) == 0
            finally:
                process.kill()
