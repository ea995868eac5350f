"""What the agent's spans say, where a request is recorded; see wire/tracing.py. Closed words, numbers, and no input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgemux.edge.metrics import outcome_of
from edgemux.edge.sample import Sample
from edgemux.multiplexer.errors import ExecutionError
from edgemux.wire.tracing import Attribute, Attributes, Headers, Stage, Trace, Unrecorded, parent_in

if TYPE_CHECKING:
    from edgemux.edge.agent import Answer

# Rows of a request that have spans of their own: a request of 256 rows is not a trace of a thousand spans.
MOST_ROWS = 8
# Refusals that are the client's own doing.
_THEIRS = ("input", "unknown_model", "too_large", "cancelled")


def of_rows(trace: Trace | None, rows: int) -> Sequence[Trace | None]:
    """The trace for each row of a request; those that have no spans of their own say so to the cloud."""
    if trace is None or rows <= MOST_ROWS:
        return [trace] * rows
    rest: Trace = Unrecorded(parent_in(trace.headers))
    return [trace] * MOST_ROWS + [rest] * (rows - MOST_ROWS)


def finish(trace: Trace, model: str, outcome: str, answers: Sequence[Answer], left_s: float | None) -> None:
    """A request is over. ``outcome``: the request log's; ``left_s``: of its client's deadline."""
    if not trace.recording:
        return
    said: Attributes = {Attribute.MODEL: model, Attribute.OUTCOME: outcome, Attribute.ROWS: len(answers)}
    if left_s is not None:
        said[Attribute.DEADLINE_LEFT_S] = left_s
    if answers:  # of several rows the first one's: each has its stages besides
        first = answers[0]
        route = first.prediction.route
        said |= {
            Attribute.ROUTE: route.placement.value,
            Attribute.VARIANT: route.variant,
            Attribute.REASON: first.reason.value,
            Attribute.SCORE: first.prediction.confidence,
            Attribute.DEGRADED: any(answer.degraded for answer in answers),
        }
    trace.put(said)
    trace.end(None if outcome == "answered" or outcome in _THEIRS else outcome)


@contextlib.contextmanager
def offload(request: Trace, peer: int) -> Iterator[Trace]:
    """An input is being sent to a cloud, by its place in the configuration."""
    trace = request.begin(Stage.OFFLOAD)
    failed: str | None = "failed"
    try:
        yield trace
        failed = None
    except ExecutionError as error:
        failed = outcome_of(error)
        raise
    except BaseException:
        failed = "cancelled"
        raise
    finally:
        trace.put({Attribute.PEER: peer, Attribute.OUTCOME: failed or outcome_of(None)})
        trace.end(failed)


@contextlib.contextmanager
def aside(sample: Sample, stage: Stage) -> Iterator[Attributes]:
    """What is done with an input after its answer has gone; what is put into the mapping is said of it."""
    said: Attributes = {}
    if sample.trace is None:
        yield said
        return
    sample.trace = sample.trace.apart(stage)
    try:
        yield said
    finally:
        sample.trace.put(said)
        sample.trace.end()


def carried(traces: Sequence[Trace | None]) -> Headers:
    """What goes along with a call for several inputs: the first recorded one's context, which the others refer to."""
    known = [trace for trace in traces if trace is not None]
    if not known:
        return ()
    carrier = next((trace for trace in known if trace.recording), known[0])
    for trace in known:
        if trace is not carrier:
            trace.link(carrier)
    return carrier.headers


def options(traces: Sequence[Trace | None]) -> dict[str, Any]:
    """The same as options of a call: none where nothing is traced."""
    headers = carried(traces)
    return {"metadata": headers} if headers else {}
