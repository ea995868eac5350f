"""Findings about what is served: ONNX Runtime, bundles, and what each level takes on this device. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgemux.edge.budget import LEAST_RATE, Readings, cpu_share
from edgemux.edge.heads import Alone
from edgemux.multiplexer.findings import Finding, Findings


class RuntimeSeen(msgspec.Struct, frozen=True):
    """ONNX Runtime: its version, its execution providers, whether its reports to its vendor are off."""

    version: str
    providers: tuple[str, ...]
    telemetry_off: bool


def runtime_findings(seen: RuntimeSeen) -> list[Finding]:
    """Whether it computes on CPUs, and keeps to itself."""
    found = Findings("onnxruntime")
    says = f"{seen.version}, {', '.join(seen.providers) or 'no providers'}"
    if "CPUExecutionProvider" in seen.providers:
        found.ok("library", f"{says}; models run on CPUExecutionProvider")
    else:
        found.problem("library", says, "install the plain package: pip install --force-reinstall onnxruntime", True)
    if seen.telemetry_off:
        found.ok("telemetry", "off")
    else:
        found.problem("telemetry", "on: it reports to its vendor", "set ORT_DISABLE_TELEMETRY=1 before it starts")
    return found.all


class BundleSeen(msgspec.Struct, frozen=True):
    """A bundle of the configuration: its setting, its name and version, what is wrong with it (empty: nothing).

    others: what is wrong with files that only the cloud's server needs, empty for nothing. certified: the most of all
    inputs that are kept here and differ from the cloud, at any level; None where there is no certificate.
    """

    setting: str
    name: str = ""
    version: str = ""
    trouble: str = ""
    others: str = ""
    certified: float | None = None
    levels: int = 0


# What helps against which trouble, by the words of the bundle's errors; a copy against all others.
_WAYS = (
    ("no such bundle directory", "correct the path: a bundle is a folder with a manifest.json"),
    ("(Permission denied)", "let the agent's user read it"),
)
_COPY = "copy it again, whole (edgemux bundle verify DIR names what is wrong)"


def bundle_findings(seen: BundleSeen, instead: str | None = None) -> list[Finding]:
    """Whether it is what its manifest says. instead: what is served where it is not, None for nothing."""
    found = Findings("bundle")
    if seen.trouble:
        fix = next((way for sign, way in _WAYS if sign in seen.trouble), _COPY)
        follows = f"; {instead} instead" if instead else ""
        found.problem(seen.setting, f"{seen.trouble}{follows}", fix, stops=instead is None)
        return found.all
    found.ok(seen.setting, f"{seen.name} version {seen.version}: {seen.levels} levels, digests and golden answers hold")
    if seen.others:
        found.note(
            f"{seen.setting}: other files", f"{seen.others}; the agent does not need it", "copy the bundle again"
        )
    if seen.certified is None:
        says = "none: nothing bounds how often answers kept here differ from the cloud's"
        found.note(f"{seen.setting}: certificate", says, "make the bundle with enough inputs (docs/bring-your-own.md)")
    else:
        says = f"at most {seen.certified:.1%} of inputs are kept here and differ from the cloud's answer"
        found.ok(f"{seen.setting}: certificate", says)
    return found.all


class LevelTiming(msgspec.Struct, frozen=True):
    """A level on this device, one input, gates not counted: medians and the worst of ``runs`` runs, in s; what its
    bundle's own machine took (s)."""

    name: str
    level: int
    runs: int
    median_s: float
    worst_s: float
    cpu_s: float
    bundle_s: float


class Wanted(msgspec.Struct, frozen=True):
    """What the configuration wants of an answer: its processing time, its deadline less margins, its share of CPU."""

    latency_s: float
    deadline_s: float
    compute_share: float


def level_findings(
    name: str, timings: Sequence[LevelTiming], wanted: Wanted, readings: Readings, left_out: int = 0
) -> list[Finding]:
    """What each level takes here, against what the configuration allows it, now that the device is as it is.

    left_out: levels of the bundle above these, for which limits.memory_bytes has no room.
    """
    found = Findings("levels")
    if left_out:
        says = f"the highest {left_out} of {left_out + len(timings)} levels are never loaded: limits.memory_bytes"
        found.note(f"{name} levels", says, "raise limits.memory_bytes, if their accuracy is worth the memory")
    share = cpu_share(readings) * wanted.compute_share
    for timing in timings:
        about = f"{name} level {timing.level}"
        rate = share / timing.cpu_s if timing.cpu_s > 0 else float("inf")
        says = (
            f"{timing.median_s * 1e3:.2f} ms (p50 of {timing.runs}, worst {timing.worst_s * 1e3:.2f}), "
            f"CPU {timing.cpu_s * 1e3:.2f} ms; up to {rate:.0f} inputs/s with the CPU there is now"
        )
        if timing.bundle_s > 0 and timing.median_s > 0:
            says += f"; {timing.median_s / timing.bundle_s:.1f} times what the bundle says"
        if timing.median_s > wanted.deadline_s:
            fix = "raise request.default_timeout_s, or serve a smaller model"
            if timing.level == 1:
                found.problem(about, f"{says}: later than the deadline of requests that bring none", fix)
            else:
                found.note(about, f"{says}: later than the deadline, so it is not used", fix)
        elif rate < LEAST_RATE:
            found.note(about, f"{says}: not chosen at one input a second", "raise limits.compute_share, or free CPU")
        elif timing.median_s > wanted.latency_s:
            says += f": more than the {wanted.latency_s * 1e3:g} ms that are wanted, so a lower level is preferred"
            found.note(about, says, "raise latency_s of the application if that much is fine")
        else:
            found.ok(about, says)
    return found.all


FIXES = {
    Alone.OFF: "see split.use",
    Alone.LOSS: "raise split.max_loss if that much may be lost",
    Alone.HEAD_WRONG: "see the log for what is wrong; reinstall onnxruntime, or the bundle",
    Alone.PASSES_ON: "make a split whose head computes something",
    Alone.MEMORY: "raise limits.memory_bytes",
}


def split_findings(
    model: str, usable: Sequence[str], alone: Mapping[str, Alone], never_send_raw: bool
) -> list[Finding]:
    """Which splits may be used, and why not the others; what that means where whole inputs must not leave."""
    found = Findings("splits")
    if usable:
        whole = "; whole inputs never leave this device" if never_send_raw else ""
        found.ok(model, f"{len(usable)} of {len(usable) + len(alone)} may be used: {', '.join(usable)}{whole}")
    elif never_send_raw:
        says = "none may be used, and whole inputs must not leave: the device answers alone"
        found.problem(model, says, "name a bundle with splits, raise split.max_loss, or unset split.never_send_raw")
    for name, why in alone.items():
        tell = found.problem if why is Alone.HEAD_WRONG else found.note
        tell(f"{model}.{name}", f"left alone: {why.value}", FIXES[why])
    return found.all
