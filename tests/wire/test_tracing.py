"""The context of a trace: read, decided about, passed on; and OpenTelemetry behind the port."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire import otel
from edgemux.wire.otel import MOST_WAITING, OtelTracer
from edgemux.wire.tracing import OFF, Attribute, Parent, Sampler, Stage, TracingSettings, Unrecorded, open_tracer
from edgemux.wire.tracing import parent_in as read
from tests.otlp_receiver import receiving

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{SPAN}-01"


class Call:
    """Of a call, what a tracer asks for."""

    def __init__(self, **headers: str) -> None:
        self._headers = headers

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self._headers.items())


def test_what_w3c_s_examples_say_is_read_and_passed_on() -> None:
    parent = read([("user-agent", "x"), ("traceparent", HEADER), ("tracestate", "congo=t61rcWkgMzE")])
    assert parent == Parent(TRACE, SPAN, True, "congo=t61rcWkgMzE")
    assert parent.headers == (("traceparent", HEADER), ("tracestate", "congo=t61rcWkgMzE"))
    later = read([("traceparent", f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like")])
    assert later == Parent(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "header",
    [
        "",
        HEADER.upper(),
        HEADER[:-1],
        HEADER + "-more",
        HEADER.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f" {HEADER}",
        HEADER + "\n",
    ],
)
def test_what_is_no_context_is_none(header: str) -> None:
    assert read([("traceparent", header)]) is None


@settings(deadline=None)
@given(st.text(max_size=80), st.text(max_size=600))
def test_no_header_raises_and_none_that_is_odd_is_passed_on(header: str, state: str) -> None:
    found = read([("traceparent", header), ("tracestate", state)])
    assert found is None or all(value.isascii() and value.isprintable() for _, value in found.headers)
    known = read([("traceparent", HEADER), ("tracestate", state)])
    assert known is not None
    assert all(len(value) <= 512 and value.isascii() and value.isprintable() for _, value in known.headers)


@settings(deadline=None)
@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_passed_on_reads_as_what_came(trace: int, span: int, sampled: bool) -> None:
    parent = Parent(f"{trace:032x}", f"{span:016x}", sampled)
    assert read(parent.headers) == parent


def test_a_request_that_is_not_recorded_says_so_to_whoever_it_asks_and_always_the_same() -> None:
    own = Unrecorded()
    assert own.headers == own.headers
    found = read(own.headers)
    assert found is not None
    assert not found.sampled
    assert own.begin(Stage.OFFLOAD).headers == own.headers
    too_many = read(Unrecorded(read([("traceparent", HEADER)])).headers)
    assert too_many == Parent(TRACE, SPAN, False)


def test_the_caller_decides_and_otherwise_chance_does() -> None:
    lots = iter([0.1, 0.3])
    sampler = Sampler(TracingSettings(sample=0.2), lambda: next(lots), lambda: 0.0)
    assert sampler.records(Parent(TRACE, SPAN, True))
    assert not sampler.records(Parent(TRACE, SPAN, False))
    assert sampler.records(None)
    assert not sampler.records(None)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 2.0), max_size=200), st.floats(1.0, 20.0))
def test_nobody_can_have_more_recorded_than_is_allowed(pauses: list[float], most: float) -> None:
    now_s = 0.0
    sampler = Sampler(TracingSettings(most_per_s=most), clock=lambda: now_s)
    recorded = 0
    for pause_s in pauses:
        now_s += pause_s
        recorded += sampler.records(Parent(TRACE, SPAN, True))
    assert recorded <= most + most * now_s + 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint": "127.0.0.1:4317"},
        {"endpoint": "ftp://host:1"},
        {"endpoint": "http://host"},
        {"endpoint": "http://user:word@host:4317"},
        {"endpoint": "http://host:4317/v1/traces"},
        {"endpoint": "http://host:99999"},
        {"endpoint": ""},
        {"sample": 1.01},
        {"sample": float("nan")},
        {"most_per_s": 0.0},
        {"most_per_s": float("inf")},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TracingSettings(**wrong)


def test_without_an_endpoint_there_is_nothing_not_even_the_packages() -> None:
    assert open_tracer(TracingSettings(), "x") is OFF
    program = """
import sys
import edgemux.cloud.server, edgemux.edge.server
from edgemux.wire.tracing import OFF, TracingSettings, open_tracer
assert open_tracer(TracingSettings(), "x") is OFF
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "[]\n"


def test_without_the_extra_an_endpoint_is_a_configuration_error_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "edgemux.wire.otel")
    with pytest.raises(ConfigError, match=r"pip install '\.\[otel\]'"):
        open_tracer(TracingSettings(endpoint="http://127.0.0.1:1"), "x")


def test_a_failure_is_told_as_a_word_and_spans_go_to_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "SEND_EVERY_MS", 20)
    with receiving() as receiver:
        tracer = OtelTracer(TracingSettings(endpoint=receiver.endpoint), "edgemux-test")
        trace = tracer.begin(Call(traceparent=HEADER, tracestate="a=b"))
        assert trace.recording
        assert dict(trace.headers)["tracestate"] == "a=b"
        inner = trace.begin(Stage.OFFLOAD)
        inner.end("unreachable")
        trace.took(Stage.DEVICE, 0.5, {Attribute.LEVEL: 2}, failed="timeout")
        trace.end()
        receiver.until(lambda: len(receiver.of(TRACE)) == 3)
        tracer.close()
    spans = {span.name: span for span in receiver.spans}
    assert (spans["offload"].failed, spans["offload"].attributes) == ("unreachable", {"edgemux.outcome": "unreachable"})
    assert spans["device"].failed == "timeout"
    assert abs(spans["device"].took_ns - 5e8) < 1e6
    assert spans["request"].parent_id == SPAN
    assert tracer.describe() == {"enabled": True, "spans_lost": 0}


def test_a_collector_that_hangs_holds_nobody_up_and_what_is_lost_is_counted_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otel, "SEND_EVERY_MS", 20)
    monkeypatch.setattr(otel, "EXPORT_S", 1.0)
    more = 500
    with receiving() as receiver, caplog.at_level(logging.INFO):
        receiver.gate.clear()
        tracer = OtelTracer(TracingSettings(endpoint=receiver.endpoint, most_per_s=1e6), "edgemux-test")
        for _ in range(MOST_WAITING + more):  # would never end if any of it waited
            tracer.begin(Call(traceparent=HEADER)).end()
        # A batch or two may have been given up meanwhile, which makes room.
        assert tracer.describe()["spans_lost"] >= more
        receiver.until(lambda: any(said.startswith("spans lost spans=") for said in caplog.messages))
        ended = threading.Thread(target=tracer.close, daemon=True)
        ended.start()
        ended.join(20 * otel.CLOSE_S)
        assert not ended.is_alive()
    assert not any("opentelemetry" in record.name for record in caplog.records)


def test_settings_are_values() -> None:
    assert msgspec.structs.asdict(TracingSettings()) == {"endpoint": None, "sample": 0.01, "most_per_s": 100.0}
