"""What a trace says of a request that did not go well. OpenTelemetry is an extra: without it, nothing to test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from edgemux.edge.agent import Agent
from edgemux.edge.service import EdgeService
from edgemux.multiplexer.errors import Unreachable
from edgemux.wire.codec import make_request
from edgemux.wire.events import Name
from edgemux.wire.tracing import TracingSettings

otel = pytest.importorskip("edgemux.wire.otel")
from tests.otlp_receiver import receiving  # noqa: E402  (takes OpenTelemetry too)

Pictures = Callable[..., Any]
MODEL = Name("fashion-mnist")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Call:
    """A client's call that brings a decision with it."""

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("traceparent", f"00-{TRACE}-{SPAN}-01")]


async def test_a_failing_cloud_is_an_error_in_the_trace_without_its_text(
    cloud: Any, agent_of: Any, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otel, "SEND_EVERY_MS", 20)
    cloud.answer = cloud.refusing(grpc.StatusCode.UNAVAILABLE, "secret text")
    with receiving() as receiver:
        tracer = otel.OtelTracer(TracingSettings(endpoint=receiver.endpoint), "edgemux-edge")
        async with agent_of(cloud.address) as agent:
            service = EdgeService({MODEL: agent}, 256, tracer=tracer)
            for image in pictures(60, 2)[0]:
                await service.ModelInfer(make_request(MODEL, {"image": image[None]}), Call())
            service.close()
        tracer.close()
    failed = [span for span in receiver.spans if span.failed]
    assert {(span.name, span.failed) for span in failed} == {("offload", "unreachable")}
    assert {span.attributes["edgemux.outcome"] for span in failed} == {"unreachable"}
    answered = [span for span in receiver.spans if span.name == "request"]
    assert len(answered) == 60
    assert {span.attributes["edgemux.outcome"] for span in answered} == {"answered"}
    assert any(span.attributes["edgemux.degraded"] for span in answered)
    sent = b"".join(receiver.raw)
    assert b"secret" not in sent
    assert b"192.0.2.1" not in sent


async def test_an_input_that_no_route_answers_is_an_error_in_the_trace(
    agent_of: Any, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def nobody(self: Agent, *_: Any) -> Any:
        raise Unreachable("secret")

    monkeypatch.setattr(otel, "SEND_EVERY_MS", 20)
    monkeypatch.setattr(Agent, "_answer", nobody)
    with receiving() as receiver:
        tracer = otel.OtelTracer(TracingSettings(endpoint=receiver.endpoint), "edgemux-edge")
        async with agent_of(None) as agent:
            service = EdgeService({MODEL: agent}, 256, tracer=tracer)
            with pytest.raises(Unreachable):
                await service.ModelInfer(make_request(MODEL, {"image": pictures(1, 2)[0]}), Call())
            service.close()
        tracer.close()
    (request,) = [span for span in receiver.spans if span.name == "request"]
    assert (request.failed, request.parent_id) == ("failed", SPAN)
