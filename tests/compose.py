"""What deploy/docker says, as values, and its services as plain processes on loopback.

A stand-in for containers: same commands, same configuration files; names of services become 127.0.0.1 with a free port,
and paths of mounts the files that are mounted there.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests import dockerfile
from tests.dockerfile import ROOT

DOCKER = ROOT / "deploy" / "docker"
# Every port that a service of ours has inside its container.
PORTS = {"agent": (9000, 9001, 9002), "cloud": (8000, 8001, 8002), "prometheus": (9090,)}


def services(*files: str) -> dict[str, Any]:
    """The services of compose files, later ones over earlier ones as `docker compose -f ... -f ...` merges them."""
    merged: dict[str, Any] = {}
    for file in files:
        for name, service in yaml.safe_load((DOCKER / file).read_text())["services"].items():
            into = merged.setdefault(name, {})
            for key, value in service.items():
                into[key] = value if key != "volumes" else list_of({**mounts(into), **mounts(service)})
    return merged


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """What is mounted, by where: a path that begins with a dot, or the name of a volume."""
    return {target: source for source, target, *_ in (each.split(":") for each in service.get("volumes", []))}


def list_of(mounted: dict[str, str]) -> list[str]:
    """The way back: as compose files write mounts."""
    return [f"{source}:{target}" for target, source in mounted.items()]


def image_of(service: dict[str, Any]) -> dockerfile.Stage:
    """The last stage of the Dockerfile of one of our own images."""
    part = service["image"].partition(":")[0].removeprefix("edgemux-")
    return dockerfile.read(DOCKER / f"{part}.Dockerfile")[-1]


def command_of(service: dict[str, Any]) -> list[str]:
    """ENTRYPOINT and command of one of our own services."""
    stage = image_of(service)
    return stage.command("ENTRYPOINT") + (service.get("command") or stage.command("CMD"))


class Stand:
    """Where services stand in for containers: a free port for each of theirs, and a folder for their files."""

    def __init__(self, folder: Path, described: dict[str, Any], secrets: Path | None = None) -> None:
        self.folder, self.services, self._secrets = folder, described, secrets
        with contextlib.ExitStack() as open_sockets:
            self.ports = {port: free_port(open_sockets) for ports in PORTS.values() for port in ports}

    def _put(self, service: dict[str, Any], text: str) -> str:
        """Paths and addresses in a text as a container sees them, by those that stand in for them."""
        for target, source in mounts(service).items():
            if target not in text:
                continue
            at = (DOCKER / source).resolve() if source.startswith(".") else self.folder / source
            if at.is_file():
                (self.folder / at.name).write_text(self._put(service, at.read_text()))
                at = self.folder / at.name
            text = text.replace(target, str(at))
        if self._secrets is not None:
            text = text.replace("/run/secrets", str(self._secrets))
        return self.reached(text.replace('host = "0.0.0.0"', 'host = "127.0.0.1"'))

    def reached(self, text: str) -> str:
        """Addresses in a text by those that stand in for them."""
        names = "|".join([*PORTS, r"127\.0\.0\.1"])
        # Certificates are for the names of services, which only containers know, and for localhost.
        host = "127.0.0.1" if self._secrets is None else "localhost"
        return re.sub(rf"\b({names}):(\d+)\b", lambda found: f"{host}:{self.ports[int(found[2])]}", text)

    def prometheus(self) -> list[str]:
        """The words that stand in for the service `prometheus`, looking every second."""
        service = self.services["prometheus"]
        at = {target: (DOCKER / source).resolve() for target, source in mounts(service).items() if source[0] == "."}
        text = at["/etc/prometheus/prometheus.yml"].read_text()
        settings = yaml.safe_load(text.replace("/run/secrets", str(self._secrets)))
        settings["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        settings["rule_files"] = [f"{at['/etc/prometheus/rules']}/*.yml"]
        for job in settings["scrape_configs"]:
            for found in job["file_sd_configs"]:
                found["files"] = [
                    self._targets(at["/etc/prometheus/targets"] / Path(file).name) for file in found["files"]
                ]
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        flags = [flag.replace("=/prometheus", f"={self.folder}/metrics") for flag in service["command"]]
        flags = [flag.replace("/etc/prometheus", str(self.folder)) for flag in flags]
        return ["prometheus", *flags, f"--web.listen-address=127.0.0.1:{self.ports[9090]}"]

    def _targets(self, file: Path) -> str:
        copy = self.folder / f"targets-{file.name}"
        copy.write_text(self.reached(file.read_text()))
        return str(copy)

    def command(self, name: str) -> list[str]:
        """The words that stand in for a service of ours, with its ports."""
        service = self.services[name]
        entry, *words = [self._put(service, word) for word in command_of(service)]
        assert entry == "edgemux"
        kinds = zip(("http", "grpc", "metrics"), PORTS.get(name, ()), strict=False)
        ports = [f"--{kind}-port={self.ports[port]}" for kind, port in kinds]
        return [sys.executable, "-m", "edgemux.cli.main", *words, *ports]

    def health(self, name: str) -> list[str]:
        """The words of its health check."""
        service = self.services[name]
        check = service.get("healthcheck", {}).get("test")
        entry, *words = image_of(service).command("HEALTHCHECK") if check is None else check[1:]
        assert entry == "edgemux"
        return [sys.executable, "-m", "edgemux.cli.main", *(self._put(service, word) for word in words)]

    @contextlib.contextmanager
    def running(self, command: list[str], log: str) -> Iterator[Any]:
        """A process, terminated with the block; what it writes goes to a file of that name."""
        with (self.folder / log).open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as popen:
            try:
                yield popen
            finally:
                popen.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    popen.wait(30)
                popen.kill()


def free_port(open_sockets: contextlib.ExitStack) -> int:
    """A port that was free; it is held until all have been found, so that none is found twice."""
    listener = open_sockets.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    return int(listener.getsockname()[1])
