"""OpenTelemetry behind the port of tracing.py: the only importer of its packages, and imported only where configured.

Whoever answers requests puts a finished span into a bounded queue and goes on; a thread sends them. What does not fit,
or cannot be sent, is given up and counted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.span import TraceState

from edgemux.wire.events import SpansLost, tell
from edgemux.wire.tracing import (
    TRACEPARENT,
    TRACESTATE,
    Attribute,
    Attributes,
    Headers,
    Parent,
    Sampler,
    Stage,
    Trace,
    TracingSettings,
    Unrecorded,
    parent_in,
)

# Spans that wait to be sent; a span is about a kilobyte.
MOST_WAITING = 2048
MOST_SENT = 256
SEND_EVERY_MS = 1000
# A collector that does not answer within this has not got them.
EXPORT_S = 5.0
# At the end, for what is left; a thread that hangs is left behind.
CLOSE_S = 1.0
MOST_LINKS = 32

_KINDS = {Stage.REQUEST: SpanKind.SERVER, Stage.OFFLOAD: SpanKind.CLIENT, Stage.PROXY: SpanKind.CLIENT}

_log = logging.getLogger("edgemux.wire")


class OtelTracer:
    """Begins traces and has them sent to the collector."""

    enabled = True

    def __init__(self, settings: TracingSettings, service: str) -> None:
        """Connects to nothing yet."""
        # Its lines hold addresses and the collector's words; what matters of them is said as an event.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._sampler = Sampler(settings)
        resource = Resource.create(
            {
                "service.name": service,
                "service.version": version("edgemux"),
                "service.instance.id": str(uuid.uuid4()),
                "process.pid": os.getpid(),
            }
        )
        self._exporter = OTLPSpanExporter(settings.endpoint, timeout=EXPORT_S)
        self._waiting = _Waiting(self._exporter)
        limits = SpanLimits(max_attributes=32, max_events=1, max_links=MOST_LINKS, max_attribute_length=128)
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, span_limits=limits)
        self._provider.add_span_processor(self._waiting)
        self._tracer = self._provider.get_tracer("edgemux")

    def begin(self, context: Any) -> Trace:
        """See the port."""
        parent = parent_in(context.invocation_metadata())
        if not self._sampler.records(parent):
            return Unrecorded(parent)
        return _start(self._tracer, Stage.REQUEST, None if parent is None else _context_of(parent))

    def close(self) -> None:
        """See the port."""
        thread = threading.Thread(target=self._provider.shutdown, name="edgemux-otel-end", daemon=True)
        thread.start()
        thread.join(CLOSE_S)
        if thread.is_alive():  # the collector hangs: end the call that is under way
            self._exporter.shutdown()
            thread.join(CLOSE_S)

    def describe(self) -> dict[str, Any]:
        """See the port."""
        return {"enabled": True, "spans_lost": self._waiting.lost}


class _Recorded:
    """See the port."""

    recording = True
    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def context(self) -> Any:
        return self._span.get_span_context()

    @property
    def headers(self) -> Headers:
        own = self.context
        parent = (TRACEPARENT, f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}")
        return (parent, (TRACESTATE, own.trace_state.to_header())) if own.trace_state else (parent,)

    def begin(self, stage: Stage, beside: Sequence[Trace] = (), ago_s: float = 0.0) -> Trace:
        links = [Link(other.context) for other in beside if isinstance(other, _Recorded)]
        return _start(self._tracer, stage, self._span, links, time.time_ns() - int(ago_s * 1e9))

    def apart(self, stage: Stage) -> Trace:
        return _start(self._tracer, stage, None, [Link(self.context)])

    def took(
        self,
        stage: Stage,
        seconds: float,
        attributes: Attributes | None = None,
        ago_s: float = 0.0,
        failed: str | None = None,
    ) -> None:
        end = time.time_ns() - int(ago_s * 1e9)
        span = _start(self._tracer, stage, self._span, began_ns=end - int(max(0.0, seconds) * 1e9))._span
        if attributes:
            span.set_attributes(attributes)
        if failed is not None:
            span.set_status(Status(StatusCode.ERROR, failed))
        span.end(end)

    def put(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def link(self, other: Trace) -> None:
        if isinstance(other, _Recorded):
            self._span.add_link(other.context)

    def end(self, failed: str | None = None) -> None:
        if failed is not None:
            self._span.set_attribute(Attribute.OUTCOME, failed)
            self._span.set_status(Status(StatusCode.ERROR, failed))
        self._span.end()


def _start(
    tracer: Any, stage: Stage, parent: Any, links: Sequence[Link] = (), began_ns: int | None = None
) -> _Recorded:
    # Never the library's current context: whatever a process that this runs in has there is not this request's.
    context = Context() if parent is None else set_span_in_context(parent, Context())
    kind = _KINDS.get(stage, SpanKind.INTERNAL)
    return _Recorded(tracer, tracer.start_span(stage.value, context, kind, links=links, start_time=began_ns))


def _context_of(parent: Parent) -> Any:
    state = TraceState.from_header([parent.state]) if parent.state else TraceState()
    flags = TraceFlags(TraceFlags.SAMPLED)
    context = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, flags, state)
    return NonRecordingSpan(context)


class _Waiting(SpanProcessor):  # type: ignore[misc]
    """The library's queue with a bound of our own before it: its own drops the oldest, and counts nothing."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.lost = 0
        self._lock = threading.Lock()
        self._inside = self._told = 0
        self._queue = BatchSpanProcessor(
            _Counted(exporter, self._sent),
            max_queue_size=MOST_WAITING,
            schedule_delay_millis=SEND_EVERY_MS,
            max_export_batch_size=MOST_SENT,
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Never waits for the collector."""
        with self._lock:
            fits = self._inside < MOST_WAITING
            self._inside += fits
            self.lost += not fits
        if fits:
            self._queue.on_end(span)

    def _sent(self, count: int, well: bool) -> None:
        with self._lock:
            self._inside -= count
            self.lost += 0 if well else count
            fresh, self._told = self.lost - self._told, self.lost
        if fresh:
            tell(_log, SpansLost(spans=fresh))

    def shutdown(self) -> None:
        self._queue.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._queue.force_flush(timeout_millis))


class _Counted(SpanExporter):  # type: ignore[misc]
    """Tells ``sent`` how many spans were sent, well or not. Raises nothing."""

    def __init__(self, exporter: SpanExporter, sent: Any) -> None:
        self._exporter = exporter
        self._sent = sent

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        well = False
        try:
            well = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # a library's, in a thread of its own; counted like any other failure
            well = False
        self._sent(len(spans), well)
        return SpanExportResult.SUCCESS if well else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._exporter.shutdown()
