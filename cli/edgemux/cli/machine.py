"""What a machine is, and what is installed on it, against what edgemux needs. Nothing of an extra is imported:
it is asked first, also where nothing that the agent needs is installed."""

from __future__ import annotations

import platform
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import msgspec

from edgemux.multiplexer.findings import Finding, Findings

PROC = Path("/proc")
OLDEST_PYTHON = (3, 11)
TESTED_PYTHONS = ((3, 11), (3, 13))
# The C library of Debian 10 and newer, which the wheels are made for.
OLDEST_GLIBC = (2, 28)
# What is served with on a machine, by the extras of pyproject.toml.
EDGE = "edge"
_REQUIREMENT = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*\(?(?P<bounds>[^;)]*)\)?\s*(?:;(?P<marker>.*))?$"
)
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w.-]+)["']""")
_BOUND = re.compile(r"(?P<sign><=|>=|==|!=|~=|<|>)\s*(?P<number>[0-9][0-9.]*)")

# Instructions that decide how quick ONNX Runtime's kernels are, and what they are good for.
X86_FLAGS = {
    "avx2": "float32 at full speed",
    "avx512f": "wider float32",
    "avx512_vnni": "quick int8",
    "avx_vnni": "quick int8",
}
ARM_FLAGS = {
    "asimd": "float32 at full speed",
    "asimddp": "quick int8",
    "i8mm": "quicker int8",
    "bf16": "quick bfloat16",
}


class Machine(msgspec.Struct, frozen=True):
    """What is seen: kernel's name, its word for the CPU, bits of a Python pointer, flags of the CPU, its model,
    (name, version) of the C library, Python's version."""

    system: str
    architecture: str
    bits: int
    flags: frozenset[str]
    model: str
    libc: tuple[str, str]
    python: tuple[int, int, int]


class Package(msgspec.Struct, frozen=True):
    """A distribution that is needed: the extra that needs it ("" for all), bounds of its version, what is there."""

    name: str
    extra: str
    bounds: str
    there: str | None


