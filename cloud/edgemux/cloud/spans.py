"""What the cloud's spans say, where a request is recorded; see wire/tracing.py."""

from __future__ import annotations

from collections.abc import Sequence

from edgemux.cloud.statistics import Outcome
from edgemux.wire.tracing import Attribute, Attributes, Stage, Trace

# Refusals that are the client's own doing.
_THEIRS = (Outcome.INVALID, Outcome.CANCELLED)


def finish(trace: Trace, model: str, outcome: Outcome, left_s: float | None) -> None:
    """A request is over; ``left_s``: of its client's deadline."""
    if not trace.recording:
        return
    said: Attributes = {Attribute.MODEL: model, Attribute.OUTCOME: outcome.value}
    if left_s is not None:
        said[Attribute.DEADLINE_LEFT_S] = left_s
    trace.put(said)
    trace.end(None if outcome is Outcome.ANSWERED or outcome in _THEIRS else outcome.value)


def batch_ran(queued: Sequence[tuple[Trace, float]], took_s: float, rows: int, requests: int, well: bool) -> None:
    """A batch is done. ``queued``: the recorded ones of its requests, and the seconds that each has waited.

    Each gets its wait and the batch's time as spans; the batch itself is one in the first of them, linked with all.
    """
    failed = None if well else Outcome.FAILED.value
    first, *others = [trace for trace, _ in queued]
    batch = first.begin(Stage.BATCH, others, took_s)
    batch.put({Attribute.ROWS: rows, Attribute.REQUESTS: requests})
    for trace, queue_s in queued:
        trace.took(Stage.QUEUE, queue_s, ago_s=took_s)
        compute = trace.begin(Stage.COMPUTE, (batch,), took_s)
        compute.put({Attribute.ROWS: rows})
        compute.end(failed)
    batch.end(failed)
