"""What can be known of the images and of compose.yaml without a container engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from edgemux.cloud import config as cloud
from edgemux.edge import config as edge
from tests import dockerfile
from tests.compose import DOCKER, command_of, mounts, services
from tests.dockerfile import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LISTEN = {
    "cloud": cloud.load(None, {"bundle": "b"}).listen,
    "edge": edge.load(None, {"bundle": "b"}).listen,
}
SECURE = ("compose.yaml", "compose.secure.yaml")
OURS = {"cloud": "cloud", "agent": "edge"}


def tool(name: str) -> str:
    """A command that is installed beside this Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found is not None, name
    return found


def pins(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and digests of every package in one of the files."""
    lines = (DOCKER / "pins" / f"{name}.txt").read_text().replace("\\\n", " ").splitlines()
    found = {}
    for line in lines[1:]:
        wanted, *hashes = line.split()
        package, _, version = wanted.partition("==")
        found[package] = version, hashes
    return found


# --- images ---


@pytest.mark.parametrize("part", ["cloud", "edge"])
def test_the_linter_has_nothing_to_say(part: str) -> None:
    done = subprocess.run(
        [tool("hadolint"), str(DOCKER / f"{part}.Dockerfile")], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_images_differ_in_names_and_ports_only() -> None:
    first, second = ((DOCKER / f"{part}.Dockerfile").read_text().splitlines()[1:] for part in ("edge", "cloud"))
    differing = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
    for ours, theirs in differing:
        if "description" not in ours:
            assert re.sub(r"\bedge\b", "cloud", ours).replace("900", "800") == re.sub(r"\bedge\b", "cloud", theirs)
    assert len(differing) == 8


@pytest.mark.parametrize("part", ["cloud", "edge"])
def test_an_image_says_what_the_code_has(part: str) -> None:
    build, last = dockerfile.read(DOCKER / f"{part}.Dockerfile")
    assert build.base == last.base
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", last.base)
    listen = LISTEN[part]
    assert last.last("EXPOSE").split() == [str(listen.http_port), str(listen.grpc_port), str(listen.metrics_port)]
    assert last.command("HEALTHCHECK")[-1] == f"127.0.0.1:{listen.http_port}"
    assert f"ARG VERSION={PROJECT['project']['version']}" in (DOCKER / f"{part}.Dockerfile").read_text()
    assert last.command("ENTRYPOINT")[0] in PROJECT["project"]["scripts"]
    assert last.last("STOPSIGNAL") == "SIGTERM"
    assert all(int(number) > 0 for number in last.last("USER").split(":"))
    assert last.environment()["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("part", ["cloud", "edge", "build"])
def test_pins_are_what_pyproject_asks_for(part: str) -> None:
    """Compared with the requirements, not with an index: whether newer packages exist is no business of a test."""
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = (
        PROJECT["build-system"]["requires"] if part == "build" else PROJECT["project"]["dependencies"] + extras[part]
    )
    found = pins(part)
    for requirement in map(Requirement, wanted):
        version, _ = found[requirement.name]
        assert requirement.specifier.contains(version), requirement
    for package, (version, hashes) in found.items():
        assert 1 <= len(hashes) <= 2, package
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for digest in hashes), (package, version)


def test_both_images_have_the_same_packages_but_one() -> None:
    ours, theirs = pins("edge"), pins("cloud")
    assert theirs.keys() - ours.keys() == {"uvloop"}
    assert {name: theirs[name] for name in ours} == ours


def test_the_context_holds_what_the_wheel_is_made_of_and_nothing_else() -> None:
    inside = dockerfile.context(dockerfile.tracked(), (ROOT / ".dockerignore").read_text())
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    expected = {name for name in dockerfile.tracked() if name.startswith(tuple(f"{folder}/" for folder in wheel))}
    expected |= {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    rest = set(inside) - expected
    assert expected <= set(inside)
    assert {name.rpartition("/")[0] for name in rest} <= {
        "deploy/docker/pins",
        *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["sources"],
    }


def test_dockerignore_is_read_as_docker_reads_it() -> None:
    ignore = "# all\n*\n!proto\n!deploy/docker/pins\n**/__pycache__\n"
    files = ["proto/a.py", "proto/__pycache__/a.pyc", "deploy/docker/pins/x.txt", "deploy/docker/y", "z", "protocol"]
    assert dockerfile.context(files, ignore) == ["proto/a.py", "deploy/docker/pins/x.txt"]


# --- compose ---


@pytest.mark.parametrize("file", SECURE)
def test_compose_files_are_what_their_schema_wants(file: str) -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DOCKER / file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout


def test_every_service_is_locked_down_and_limited() -> None:
    for name, service in services("compose.yaml").items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        tag = service["image"].rpartition(":")[2]
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), name


@pytest.mark.parametrize("files", [SECURE[:1], SECURE])
def test_what_is_mounted_is_there(files: tuple[str, ...]) -> None:
    declared = yaml.safe_load((DOCKER / "compose.yaml").read_text())["volumes"]
    for name, service in services(*files).items():
        for source in mounts(service).values():
            assert (DOCKER / source).exists() if source.startswith(".") else source in declared, (name, source)


@pytest.mark.parametrize("files", [SECURE[:1], SECURE])
@pytest.mark.parametrize(("name", "part"), OURS.items())
def test_configurations_are_ones_that_the_servers_take(files: tuple[str, ...], name: str, part: str) -> None:
    service = services(*files)[name]
    *_, said, file = command_of(service)
    assert (said, file) == ("--config", f"/etc/edgemux/{part}.toml")
    settings: Any = {"cloud": cloud.load, "edge": edge.load}[part](DOCKER / mounts(service)[file], {})
    assert settings.listen.insecure == (files == SECURE[:1])
    assert [str(settings.bundle), settings.listen.host] == ["/models/bundle", "0.0.0.0"]
    assert settings.listen.grpc_port == LISTEN[part].grpc_port
    secrets = {f"/run/secrets/{each}" for each in service.get("secrets", [])}
    text = (DOCKER / mounts(service)[file]).read_text() + " ".join(service.get("healthcheck", {}).get("test", []))
    assert set(re.findall(r"/run/secrets/[\w.]+", text)) == secrets
    assert float(service["stop_grace_period"].removesuffix("s")) > settings.listen.drain_s
    if part == "edge":
        assert settings.cloud.address == f"cloud:{LISTEN['cloud'].grpc_port}"
        assert str(settings.state_dir) in mounts(service)


def test_what_asks_and_scrapes_knows_the_ports() -> None:
    found = services("compose.yaml")
    assert f"agent:{LISTEN['edge'].grpc_port}" in found["traffic"]["command"]
    assert found["agent"]["ports"] == [
        f"127.0.0.1:{port}:{port}" for port in (LISTEN["edge"].http_port, LISTEN["edge"].grpc_port)
    ]
    for name, part in OURS.items():
        targets = yaml.safe_load((DOCKER / "targets" / f"{part}.yml").read_text())
        assert targets == [{"targets": [f"{name}:{LISTEN[part].metrics_port}"]}]


def test_who_talks_to_whom_shares_a_network() -> None:
    found = services("compose.yaml")
    for one, other in (
        ("agent", "cloud"),
        ("traffic", "agent"),
        ("prometheus", "agent"),
        ("prometheus", "cloud"),
        ("grafana", "prometheus"),
    ):
        assert set(found[one]["networks"]) & set(found[other]["networks"]), (one, other)
    assert not set(found["traffic"]["networks"]) & set(found["cloud"]["networks"])


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    service = services("compose.yaml")["grafana"]
    provisioning = DOCKER / mounts(service)["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    url = service["environment"][source["url"].removeprefix("$")]
    assert url == "http://prometheus:9090"
    assert services("compose.yaml")["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "edgemux.yml").read_text())["providers"]
    folder = DOCKER / mounts(service)[provider["options"]["path"]]
    assert {file.name for file in folder.glob("*.json")} == {"cloud.json", "edge-fleet.json", "one-edge.json"}


def test_prometheus_scrapes_the_same_with_and_without_tls() -> None:
    plain = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    secure = yaml.safe_load((DOCKER / "prometheus.secure.yml").read_text())
    for job in secure["scrape_configs"]:
        assert job.pop("scheme") == "https"
        assert job.pop("tls_config") == {"ca_file": "/run/secrets/ca.pem"}
        assert job.pop("authorization") == {"credentials_file": "/run/secrets/token"}
    assert secure == plain
    found = {file for job in plain["scrape_configs"] for each in job["file_sd_configs"] for file in each["files"]}
    assert found == {f"targets/{file.name}" for file in (DOCKER / "targets").iterdir()}


def test_certificates_that_are_there_are_left_alone(tmp_path: Path) -> None:
    command = [str(DOCKER / "make-secrets.sh"), str(tmp_path / "secrets")]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    made = {file.name: file.read_bytes() for file in (tmp_path / "secrets").iterdir()}
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    assert {file.name: file.read_bytes() for file in (tmp_path / "secrets").iterdir()} == made
    given = yaml.safe_load((DOCKER / "compose.secure.yaml").read_text())["secrets"]
    assert {Path(each["file"]).name for each in given.values()} <= made.keys()
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert (tmp_path / "secrets" / "ca.key").stat().st_mode & 0o077 == 0


def test_a_script_without_a_folder_says_how_to_use_it() -> None:
    done = subprocess.run([str(DOCKER / "make-secrets.sh")], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
