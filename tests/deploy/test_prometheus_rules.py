"""The rules and their tests, as Prometheus' own tool sees them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.deploy

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"


def promtool(*arguments: str, cwd: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=100, check=False)


def test_the_configuration_and_all_rules_are_sound() -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rule files found" in done.stdout


@pytest.mark.parametrize("scenario", sorted(path.name for path in (PROMETHEUS / "tests").glob("*.yml")))
def test_rules_say_what_their_tests_expect(scenario: str) -> None:
    done = promtool("test", "rules", f"tests/{scenario}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "right", "wrong", "scenario"),
    [
        ("alerts.yml", 'up{job="edgemux-edge"} == 0', 'up{job="edgemux-edge"} == 1', "alerts-edge.yml"),
        ("alerts.yml", "for: 15m", "for: 10m", "alerts-offload.yml"),
        ("recording.yml", "sum by (model, variant)", "max by (model, variant)", "recording.yml"),
    ],
)
def test_a_rule_that_is_wrong_fails_its_tests(tmp_path: Path, file: str, right: str, wrong: str, scenario: str) -> None:
    folder = shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    rules = folder / "rules" / file
    assert right in rules.read_text()
    rules.write_text(rules.read_text().replace(right, wrong))
    assert promtool("check", "rules", f"rules/{file}", cwd=folder).returncode == 0
    assert promtool("test", "rules", f"tests/{scenario}", cwd=folder).returncode != 0
