"""The steps of both Dockerfiles, done without a container engine, and what comes out of them run as it would be run."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemux.cli.children import Ready, parse_ready
from tests import dockerfile
from tests.dockerfile import ROOT

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(400)]
PORTS = "[listen]\ngrpc_port = 0\nhttp_port = 0\nmetrics_port = 0\n"
CONFIGS = {
    "cloud.toml": f'bundle = "/models/bundle"\n{PORTS}',
    "edge.toml": f'bundle = "/models/bundle"\nstate_dir = "/var/lib/edgemux"\n{PORTS}',
}
NONE = {f"Cap{kind}": 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}


def stages_of(part: str) -> list[dockerfile.Stage]:
    return dockerfile.read(ROOT / "deploy" / "docker" / f"{part}.Dockerfile")


@contextlib.contextmanager
def started(command: list[str], log: Path) -> Iterator[tuple[Any, Ready]]:
    """A server, and where it listens, once it says so; what is said before that does not end the wait."""
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as running,
    ):
        try:
            assert running.stdout is not None
            said = []
            for line in running.stdout:
                said.append(line)
                if (ready := parse_ready(line)) is not None:
                    yield running, ready
                    return
            pytest.fail("".join(said)[-4000:] + log.read_text()[-4000:])
        finally:
            running.kill()


@contextlib.contextmanager
def built_and_started(part: str, folder: Path) -> Iterator[tuple[Any, Ready]]:
    """The image's process, after its steps have been done, and where it listens."""
    for name in dockerfile.context(dockerfile.tracked(), (ROOT / ".dockerignore").read_text()):
        (folder / "context" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "context" / name)
    (folder / "config").mkdir()
    for name, text in CONFIGS.items():
        (folder / "config" / name).write_text(text)
    shutil.copytree(ROOT / "deploy" / "bundles" / "fashion-mnist", folder / "bundle")
    mounts = {"/etc/edgemux": folder / "config", "/models/bundle": folder / "bundle"}
    text = dockerfile.script(stages_of(part), folder, mounts)
    with started(["unshare", "--mount", "sh", "-c", text], folder / "log") as both:
        yield both


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def is_healthy(part: str, pid: int, ready: Ready) -> bool:
    """What the image's own HEALTHCHECK says, run beside the process, at the port that was free."""
    check = re.sub(r"127\.0\.0\.1:\d+", ready.http, "\0".join(stages_of(part)[-1].command("HEALTHCHECK"))).split("\0")
    command = dockerfile.beside(stages_of(part)[-1], pid, check)
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def check_is_locked_down(pid: int) -> None:
    status = status_of(pid)
    assert status["Uid"].split() == ["10001"] * 4
    assert status["NoNewPrivs"] == "1"
    assert {name: int(status[name], 16) for name in NONE} == NONE
    mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
    assert "ro" in next(options for _, place, _, options, *_ in mounts if place == "/").split(",")


@pytest.mark.skipif(not dockerfile.may_pretend(), reason="only root may make a root of its own")
def test_what_the_images_hold_runs_as_they_say(tmp_path: Path) -> None:
    """The steps of cloud.Dockerfile are done, which holds all that edge.Dockerfile does; then both commands run."""
    tmp_path.chmod(0o755)
    edge = stages_of("edge")[-1]
    with built_and_started("cloud", tmp_path) as (cloud, at):
        check_is_locked_down(cloud.pid)
        assert is_healthy("cloud", cloud.pid, at)
        command = dockerfile.beside(edge, cloud.pid, edge.command("ENTRYPOINT") + edge.command("CMD"))
        with started(command, tmp_path / "edge.log") as (agent, agent_at):
            check_is_locked_down(agent.pid)
            assert is_healthy("edge", agent.pid, agent_at)
            ask = ["traffic", "--to", agent_at.grpc, "--bundle", "/models/bundle", "--requests", "3", "--timeout", "30"]
            asked = dockerfile.beside(edge, cloud.pid, edge.command("ENTRYPOINT") + ask)
            done = subprocess.run(asked, capture_output=True, text=True, timeout=100, check=False)
            assert (done.returncode, done.stdout) == (0, "3 answered; edge 3\n"), done.stderr
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(60) == 0
            assert not is_healthy("edge", cloud.pid, agent_at)
        cloud.send_signal(signal.SIGTERM)
        assert cloud.wait(60) == 0
