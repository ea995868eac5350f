"""A collector in the test's process: takes spans by OTLP over gRPC, and holds or refuses them where a test wants it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import msgspec
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as wire
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

PATIENT_S = 60.0


class Seen(msgspec.Struct):
    """A span as it came in; ids in hex. ``links``: (trace id, span id)."""

    service: str
    instance: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    failed: str | None
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    took_ns: int


class Receiver(service.TraceServiceServicer):  # type: ignore[misc]
    """``spans``: what came in. ``gate``: cleared, nothing is answered until it is set."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.raw: list[bytes] = []
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()
        self.endpoint = ""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        self.gate.wait(PATIENT_S)
        self.raw.append(request.SerializeToString())
        for resource in request.resource_spans:
            about = {each.key: _value(each.value) for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [_seen(about, span) for span in scope.spans]
        return wire.ExportTraceServiceResponse()

    def of(self, trace_id: str, service_name: str = "", name: str = "") -> list[Seen]:
        """The spans of a trace, of a service, of a name."""
        return [
            span
            for span in self.spans
            if span.trace_id == trace_id and service_name in ("", span.service) and name in ("", span.name)
        ]

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for what comes in; what the condition said last."""
        over_s = time.monotonic() + PATIENT_S
        while not (found := condition()):
            assert time.monotonic() < over_s, sorted({(span.service, span.name) for span in self.spans})
            time.sleep(0.05)
        return found


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


def _seen(about: dict[str, Any], span: Any) -> Seen:
    return Seen(
        about["service.name"],
        about["service.instance.id"],
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.status.message if span.status.code == 2 else None,
        {each.key: _value(each.value) for each in span.attributes},
        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        span.end_time_unix_nano - span.start_time_unix_nano,
    )


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    service.add_TraceServiceServicer_to_server(receiver, server)
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        receiver.gate.set()
        server.stop(0).wait()
