"""The steps of both Dockerfiles, done without a container engine, and what comes out of them run as it would be run."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemux.cli.children import Ready, parse_ready
from tests import dockerfile
from tests.dockerfile import ROOT

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]
CONFIG = 'bundle = "/models/bundle"\n{more}[listen]\ngrpc_port = 0\nhttp_port = 0\nmetrics_port = 0\n'
MORE = {"edge": 'state_dir = "/var/lib/edgemux"\n', "cloud": ""}


@contextlib.contextmanager
def image_of(part: str, folder: Path) -> Iterator[tuple[Any, Ready]]:
    """The image's process, after its steps have been done, and where it listens."""
    ignore = (ROOT / ".dockerignore").read_text()
    for name in dockerfile.context(dockerfile.tracked(), ignore):
        (folder / "context" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "context" / name)
    (folder / "config").mkdir()
    (folder / "config" / f"{part}.toml").write_text(CONFIG.format(more=MORE[part]))
    shutil.copytree(ROOT / "deploy" / "bundles" / "fashion-mnist", folder / "bundle")
    stages = dockerfile.read(ROOT / "deploy" / "docker" / f"{part}.Dockerfile")
    mounts = {"/etc/edgemux": folder / "config", "/models/bundle": folder / "bundle"}
    text = dockerfile.script(stages, folder, mounts)
    command = ["unshare", "--mount", "sh", "-c", text]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as running,
    ):
        try:
            yield running, ready_of(running, folder / "log")
        finally:
            running.kill()


def ready_of(running: Any, log: Path) -> Ready:
    """Where it listens, once it says so; what the steps said before it does not end there."""
    said = []
    for line in running.stdout:
        said.append(line)
        if (ready := parse_ready(line)) is not None:
            return ready
    pytest.fail("".join(said)[-4000:] + log.read_text()[-4000:])


@pytest.mark.skipif(not dockerfile.may_pretend(), reason="only root may make a root of its own")
@pytest.mark.parametrize("part", ["edge", "cloud"])
def test_what_the_image_holds_runs_as_the_image_says(part: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with image_of(part, tmp_path) as (running, ready):
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{running.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["Uid"].split() == ["10001"] * 4
        assert status["NoNewPrivs"] == "1"
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        mounts = [line.split() for line in Path(f"/proc/{running.pid}/mounts").read_text().splitlines()]
        assert "ro" in next(fields[3] for fields in mounts if fields[1] == "/").split(",")

        stage = dockerfile.read(ROOT / "deploy" / "docker" / f"{part}.Dockerfile")[-1]
        check = [word.replace("127.0.0.1:8000", ready.http) for word in dockerfile.health_check(stage, running.pid)]
        check = [word.replace("127.0.0.1:9000", ready.http) for word in check]
        done = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, f"{ready.http} is ready\n"), done.stderr

        with urllib.request.urlopen(f"http://{ready.http}/v2", timeout=60) as page:
            assert json.load(page)["name"]
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        done = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
