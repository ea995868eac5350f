"""Writes pins/*.txt: the exact packages of the images, each with the digests of its wheels for amd64 and arm64.

    python deploy/docker/pin.py

Run it when a requirement in pyproject.toml changes, or to take newer packages; it asks the index that pip is set up
for, and installs nothing. Fails when a package has no wheel for one of the architectures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PINS = Path(__file__).parent / "pins"
# Of the image that the Dockerfiles start from.
PYTHON = "3.11"
PLATFORMS = {
    "linux/amd64": ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "linux/arm64": (
        *("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
    ),
}


def requirements() -> dict[str, list[str]]:
    """What each file is to satisfy, from pyproject.toml."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras, everywhere = about["project"]["optional-dependencies"], about["project"]["dependencies"]
    return {
        "build": about["build-system"]["requires"],
        "cloud": everywhere + extras["cloud"],
        "edge": everywhere + extras["edge"],
    }


def resolve(wanted: list[str], tags: tuple[str, ...]) -> list[dict[str, Any]]:
    """What pip would install for an architecture: its report's entries."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run"]
        where = ["--target", folder, "--implementation", "cp", "--python-version", PYTHON, "--only-binary=:all:"]
        platforms = [word for tag in tags for word in ("--platform", tag)]
        subprocess.run([*command, *where, *platforms, "--report", str(report), *wanted], check=True)
        found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
        return found


def pinned(wanted: list[str]) -> str:
    """The lines of one file: a version that holds for both architectures, and the digests of both wheels."""
    digests: dict[str, set[str]] = {}
    for tags in PLATFORMS.values():
        for entry in resolve(wanted, tags):
            name = entry["metadata"]["name"].lower().replace("_", "-")
            digest = entry["download_info"]["archive_info"]["hashes"]["sha256"]
            digests.setdefault(f"{name}=={entry['metadata']['version']}", set()).add(digest)
    names = [line.partition("==")[0] for line in digests]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SystemExit(f"the architectures have different versions of {', '.join(sorted(twice))}")
    lines = [
        " \\\n    ".join([line, *(f"--hash=sha256:{digest}" for digest in sorted(digests[line]))])
        for line in sorted(digests)
    ]
    return "# Made by deploy/docker/pin.py.\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name, wanted in requirements().items():
        (PINS / f"{name}.txt").write_text(pinned(wanted))
