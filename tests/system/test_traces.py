"""One trace over client, agent and cloud, as a collector sees it: names, parents, links, and nothing that is secret."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.wire import Client
from edgemux.wire.log_format import BURST
from edgemux.wire.tracing import Attribute, Stage
from tests.otlp_receiver import Receiver, Seen, receiving
from tests.system.conftest import MODEL, PATIENCE_S, Server, Serving

SERVER, CLIENT = 2, 3  # kinds of spans, as OTLP numbers them


def config(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def tracing(endpoint: str, sample: float = 0.0) -> str:
    return f'[tracing]\nendpoint = "{endpoint}"\nsample = {sample}\n'


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as listening:
        yield listening


@pytest.fixture(scope="module")
def both(
    receiver: Receiver, tiny_bundle: Path, serving: Serving, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Server]]:
    """An agent and a cloud that record what they are asked to, and nothing by chance; every kept answer is audited."""
    folder = tmp_path_factory.mktemp("traces")
    there = config(folder, "cloud", f'bundle = "{tiny_bundle}"\n{tracing(receiver.endpoint)}')
    with contextlib.ExitStack() as stack:
        cloud = stack.enter_context(serving("cloud", "--config", str(there)))
        text = f'bundle = "{tiny_bundle}"\naudit_share = 1.0\n[cloud]\naddress = "{cloud.grpc}"\n'
        here = config(folder, "edge", text + tracing(receiver.endpoint))
        yield stack.enter_context(serving("edge", "--config", str(here))), cloud


def parent(sampled: bool = True) -> tuple[str, str, str]:
    """A trace id, a span id, and the header that says both."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"


def ask(server: Server, image: Any, header: str) -> str:
    """Where a picture was answered."""
    with Client(server.grpc) as client:
        reply = client.infer(MODEL, {"image": image[None]}, timeout_s=PATIENCE_S, traceparent=header)
    return str(reply.parameters.get("edgemux_route", ""))


def offloaded(agent: Server, images: Any) -> tuple[str, str]:
    """Trace and span id of a request that went to the cloud."""
    for image in images:
        trace_id, span_id, header = parent()
        if ask(agent, image, header) == "cloud":
            return trace_id, span_id
    raise AssertionError("none was sent to the cloud")


def only(spans: list[Seen]) -> Seen:
    assert len(spans) == 1, spans
    return spans[0]


def test_one_trace_spans_client_agent_and_cloud(both: Any, receiver: Receiver, samples: Any) -> None:
    trace_id, span_id = offloaded(both[0], samples["images"])
    receiver.until(lambda: receiver.of(trace_id, "edgemux-edge", "request"))
    receiver.until(lambda: receiver.of(trace_id, "edgemux-cloud", "request"))
    receiver.until(lambda: receiver.of(trace_id, "edgemux-cloud", "batch"))
    asked = only(receiver.of(trace_id, "edgemux-edge", "request"))
    assert (asked.parent_id, asked.kind, asked.failed) == (span_id, SERVER, None)
    assert {asked.attributes[key] for key in ("edgemux.model", "edgemux.route")} == {MODEL, "cloud"}
    assert {"edgemux.variant", "edgemux.reason", "edgemux.score", "edgemux.degraded"} <= set(asked.attributes)
    assert 0 < asked.attributes["edgemux.deadline_left_s"] < PATIENCE_S
    assert only(receiver.of(trace_id, "edgemux-edge", "pre_gate")).parent_id == asked.span_id
    sent = only(receiver.of(trace_id, "edgemux-edge", "offload"))
    assert (sent.parent_id, sent.kind, sent.attributes["edgemux.outcome"]) == (asked.span_id, CLIENT, "answered")
    assert sent.attributes["edgemux.bytes"] > 784
    there = only(receiver.of(trace_id, "edgemux-cloud", "request"))
    assert (there.parent_id, there.kind) == (sent.span_id, SERVER)
    for name in ("queue", "compute", "batch"):
        assert only(receiver.of(trace_id, "edgemux-cloud", name)).parent_id == there.span_id
    batch = only(receiver.of(trace_id, "edgemux-cloud", "batch"))
    assert only(receiver.of(trace_id, "edgemux-cloud", "compute")).links == [(trace_id, batch.span_id)]
    assert batch.attributes["edgemux.rows"] == batch.attributes["edgemux.requests"] == 1
    assert there.took_ns <= sent.took_ns <= asked.took_ns


def test_an_audit_is_a_trace_of_its_own_that_is_linked_with_its_request(
    both: Any, receiver: Receiver, samples: Any
) -> None:
    kept = []
    for image in samples["images"][:40]:
        trace_id, _, header = parent()
        if ask(both[0], image, header) == "edge":
            kept.append(trace_id)

    def audits() -> list[Seen]:
        return [s for s in receiver.spans if s.name == "audit" and s.links and s.links[0][0] in kept]

    audit = receiver.until(audits)[0]
    assert audit.attributes["edgemux.outcome"] in ("agree", "differ")
    asked = only(receiver.of(audit.links[0][0], "edgemux-edge", "request"))
    assert audit.links == [(asked.trace_id, asked.span_id)]
    assert only(receiver.of(asked.trace_id, "edgemux-edge", "post_gate")).parent_id == asked.span_id
    assert receiver.of(asked.trace_id, "edgemux-edge", "device")[0].attributes["edgemux.level"] >= 1
    receiver.until(lambda: receiver.of(audit.trace_id, "edgemux-cloud", "request"))
    sent = only(receiver.of(audit.trace_id, "edgemux-edge", "offload"))
    assert only(receiver.of(audit.trace_id, "edgemux-cloud", "request")).parent_id == sent.span_id


