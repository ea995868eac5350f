"""The agent as a process: pages, how it ends, a cloud that is killed, and what it does not start with."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

MODEL = "fashion-mnist"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def test_http_pages_tell_health_metadata_and_state(agent: Any) -> None:
    assert agent.get("/v2/health/live") == (200, {"live": True})
    assert agent.get("/v2/health/ready")[0] == 200
    assert agent.get(f"/v2/models/{MODEL}")[1]["inputs"][0]["shape"] == [-1, 28, 28]
    status, state = agent.get("/status")
    assert status == 200
    assert state["cloud"]["breaker"] == "closed"
    assert state["certificate"]["delta"] == 0.1
    assert state["certificate"]["standing"] == "in_force"
    assert state["drift"]["alarm"] is None
    assert state["drift"]["inputs_to_a_false_alarm"] == 100_000
    assert agent.get("/../../etc/passwd")[0] == 404


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "swapped"])
def test_a_damaged_bundle_is_refused_at_start_naming_the_file(
    ended: Callable[..., Any], tiny_bundle: Path, tmp_path: Path, damage: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    target = folder / "level-3.onnx"
    content = target.read_bytes()
    match damage:
        case "missing":
            target.unlink()
        case "truncated":
            target.write_bytes(content[:-7])
        case "flipped":
            target.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case "swapped":
            target.write_bytes((folder / "level-2.onnx").read_bytes())
    done = ended("edge", "--bundle", str(folder))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "level-3.onnx" in done.stderr


@pytest.mark.parametrize("kind", ["grpc", "http", "metrics"])
def test_a_port_in_use_is_named_and_never_shared(
    ended: Callable[..., Any], agent: Any, tiny_bundle: Path, kind: str
) -> None:
    port = getattr(agent, kind).rsplit(":", 1)[1]
    done = ended("edge", "--bundle", str(tiny_bundle), f"--{kind}-port", port)
    assert done.returncode == 2
    assert f"--{kind}-port {port}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_sigterm_answers_what_was_accepted(
    serving: Callable[..., Any], tiny_bundle: Path, pictures: Callable[..., Any]
) -> None:
    images, _ = pictures(1, 1)
    outcomes: list[str] = []
    stopped = threading.Event()

    def ask() -> None:
        with running.client() as client:
            while not stopped.is_set():
                try:
                    client.ask(images)
                    outcomes.append("ok")
                except InferenceServerException as error:
                    outcomes.append(str(error.status()))
                    return

    with serving("edge", "--bundle", str(tiny_bundle)) as running:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(outcomes) < 50:
            pass
        code = running.stop()
        stopped.set()
        for thread in threads:
            thread.join()
        assert code == 0, running.errors()
    # Later requests are turned away as unavailable; none that was taken in is cut off.
    assert set(outcomes) <= {"ok", "StatusCode.UNAVAILABLE"}


def test_a_killed_cloud_fails_no_request_and_its_return_is_noticed(
    serving: Callable[..., Any], tiny_bundle: Path, pictures: Callable[..., Any]
) -> None:
    images, _ = pictures(120, 31)

    def ask_all() -> set[str]:
        with running.client() as client:
            results = [client.ask(i[None]) for i in images]
        return {result.get_response().parameters["edgemux_route"].string_param for result in results}

    bundle = ("--bundle", str(tiny_bundle))
    with serving("cloud", *bundle) as first, serving("edge", *bundle, "--cloud", first.grpc) as running:
        assert ask_all() == {"edge", "cloud"}
        first.stop(signal.SIGKILL)
        assert ask_all() == {"edge"}
        with serving("cloud", *bundle, "--grpc-port", first.grpc.rsplit(":", 1)[1]):
            assert any("cloud" in ask_all() for _ in range(100)), "the cloud that came back was not used"


# An agent that says when it begins to decode a picture, and needs ages for it.
SLOW = """
import sys, time
from edgemux.edge import server
from edgemux.edge.config import load
from edgemux.wire import image

def pixels(*_):
    print("decoding", flush=True)
    time.sleep(1000)

image._pixels = pixels
ports = {f"listen.{name}_port": 0 for name in ("grpc", "http", "metrics")}
server.serve(load(None, {"bundle": sys.argv[1], "request.default_timeout_s": float(sys.argv[2]), **ports}))
"""


@pytest.fixture
def slow_agent(tiny_bundle: Path, serving_by: Callable[..., Any]) -> Iterator[Callable[[float], Any]]:
    """``slow_agent(default_timeout_s)``."""
    with contextlib.ExitStack() as running:
        yield lambda timeout_s: running.enter_context(serving_by(SLOW, str(tiny_bundle), str(timeout_s)))


def encoded(count: int) -> bytes:
    """A request for that many pictures."""
    out = io.BytesIO()
    Image.new("L", (28, 28)).save(out, "PNG")
    request = triton.service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="image", datatype="BYTES", shape=[count])
    element = out.getvalue()
    request.raw_input_contents.append((len(element).to_bytes(4, "little") + element) * count)
    return bytes(request.SerializeToString())


def test_a_request_without_a_deadline_has_the_default_from_when_it_came_while_its_pictures_are_decoded(
    slow_agent: Callable[[float], Any], pictures: Callable[..., Any]
) -> None:
    running = slow_agent(0.2)
    with grpc.insecure_channel(running.grpc) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFER)(encoded(2))
        assert caught.value.code().name == "DEADLINE_EXCEEDED"
        assert caught.value.details().startswith("deadline: ")
    with running.client() as client:
        assert client.ask(pictures(1, 1)[0]).as_numpy("label") is not None


def test_a_second_signal_waits_for_no_picture_and_its_caller_hears_unavailable(
    slow_agent: Callable[[float], Any],
) -> None:
    running = slow_agent(60.0)
    with grpc.insecure_channel(running.grpc) as channel:
        call = channel.unary_unary(INFER).future(encoded(100))
        assert running.popen.stdout.readline() == "decoding\n"
        running.popen.send_signal(signal.SIGTERM)
        while running.get("/v2/health/ready")[0] == 200:
            pass
        assert running.stop() == 0
        assert call.code().name == "UNAVAILABLE"


def test_a_message_size_that_is_too_small_ends_it_with_status_2_naming_the_setting(
    ended: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text("[listen]\nmax_message_bytes = 1000\n")
    done = ended("edge", "--bundle", str(tiny_bundle), "--config", str(config))
    assert done.returncode == 2
    assert "max_message_bytes" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("policy", "reason"),
    [("max-sofmax(0.9)", "installed: "), ("max-softmax", "needs threshold"), ("entropy(level=1)", "it has threshold")],
)
def test_a_wrong_policy_ends_it_with_status_2_and_says_what_there_is(
    ended: Callable[..., Any], tiny_bundle: Path, tmp_path: Path, policy: str, reason: str
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(f'policy = "{policy}"\n')
    done = ended("edge", "--bundle", str(tiny_bundle), "--config", str(config))
    assert done.returncode == 2
    assert "policy: " in done.stderr
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
