"""The units for systemd: valid, and locked down as far as is promised."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
ANALYZE = shutil.which("systemd-analyze")
MOST_EXPOSURE = 1.5
# Newer than the systemd that checks, maybe; older ones say that they ignore it, and go on.
NEWER = ("RestartSteps", "RestartMaxDelaySec")

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze here to check units with")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *arguments], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
@pytest.mark.parametrize("part", ["edge", "cloud"])
def test_the_exposure_is_what_is_promised(part: str) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(UNITS / f"edgemux-{part}.service"))
    if "offline" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a file")
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSURE


@needs_systemd
@pytest.mark.parametrize("part", ["edge", "cloud"])
def test_every_line_is_one_that_systemd_knows(part: str, tmp_path: Path) -> None:
    text = (UNITS / f"edgemux-{part}.service").read_text()
    there = shutil.which("true")
    unit = tmp_path / f"edgemux-{part}.service"
    unit.write_text(re.sub(r"^(ExecStart|ExecReload)=\S+", rf"\1={there}", text, flags=re.MULTILINE))
    done = analyze("verify", "--man=no", str(unit))
    ours = [line for line in done.stderr.splitlines() if unit.name in line]
    assert [line for line in ours if not any(name in line for name in NEWER)] == []
    assert done.returncode == 0


@needs_systemd
def test_a_unit_with_a_slip_does_not_pass(tmp_path: Path) -> None:
    unit = tmp_path / "edgemux-slip.service"
    unit.write_text("[Service]\nExecStart=/nowhere/edgemux\nProtectSystm=strict\n")
    done = analyze("verify", "--man=no", str(unit))
    assert "ProtectSystm" in done.stderr
    assert done.returncode != 0


def test_both_units_are_the_same_but_for_the_part() -> None:
    edge, cloud = ((UNITS / f"edgemux-{part}.service").read_text().splitlines() for part in ("edge", "cloud"))
    differ = [line.partition("=")[0] for line, other in zip(edge, cloud, strict=True) if line != other]
    assert set(differ) <= {"Description", "ExecStart"} | {edge[0]}


@pytest.mark.parametrize("part", ["edge", "cloud"])
def test_a_service_that_ends_is_started_again_ever_later_and_killed_when_it_hangs(part: str) -> None:
    text = (UNITS / f"edgemux-{part}.service").read_text()
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#")
    assert settings["Restart"] == "always"
    assert settings["Type"] == "notify"
    assert (settings["RestartSec"], settings["RestartMaxDelaySec"]) == ("1s", "5min")
    assert int(settings["RestartSteps"]) > 1
    assert (settings["StartLimitIntervalSec"], settings["StartLimitBurst"]) == ("10min", "30")
    assert int(settings["WatchdogSec"].removesuffix("s")) > 0
    assert f"edgemux {part} --config" in settings["ExecStart"]
    assert "-HUP" in settings["ExecReload"]
