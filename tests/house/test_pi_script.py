"""deploy/raspberry-pi/install.sh says why it cannot go on, in one line, before it changes anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "deploy" / "raspberry-pi"
SCRIPT = FOLDER / "install.sh"
# Programs that say what they would on a Pi with a 64-bit system; tests replace one of them.
PI = {
    "uname": 'case $1 in -s) echo Linux ;; *) echo "aarch64" ;; esac',
    "dpkg": "echo arm64",
    "id": "echo 1000",
    "df": "echo head; echo disk 1 1 9000000 1 /",
    "python3": f'exec "{sys.executable}" "$@"',
}


def run(folder: Path, *options: str, **programs: str) -> subprocess.CompletedProcess[str]:
    """The script, among programs whose text is ``programs`` or PI's."""
    for name, text in (PI | programs).items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    variables = {"PATH": f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder)}
    return subprocess.run(
        [shutil.which("sh") or "sh", str(SCRIPT), *options],
        capture_output=True,
        text=True,
        env=variables,
        timeout=60,
        check=False,
    )


def test_on_a_64_bit_pi_it_says_what_it_would_do(tmp_path: Path) -> None:
    done = run(tmp_path, "--dry-run", "--cloud", "[2001:db8::1]:8001")
    assert done.returncode == 0, done.stderr
    assert "would: make a Python environment for edge" in done.stdout
    assert "Nothing was done" in done.stdout


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({"uname": 'case $1 in -s) echo Linux ;; *) echo "armv7l" ;; esac'}, "64-bit only: this is armv7l"),
        ({"dpkg": "echo armhf"}, "64-bit only: the kernel is, but this system is armhf"),
        ({"python3": 'case $2 in *calcsize*) exit 1 ;; esac; exec true "$@"'}, "is a 32-bit program"),
        ({"uname": 'case $1 in -s) echo Linux ;; *) echo "riscv64" ;; esac'}, "no packages for riscv64"),
        ({"uname": "echo Darwin"}, "Linux only"),
        ({"python3": 'case $2 in *version_info*) exit 1 ;; esac; exec true "$@"'}, "older than 3.11"),
        ({"python3": 'case $2 in *ensurepip*) exit 1 ;; esac; exec true "$@"'}, "apt install python3-venv"),
        ({"df": "echo head; echo disk 1 1 9000 1 /"}, "too little disk: 9 MB free"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, programs: dict[str, str], reason: str) -> None:
    done = run(tmp_path, "--dry-run", **programs)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert "would" not in done.stdout


def test_what_lies_where_it_is_started_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap, programs = tmp_path / "trap", tmp_path / "programs"
    for folder in (trap, programs):
        folder.mkdir()
    for name in ("struct", "venv", "ensurepip"):
        (trap / f"{name}.py").write_text("open('sprung', 'w')\n")
    monkeypatch.chdir(trap)
    for python in ("python3", "../programs/python3"):
        done = run(programs, "--dry-run", "--python", python)
        assert done.returncode == 0, done.stderr
    assert not (trap / "sprung").exists()


def test_it_changes_nothing_unless_it_is_root(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "run it as root: sudo" in done.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--cloud", 'a:1"\nx = "'], "--cloud must be HOST:PORT"),
        (["--cloud", 'a:1\nx = "y"'], "--cloud must be HOST:PORT"),
        (["--cloud"], "--cloud needs a value"),
        (["--part", "fridge"], "--part must be edge or cloud"),
        (["--part", "cloud", "--cloud", "a:1"], "--cloud is for the agent"),
        (["--bundle", "nowhere"], "--bundle: there is no bundle"),
        (["--wheel", "nowhere.whl"], "--wheel: there is no such file"),
        (["--purge"], "--purge goes with --uninstall"),
        (["--frobnicate"], "unknown option --frobnicate"),
    ],
)
def test_wrong_use_ends_with_2_and_the_option(tmp_path: Path, options: list[str], reason: str) -> None:
    done = run(tmp_path, *options)
    assert done.returncode == 2
    assert reason in done.stderr


def test_every_option_is_in_its_help() -> None:
    text = SCRIPT.read_text()
    done = subprocess.run(["sh", str(SCRIPT), "--help"], capture_output=True, text=True, timeout=60, check=True)
    for line in text.splitlines():
        word = line.strip().partition(")")[0]
        if word.startswith("--"):
            assert word in done.stdout, word
