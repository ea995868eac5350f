"""What the cloud server says about itself beside what every server does; see wire/events.py."""

from __future__ import annotations

from edgemux.wire.events import WIRE_EVENTS, Defect, Event, Failed, Name, Warned, Why


class ModelReady(Event, frozen=True, kw_only=True):
    """A model is served, with so many `versions`."""

    model: Name
    versions: int


class ModelGone(Event, frozen=True, kw_only=True):
    """A model was unloaded by an order; requests that are inside are answered."""

    model: Name


class ModelKept(Warned, frozen=True, kw_only=True):
    """New files of a model cannot be served: it is left as it was."""

    model: Name
    why: Why


class ModelAway(Warned, frozen=True, kw_only=True):
    """The server that answers for a model is away or not ready; it is asked again every second."""

    model: Name
    why: Why | None = None


class ModelSlow(Warned, frozen=True, kw_only=True):
    """A model takes longer than when it was measured: it goes over to a thread of its own."""

    seconds: float


class ModelNotLoaded(Defect, frozen=True, kw_only=True):
    """A library could not load a file."""

    file: Name


class ModelNotClosed(Defect, frozen=True, kw_only=True):
    """A model could not be closed; its memory may stay taken."""


class ModelNotRecorded(Warned, frozen=True, kw_only=True):
    """A model cannot be recorded on this GPU and runs without; `graphs = false` keeps it from being tried."""

    error: Name
    at: Name


class BatchFailed(Defect, frozen=True, kw_only=True):
    """A model failed; all requests of the batch were told so."""

    rows: int


class ProcessEnded(Failed, frozen=True, kw_only=True):
    """One of several processes has ended; another one starts after `pause_s`."""

    process: int
    exit_code: int
    pause_s: float


class ProcessNotStarted(Failed, frozen=True, kw_only=True):
    """One of several processes cannot start again."""

    process: int
    why: Why


class RayFailed(Failed, frozen=True, kw_only=True):
    """Ray could not start, or bring up the replicas; the end of what it says of that."""

    text: Name


CLOUD_EVENTS: tuple[type[Event], ...] = (
    ModelReady,
    ModelGone,
    ModelKept,
    ModelAway,
    ModelSlow,
    ModelNotLoaded,
    ModelNotClosed,
    ModelNotRecorded,
    BatchFailed,
    ProcessEnded,
    ProcessNotStarted,
    RayFailed,
)
EVENTS = (*WIRE_EVENTS, *CLOUD_EVENTS)
