"""What integer arithmetic a device has, and which types suit it.

Measured on AVX2 without VNNI: U8S8 is the fastest pair, and its 16-bit pair sums saturate unless weights use 7 bits;
with VNNI the sums are 32 bits wide. ARM's dot products take two signed operands.
"""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from edgemux.multiplexer.errors import ConfigError

AUTO = "auto"


class Arithmetic(msgspec.Struct, frozen=True):
    """signed_activations: S8S8 instead of U8S8. reduce_range: weights in 7 bits."""

    signed_activations: bool
    reduce_range: bool


TARGETS: dict[str, Arithmetic] = {
    "x86-avx2": Arithmetic(signed_activations=False, reduce_range=True),
    "x86-vnni": Arithmetic(signed_activations=False, reduce_range=False),
    "arm64": Arithmetic(signed_activations=True, reduce_range=False),
}


def check_target(target: str) -> None:
    """Raises ConfigError for a target that is not known."""
    if target != AUTO and target not in TARGETS:
        raise ConfigError(f"target: {target!r} is not known; there are {AUTO}, {', '.join(TARGETS)}")


def this_device(cpu_info: str | None = None, machine: str | None = None) -> str:
    """The target that this device is. cpu_info: content of /proc/cpuinfo, read when None."""
    if (machine if machine is not None else platform.machine()) in ("aarch64", "arm64"):
        return "arm64"
    if cpu_info is None:
        path = Path("/proc/cpuinfo")
        cpu_info = path.read_text() if path.exists() else ""
    words = set(cpu_info.split())
    return "x86-vnni" if words & {"avx512_vnni", "avx_vnni"} else "x86-avx2"


def arithmetic_of(target: str) -> Arithmetic:
    """What suits a target; for ``auto``, what suits this device by its kind."""
    return TARGETS[this_device() if target == AUTO else target]
