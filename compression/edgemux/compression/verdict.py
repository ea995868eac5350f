"""Keep a pass or not? A pure judgement of figures measured before and after it."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal

import msgspec

# Medians of interleaved runs differ by this much on a shared machine without any cause.
NOISE = 0.05
Gained = Literal["speed", "storage", "both", "accuracy", "nothing"]


class Figures(msgspec.Struct, frozen=True):
    """What a form of a model was measured to be.

    accuracy: share of the n test inputs, with its 95 % interval. bytes: of the ONNX file; stored_bytes: of the smallest
    form in which it can be kept (the same, or a container's). memory_bytes: private memory of a process that loaded it
    and ran it once, less the runtime's own; None when not measured. ms: median CPU time of one input on one thread.
    """

    accuracy: float
    interval: tuple[float, float]
    params: int
    macs: int
    bytes: int
    stored_bytes: int
    memory_bytes: int | None
    ms: float


class Verdict(msgspec.Struct, frozen=True):
    """kept or rejected, what it gained, and one line for people."""

    kept: bool
    gained: Gained
    line: str


def judge(label: str, gives: Set[str], before: Figures, after: Figures, forced: bool = False) -> Verdict:
    """The verdict on a pass.

    A pass that made the model slower is rejected, and so is one that promised speed or storage and gave neither;
    ``forced`` keeps both and says so. One that promises nothing prepares for the next and is always kept.
    """
    speed = before.ms / after.ms
    size = before.stored_bytes / after.stored_bytes
    points = 100.0 * (after.accuracy - before.accuracy)
    reason = _reason_against(label, gives, speed, size, points)
    if reason is not None:
        return Verdict(forced, "nothing", f"{reason}: {'kept, forced' if forced else 'rejected'}")
    faster, smaller = speed > 1.0 + NOISE, size > 1.0 + NOISE
    if "speed" not in gives and "storage" not in gives:
        return Verdict(True, "accuracy", f"{label}: {points:+.2f} points")
    if faster and smaller:
        return Verdict(True, "both", f"{label}: {speed:.2f}× faster, {size:.2f}× smaller here")
    if faster:
        return Verdict(True, "speed", f"{label}: {speed:.2f}× faster here, size {size:.2f}×")
    return Verdict(True, "storage", f"{label}: storage only, {size:.2f}× smaller at {speed:.2f}× the speed")


def _reason_against(label: str, gives: Set[str], speed: float, size: float, points: float) -> str | None:
    if speed < 1.0 - NOISE and gives:
        return f"{label} is {speed:.2f}× here"
    promised = gives & {"speed", "storage"}
    if promised and speed <= 1.0 + NOISE and size <= 1.0 + NOISE:
        return f"{label} gives neither speed ({speed:.2f}×) nor storage ({size:.2f}×) here"
    if gives == {"accuracy"} and points < 0.0:
        return f"{label} lost {-points:.2f} points"
    return None
