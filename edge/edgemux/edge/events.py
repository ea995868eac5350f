"""What the agent says about itself beside what every server does; see wire/events.py."""

from __future__ import annotations

from edgemux.wire.events import WIRE_EVENTS, Defect, Event, Failed, Name, Warned, Why


class BreakerOpened(Warned, frozen=True, kw_only=True):
    """A cloud is not asked for a while: calls to it failed, the latest with `cause`."""

    peer: int
    failures: int
    cause: Name


class BreakerClosed(Event, frozen=True, kw_only=True):
    """That cloud is asked again, after so many `seconds`."""

    peer: int
    seconds: float


class CloudLost(Failed, frozen=True, kw_only=True):
    """No cloud can be asked: the device answers everything."""

    reason: Name


class CloudFound(Event, frozen=True, kw_only=True):
    """A cloud can be asked again, after so many `seconds`."""

    seconds: float


class CloudUnserved(Failed, frozen=True, kw_only=True):
    """A cloud is not asked any more until it serves what is wanted: another model, or it refuses us."""

    peer: int
    model: Name
    reason: Name
    why: Why


class CloudServes(Event, frozen=True, kw_only=True):
    """That cloud serves what is wanted after all."""

    peer: int
    model: Name


class CertificateWithdrawn(Failed, frozen=True, kw_only=True):
    """The certificate of a bundle is not in force; docs/metrics.md says what each `reason` means."""

    model: Name
    reason: Name


class DriftAlarmed(Warned, frozen=True, kw_only=True):
    """The inputs or scores of a bundle without a certificate are not what they were; max softmax decides now."""

    model: Name
    reason: Name


class ReCertified(Event, frozen=True, kw_only=True):
    """A new certificate stands for it, for so many `levels`."""

    model: Name
    levels: int


class LevelChanged(Event, frozen=True, kw_only=True):
    """The scheduler gives a model another level, and this share of a core."""

    model: Name
    to: int
    before: int
    share: float


class LevelNotLoaded(Defect, frozen=True, kw_only=True):
    """A level cannot be loaded; the ones below it go on, and it is tried again."""

    model: Name


class PlanFailed(Defect, frozen=True, kw_only=True):
    """There is no new plan; the one before stays."""


class BudgetExhausted(Warned, frozen=True, kw_only=True):
    """A long-run budget holds less than one offload takes: the device answers what would be sent."""

    budget: Name


class BudgetRefilled(Event, frozen=True, kw_only=True):
    """That budget pays for offloads again, after so many `seconds`."""

    budget: Name
    seconds: float


class BundleFallback(Failed, frozen=True, kw_only=True):
    """The bundle that was asked for cannot be used; `serves`: what is served instead."""

    serves: Name
    why: Why


class BundleUnusable(Failed, frozen=True, kw_only=True):
    """The bundle before it cannot be used either."""

    why: Why


class ModelLoaded(Event, frozen=True, kw_only=True):
    """A bundle is in memory, with so many `levels` and `bytes` of files, those of heads included."""

    model: Name
    version: Name
    levels: int
    bytes: int


class NothingMayBeSent(Warned, frozen=True, kw_only=True):
    """`never_send_raw` is set, and the bundle has no split that may be used: the device answers alone."""

    model: Name


class SplitLeftAlone(Warned, frozen=True, kw_only=True):
    """A split is not used; docs/metrics.md says what each `reason` means. `why`: where it is the head that is wrong."""

    model: Name
    split: Name
    reason: Name
    why: Why | None = None


class SplitUsable(Event, frozen=True, kw_only=True):
    """That split may be used again, after so many `seconds`."""

    model: Name
    split: Name
    seconds: float


class SensorLost(Warned, frozen=True, kw_only=True):
    """A sensor says nothing, or what cannot be: its readings are unknown, and what is unknown does not limit."""

    sensor: Name
    cause: Name
    readings: Name | None = None
    error: Name | None = None


class WatchFailed(Defect, frozen=True, kw_only=True):
    """The watch for drift has ended with an error; the certificate is withdrawn."""

    model: Name


class RequestLogFailed(Warned, frozen=True, kw_only=True):
    """The request log cannot be written; it is tried again every second."""

    cause: Name


class StateUnwritable(Warned, frozen=True, kw_only=True):
    """state_dir cannot be written: budgets will start empty next time."""

    cause: Name


EDGE_EVENTS: tuple[type[Event], ...] = (
    BreakerOpened,
    BreakerClosed,
    CloudLost,
    CloudFound,
    CloudUnserved,
    CloudServes,
    CertificateWithdrawn,
    DriftAlarmed,
    ReCertified,
    LevelChanged,
    LevelNotLoaded,
    PlanFailed,
    BudgetExhausted,
    BudgetRefilled,
    BundleFallback,
    BundleUnusable,
    ModelLoaded,
    NothingMayBeSent,
    SplitLeftAlone,
    SplitUsable,
    SensorLost,
    WatchFailed,
    RequestLogFailed,
    StateUnwritable,
)
EVENTS = (*WIRE_EVENTS, *EDGE_EVENTS)
