"""The log of both servers through a whole run with failures: every line an event, none with anything secret."""

from __future__ import annotations

import base64
import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.cloud import events as cloud_events
from edgemux.edge import events as edge_events
from edgemux.multiplexer.errors import EdgemuxError
from edgemux.wire import Client
from edgemux.wire.channel import PLAINTEXT
from edgemux.wire.log_format import BURST
from tests.system.conftest import MODEL, PATIENCE_S, Server, Serving

TOKEN, LATER, WRONG = "agents-secret-token-1", "agents-secret-token-2", "wrong-secret-token-xyz"
MARKER = "PAYLOADMARKER"
TEXT = re.compile(r"(INFO|WARNING|ERROR) [A-Za-z0-9_.]+: [\x20-\x7e]+")


def until(condition: Callable[[], Any]) -> None:
    over_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < over_s, "it never happened"
        time.sleep(0.05)


def harm(server: Server, token: Path, image: Any) -> None:
    """What clients send that is wrong, each with a mark in it."""
    with Client(server.grpc, PLAINTEXT, token) as client:
        marked = MARKER.encode() * 100
        for inputs, how in (
            ({"image": [b"\x89PNG\r\n\x1a\n" + marked]}, {}),
            ({"image": np.frombuffer(marked[:768], np.uint8)[None]}, {}),
            ({MARKER: image[None]}, {}),
            ({"image": image[None]}, {"request_id": MARKER * 100}),
            ({"image": image[None]}, {"parameters": {"timeout": MARKER}}),
            ({"image": image[None]}, {"traceparent": MARKER}),
            ({"image": image[None]}, {"timeout_s": 1e-6}),
        ):
            for model in (MODEL, MARKER):
                try:
                    client.infer(model, inputs, **how)  # type: ignore[arg-type]
                except EdgemuxError:
                    continue
    for path, body in ((f"/{MARKER}", b""), (f"/v2/models/{MARKER}/infer", marked), ("/v2/models/x/infer", b"{\n\n}")):
        asked = urllib.request.Request(f"http://{server.http}{path}", body, {"Authorization": f"Bearer {WRONG}"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=PATIENCE_S)
        refused.value.close()


def test_no_secret_gets_into_the_log_whatever_happens_and_every_line_is_an_event(
    tiny_bundle: Path, serving: Serving, tmp_path: Path, samples: Any
) -> None:
    token = tmp_path / "tokens"
    token.write_text(TOKEN)
    listen = f'[listen]\ntoken_file = "{token}"\n'
    there, here = tmp_path / "cloud.toml", tmp_path / "edge.toml"
    there.write_text(f'bundle = "{tiny_bundle}"\n{listen}')
    images = samples["images"]
    with serving("cloud", "--config", str(there)) as cloud:
        far = f'[cloud]\naddress = "{cloud.grpc}"\ntoken_file = "{token}"\n'
        log = '[log]\nformat = "json"\n[breaker]\nfailures = 1\n'
        here.write_text(f'bundle = "{tiny_bundle}"\nstate_dir = "{token}/no-folder"\n{listen}{far}{log}')
        with serving("edge", "--config", str(here)) as agent:

            def events() -> list[dict[str, Any]]:
                return [json.loads(line) for line in agent.errors().splitlines()]

            def told(name: str) -> bool:
                return any(each["event"] == name for each in events())

            harm(agent, token, images[0])
            harm(cloud, token, images[0])
            token.write_text(LATER)
            for server in (agent, cloud):
                server.popen.send_signal(signal.SIGHUP)
            until(lambda: told("tokens_renewed"))
            cloud.popen.kill()

            def asked_until_lost() -> bool:
                with Client(agent.grpc, PLAINTEXT, token) as client:
                    for image in images[:20]:
                        client.infer(MODEL, {"image": image[None]}, timeout_s=PATIENCE_S)
                return told("cloud_lost")

            until(asked_until_lost)
            assert agent.stop() == 0
            said = events()
            whole = agent.errors() + cloud.errors()
    names = [each["event"] for each in said]
    known = {event.name for event in edge_events.EVENTS}
    assert set(names) <= known
    assert {"model_loaded", "ready", "reload_asked", "tokens_renewed", "breaker_opened", "cloud_lost"} <= set(names)
    # Between the two a busy machine may change a level.
    assert names.index("draining") < names.index("stopped")
    assert all(names.count(name) <= 2 * BURST for name in names)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each["time"]) for each in said)
    lines = whole.splitlines()[len(said) :]
    assert lines
    assert all(TEXT.fullmatch(line) for line in lines), lines
    labels = {"T-shirt", "Trouser", "Sneaker"}
    pixels = images[0].tobytes()[:32]
    for secret in (TOKEN, LATER, WRONG, MARKER, *labels, base64.b64encode(pixels).decode(), str(pixels)[2:-1]):
        assert secret not in whole
    assert "Traceback" not in whole


def test_a_fallback_bundle_is_said_before_it_is_ready(tiny_bundle: Path, serving: Serving, tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    text = f'bundle = "{tmp_path}/none"\nprevious_bundle = "{tiny_bundle}"\n[log]\nformat = "json"\n'
    config.write_text(text)
    with serving("edge", "--config", str(config)) as agent:
        said = [json.loads(line) for line in agent.errors().splitlines()]
    assert [each["event"] for each in said[:2]] == ["bundle_fallback", "model_loaded"]
    assert (said[0]["level"], said[0]["serves"]) == ("ERROR", "previous_bundle")
    assert {event.name for event in cloud_events.EVENTS} >= {"model_ready", "ready"}
