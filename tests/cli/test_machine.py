"""What a machine is, and what is installed on it: pure parts, with machines that are not at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.cli.machine import (
    Machine,
    Package,
    fits,
    look_at_machine,
    look_at_packages,
    machine_findings,
    needed,
    numbers,
    package_findings,
)
from edgemux.multiplexer.findings import Grade, can_serve

PI5 = Machine(
    "Linux",
    "aarch64",
    64,
    frozenset({"fp", "asimd", "asimdhp", "asimddp"}),
    "Raspberry Pi 5 Model B Rev 1.0",
    ("glibc", "2.36"),
    (3, 11, 2),
)


def grades(machine: Machine) -> dict[str, Grade]:
    return {finding.about: finding.grade for finding in machine_findings(machine)}


def test_a_raspberry_pi_5_is_fine() -> None:
    assert set(grades(PI5).values()) == {Grade.OK}
    assert any("asimddp (quick int8)" in finding.says for finding in machine_findings(PI5))


def test_a_raspberry_pi_4_is_fine_and_told_that_int8_gains_little() -> None:
    pi4 = msgspec.structs.replace(PI5, flags=frozenset({"asimd"}))
    assert set(grades(pi4).values()) == {Grade.OK}
    assert any("int8 arithmetic gains little" in finding.says for finding in machine_findings(pi4))


@pytest.mark.parametrize("architecture", ["armv7l", "aarch64", "i686"])
def test_32_bits_are_refused_also_on_a_64_bit_kernel(architecture: str) -> None:
    found = machine_findings(msgspec.structs.replace(PI5, architecture=architecture, bits=32))
    assert not can_serve(found)
    assert any("64-bit Raspberry Pi OS" in finding.fix for finding in found)


@pytest.mark.parametrize(
    ("change", "about", "grade"),
    [
        ({"flags": frozenset()}, "CPU", Grade.NOTE),
        ({"flags": frozenset({"fp"})}, "CPU", Grade.NOTE),
        ({"libc": ("", "")}, "C library", Grade.NOTE),
        ({"libc": ("glibc", "2.24")}, "C library", Grade.PROBLEM),
        ({"python": (3, 9, 2)}, "Python", Grade.PROBLEM),
        ({"python": (3, 15, 0)}, "Python", Grade.NOTE),
        ({"architecture": "riscv64"}, "CPU", Grade.NOTE),
        ({"system": "Darwin"}, "system", Grade.NOTE),
    ],
)
def test_what_a_machine_lacks_is_told(change: dict[str, object], about: str, grade: Grade) -> None:
    assert grades(msgspec.structs.replace(PI5, **change))[about] is grade


def test_a_machine_is_seen_from_its_cpuinfo(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: fp\n\nModel\t\t: Raspberry Pi 5\n"
    )
    seen = look_at_machine(tmp_path)
    assert seen.flags == {"fp", "asimd", "asimddp"}
    assert seen.model == "Raspberry Pi 5"
    (tmp_path / "cpuinfo").write_text("model\t: 1\nmodel name\t: A Processor\nflags\t: avx2 fma\n")
    assert look_at_machine(tmp_path).model == "A Processor"
    assert look_at_machine(tmp_path / "nowhere").flags == frozenset()


def test_this_machine_can_run_these_tests() -> None:
    assert can_serve([*machine_findings(look_at_machine()), *package_findings(look_at_packages())])


@pytest.mark.parametrize(
    ("line", "package"),
    [
        ("grpcio<2,>=1.76; extra == 'edge'", ("grpcio", "edge", "<2,>=1.76")),
        ("numpy<3,>=1.26", ("numpy", "", "<3,>=1.26")),
        ('ray[serve-grpc]<2.61,>=2.60; extra == "ray"', ("ray", "ray", "<2.61,>=2.60")),
        ("edgemux[cloud,edge]; extra == 'dev'", ("edgemux", "dev", "")),
    ],
)
def test_lines_of_the_metadata_are_read(line: str, package: tuple[str, str, str]) -> None:
    assert needed(line, None) == Package(*package, None)


PARTS = st.lists(st.integers(0, 99), min_size=1, max_size=4)


@settings(deadline=None)  # machines that are shared
@given(PARTS, PARTS)
def test_versions_are_compared_as_numbers(one: list[int], other: list[int]) -> None:
    a, b = ".".join(map(str, one)), ".".join(map(str, other))
    assert fits(a, f"<{b}") != fits(a, f">={b}")
    assert fits(a, f">{b}") != fits(a, f"<={b}")
    assert fits(a, f"=={b}") == (fits(a, f">={b}") and fits(a, f"<={b}"))
    assert fits(a, f"=={b}") != fits(a, f"!={b}")


def test_a_version_is_its_leading_numbers() -> None:
    assert numbers("2.13.0+cpu") == (2, 13, 0)
    assert numbers("1.10rc1") == (1, 10)
    assert numbers("unknown") == ()
    assert fits("2.13.0+cpu", "==2.13.0")
    assert fits("1.9", "<1.10")


def test_a_missing_package_of_the_agent_s_stops_it_and_one_of_another_extra_does_not() -> None:
    there = Package("numpy", "", ">=1.26", "2.4")
    missing = package_findings([there, Package("grpcio", "edge", ">=1.76", None)])
    assert not can_serve(missing)
    others = package_findings([there, Package("torch", "train", "==2.13.0", None)])
    assert can_serve(others)
    assert any("train" in finding.says for finding in others)


def test_a_package_of_another_version_is_a_problem_and_is_tried() -> None:
    found = package_findings([Package("grpcio", "edge", ">=1.76,<2", "1.51")])
    assert can_serve(found)
    assert [finding.grade for finding in found if finding.about == "grpcio"] == [Grade.PROBLEM]


def test_where_the_agent_cannot_be_imported_the_doctor_still_speaks() -> None:
    program = "import sys; sys.modules['grpc'] = None\nfrom edgemux.cli.main import run\nsys.exit(run(['doctor']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stderr
    assert "grpc: installed, but it cannot be imported" in done.stdout