def test_who_decides_that_nothing_is_recorded_is_obeyed_everywhere(both: Any, receiver: Receiver, samples: Any) -> None:
    quiet = []
    for image in samples["images"][:20]:
        trace_id, _, header = parent(sampled=False)
        quiet.append(trace_id)
        ask(both[0], image, header)
        ask(both[1], image, header)
    with both[0].client() as client:
        client.ask(samples["images"][:1])  # no decision, and the share is none
    last, _ = offloaded(both[0], samples["images"])
    receiver.until(lambda: receiver.of(last, "edgemux-cloud", "request"))
    assert not [span for span in receiver.spans if span.trace_id in quiet]
    assert all(span.parent_id or span.name in ("audit", "shadow") for span in receiver.spans)


@pytest.mark.parametrize("which", [0, 1])
def test_the_context_comes_in_over_rest_too(both: Any, receiver: Receiver, samples: Any, which: int) -> None:
    trace_id, span_id, header = parent()
    image = samples["images"][0]
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": image.reshape(-1).tolist()}
    headers = {"traceparent": header, "tracestate": "other=1"}
    url = f"http://{both[which].http}/v2/models/{MODEL}/infer"
    asked = urllib.request.Request(url, json.dumps({"inputs": [tensor]}).encode(), headers)
    urllib.request.urlopen(asked, timeout=PATIENCE_S).close()
    name = ("edgemux-edge", "edgemux-cloud")[which]
    receiver.until(lambda: receiver.of(trace_id, name, "request"))
    assert only(receiver.of(trace_id, name, "request")).parent_id == span_id


def test_a_large_request_is_no_trace_of_a_thousand_spans(both: Any, receiver: Receiver, samples: Any) -> None:
    trace_id, _, header = parent()
    with Client(both[0].grpc) as client:
        client.infer(MODEL, {"image": samples["images"][:100]}, timeout_s=PATIENCE_S, traceparent=header)
    asked = receiver.until(lambda: receiver.of(trace_id, "edgemux-edge", "request"))
    assert asked[0].attributes["edgemux.rows"] == 100
    assert len(receiver.of(trace_id)) <= 2 + 8 * 10


def test_refusals_that_are_the_client_s_own_doing_are_no_errors(both: Any, receiver: Receiver) -> None:
    trace_id, _, header = parent()
    with Client(both[0].grpc) as client, pytest.raises(Exception, match="image"):
        client.infer(MODEL, {"image": np.zeros((1, 3), np.uint8)}, traceparent=header)
    refused = receiver.until(lambda: receiver.of(trace_id, "edgemux-edge", "request"))[0]
    assert (refused.failed, refused.attributes["edgemux.outcome"]) == (None, "input")


def test_names_and_attributes_are_closed_sets_and_hold_no_address(both: Any, receiver: Receiver, samples: Any) -> None:
    trace_id, _ = offloaded(both[0], samples["images"])
    receiver.until(lambda: receiver.of(trace_id, "edgemux-cloud", "batch"))
    assert {span.name for span in receiver.spans} <= {stage.value for stage in Stage}
    assert {key for span in receiver.spans for key in span.attributes} <= {each.value for each in Attribute}
    sent = b"".join(receiver.raw)
    assert MODEL.encode() in sent
    assert b"127.0.0.1" not in sent
    assert samples["images"][0].tobytes()[:64] not in sent


@pytest.mark.parametrize("hanging", [False, True])
def test_a_collector_that_is_away_or_hangs_harms_no_answer_and_no_end(
    tiny_bundle: Path, serving: Serving, tmp_path: Path, samples: Any, hanging: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if not hanging:
            silent.close()
        text = f'bundle = "{tiny_bundle}"\n{tracing(f"http://127.0.0.1:{port}", 1.0)}most_per_s = 1000.0\n'
        with serving("edge", "--config", str(config(tmp_path, "edge", text))) as server:
            with server.client() as client:
                for number in range(200):
                    client.ask(samples["images"][number % 100][None])
            assert server.get("/status")[1]["tracing"]["enabled"] is True
            assert server.stop() == 0
            said = [line for line in server.errors().splitlines() if "spans lost" in line]
            assert 0 < len(said) <= BURST + 1
            assert "127.0.0.1" not in server.errors()


def test_each_of_several_processes_has_its_own_provider(
    receiver: Receiver, tiny_bundle: Path, serving: Serving, tmp_path: Path, samples: Any
) -> None:
    text = f'bundle = "{tiny_bundle}"\nprocesses = 2\n{tracing(receiver.endpoint)}'
    known = {span.instance for span in receiver.spans}
    with serving("cloud", "--config", str(config(tmp_path, "cloud", text))) as server:

        def both_seen() -> bool:
            ask(server, samples["images"][0], parent()[2])  # a connection of its own each time
            return len({span.instance for span in receiver.spans} - known) == 2

        receiver.until(both_seen)
