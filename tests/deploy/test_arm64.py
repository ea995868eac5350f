"""The agent on 64-bit Arm, under emulation: what deploy/raspberry-pi/prove_arm64.py finds for Python 3.11.

For Python 3.13 only that all packages are there: serving with it is `make prove-arm64`, which takes a minute more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "raspberry-pi" / "prove_arm64.py"

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]


def proven(folder: Path, *options: str) -> dict[str, Any]:
    """What the script reports of one Python, whatever it thinks of it."""
    report = folder / "report.json"
    command = [sys.executable, str(SCRIPT), "--json", str(report), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(report.read_text())
    return dict(found)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return proven(tmp_path_factory.mktemp("proof"), "--python", "3.11", "--cpu", "none")


def test_the_agent_serves_on_arm64_and_answers_as_on_x86(report: dict[str, Any]) -> None:
    answers = report["answers"]
    assert {"cortex-a72 gRPC", "cortex-a72 REST", *(f"cortex-a76 level{n}" for n in range(1, 5))} == set(answers)
    for name, answer in answers.items():
        assert answer["inputs"] == 32, name
        assert answer["largest_difference"] <= 1e-4, name
        assert answer["other_labels"] == 0, name
    assert "cloud" in answers["cortex-a72 gRPC"]["by"]


def test_it_is_as_small_as_is_promised(report: dict[str, Any]) -> None:
    assert 100e6 < report["installed"]["with_bytecode"] <= 160e6
    assert 50e6 < report["resident"]["guest"] <= 110e6
    assert report["resident"]["guest"] < report["resident"]["with_emulator"]


def test_all_packages_are_there_for_python_3_13_too(tmp_path: Path) -> None:
    found = proven(tmp_path, "--python", "3.13", "--install-only")
    assert 100e6 < found["installed"]["without_bytecode"] <= 160e6
