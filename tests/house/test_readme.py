"""The README's blocks are run, as a reader would run them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVERS = ("edgemux cloud", "edgemux edge")
# What a reader runs once, at length, and the tests elsewhere: here it is only checked to be there.
LONG = ("edgemux build", "edgemux compress")


def blocks() -> list[tuple[str, str]]:
    """(language, text) in the order of the page."""
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def lines_of(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture
def servers() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.terminate()
    for process in started:
        process.communicate(timeout=60)


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_every_block_of_the_readme_works_in_the_order_of_the_page(servers: list[subprocess.Popen[str]]) -> None:
    assert {language for language, _ in blocks()} == {"bash", "python"}
    for language, text in blocks():
        if language == "python":
            run([sys.executable, "-c", text])
        else:
            for line in lines_of(text):
                follow(line, servers)


def follow(line: str, servers: list[subprocess.Popen[str]]) -> None:
    """Do what a line says; a server is started and stays."""
    if line.startswith(SERVERS):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(shlex.split(line), cwd=ROOT, env=environment(), text=True, **pipes)  # type: ignore[call-overload]
        servers.append(process)
        ready = process.stdout.readline()
        assert " ready " in ready, f"{line}: {process.communicate(timeout=30)}"
    elif line.startswith("make "):
        run(["make", "-n", *shlex.split(line)[1:]])
    elif line.startswith(LONG):
        run([*shlex.split(line)[:2], "--help"])
    else:
        run(shlex.split(line))


def run(command: list[str]) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-500:]}{done.stderr[-800:]}"