def look_at_machine(proc: Path = PROC) -> Machine:
    """This machine; ``proc``: where /proc is. Raises nothing."""
    try:
        text = (proc / "cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    flags = fields.get("flags") or fields.get("features") or ""
    # On Arm the machine's name stands under "Model"; on x86 that is a number.
    named = fields.get("model name") or fields.get("model") or ""
    model = "" if named.isdigit() else named
    return Machine(
        platform.system(),
        platform.machine(),
        struct.calcsize("P") * 8,
        frozenset(flags.lower().split()),
        model,
        platform.libc_ver(),
        sys.version_info[:3],
    )


def machine_findings(machine: Machine) -> list[Finding]:
    """What the machine is fit for."""
    found = Findings("machine")
    _system(machine, found)
    family = {"x86_64": X86_FLAGS, "amd64": X86_FLAGS, "aarch64": ARM_FLAGS, "arm64": ARM_FLAGS}
    known = family.get(machine.architecture.lower())
    if known is not None and machine.bits == 64:
        _flags(machine, known, found)
    elif machine.bits == 64:
        found.note("CPU", "ONNX Runtime's packages are for x86-64 and 64-bit Arm", "build onnxruntime for this machine")
    _python(machine, found)
    return found.all


def _system(machine: Machine, found: Findings) -> None:
    what = f"{machine.system} on {machine.architecture}, {machine.bits} bits"
    if machine.bits != 64:
        fix = "install a 64-bit system, on a Raspberry Pi 3 or newer the 64-bit Raspberry Pi OS"
        if machine.architecture in ("aarch64", "x86_64"):
            what += ": a 32-bit Python on a 64-bit kernel"
        found.problem("system", f"{what}; 32 bits are not supported, ONNX Runtime has no packages for them", fix, True)
    elif machine.system != "Linux":
        found.note("system", f"{what}; agents are tested on Linux only", "use Linux for what others rely on")
    else:
        found.ok("system", what if not machine.model else f"{what}, {machine.model}")
    name, number = machine.libc
    if machine.system == "Linux" and name != "glibc":
        found.note(
            "C library",
            "not glibc (Alpine's musl?): ONNX Runtime's packages are made for glibc",
            "use a Debian or another system with glibc",
        )
    elif name == "glibc" and numbers(number) < OLDEST_GLIBC:
        found.problem(
            "C library", f"glibc {number}, the packages need 2.28 or newer", "install Debian 11 or newer", stops=True
        )


def _flags(machine: Machine, known: Mapping[str, str], found: Findings) -> None:
    if not machine.flags:
        found.note("CPU", "its instructions are not known: /proc/cpuinfo does not say")
        return
    there = [f"{flag} ({use})" for flag, use in known.items() if flag in machine.flags]
    first = next(iter(known))
    if first not in machine.flags:
        found.note("CPU", f"no {first}: models run, at a fraction of the speed", "see the level timings below")
        return
    int8 = [flag for flag, use in known.items() if "int8" in use]
    says = ", ".join(there)
    if not any(flag in machine.flags for flag in int8):
        says += f"; none of {', '.join(int8)}: int8 arithmetic gains little here, int8 storage still saves memory"
    found.ok("CPU", says)


def _python(machine: Machine, found: Findings) -> None:
    number = ".".join(map(str, machine.python))
    if machine.python[:2] < OLDEST_PYTHON:
        found.problem("Python", f"{number}; 3.11 or newer is needed", "install Debian 12 or newer", stops=True)
    elif machine.python[:2] not in TESTED_PYTHONS and machine.python[:2] > max(TESTED_PYTHONS):
        found.note("Python", f"{number}; tested are 3.11 and 3.13", "if a package is missing, use 3.13")
    else:
        found.ok("Python", number)


def look_at_packages() -> list[Package]:
    """Every distribution that edgemux says it needs, with the version that is installed. Raises nothing."""
    try:
        required = requires("edgemux") or []
    except PackageNotFoundError:
        return []
    return [needed(line, _installed(line)) for line in required]


def needed(line: str, there: str | None) -> Package:
    """A line of a distribution's metadata, "grpcio<2,>=1.76; extra == 'edge'", as a value."""
    match = _REQUIREMENT.match(line.strip())
    assert match is not None, line
    extra = _EXTRA.search(match["marker"] or "")
    return Package(match["name"], "" if extra is None else extra[1], match["bounds"].strip(), there)


def _installed(line: str) -> str | None:
    match = _REQUIREMENT.match(line.strip())
    try:
        return version(match["name"]) if match is not None else None
    except PackageNotFoundError:
        return None


def package_findings(packages: Sequence[Package]) -> list[Finding]:
    """What of the agent's packages is missing or of another version; which other extras are complete."""
    found = Findings("packages")
    if not packages:
        found.note("edgemux", "not installed as a package: what it needs is not known", "pip install '.[edge]'")
        return found.all
    agents = [package for package in packages if package.extra in ("", EDGE)]
    missing = [package.name for package in agents if package.there is None]
    for name in missing:
        found.problem(name, "not installed", "pip install '.[edge]' in a checkout", stops=True)
    for package in agents:
        if package.there is not None and not fits(package.there, package.bounds):
            says = f"{package.there} is installed, {package.bounds} is what is tested"
            found.problem(package.name, says, f"pip install '{package.name}{package.bounds}'")
    if all(finding.grade == "ok" for finding in found.all):
        found.ok("extra edge", ", ".join(f"{package.name} {package.there}" for package in agents))
    _others(packages, found)
    return found.all


def _others(packages: Sequence[Package], found: Findings) -> None:
    extras = sorted({package.extra for package in packages} - {"", EDGE, "dev"})
    there = [extra for extra in extras if all(p.there is not None for p in packages if p.extra == extra)]
    absent = [extra for extra in extras if extra not in there]
    says = f"complete: {', '.join(there) or 'none'}"
    if absent:
        says += f"; not here, and not needed by an agent: {', '.join(absent)}"
    found.ok("other extras", says)


def fits(number: str, bounds: str) -> bool:
    """Whether a version is within bounds like "<2,>=1.76"; what is not understood counts as within."""
    have = numbers(number)
    for bound in _BOUND.finditer(bounds):
        wanted = numbers(bound["number"])
        width = max(len(have), len(wanted))
        one, other = (side + (0,) * (width - len(side)) for side in (have, wanted))
        holds = {
            "<": one < other,
            "<=": one <= other,
            ">": one > other,
            ">=": one >= other,
            "==": one == other,
            "!=": one != other,
        }
        if not holds.get(bound["sign"], True):
            return False
    return True


def numbers(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with, () where there are none; a local or pre-release part is left out."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", text)
    return () if match is None else tuple(map(int, match[0].split(".")))
