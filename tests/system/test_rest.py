"""The REST side of both servers as processes: stock clients, curl, and whoever is slow, large or malicious."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.system.conftest import SLOW

MODEL = "fashion-mnist"
PATIENCE_S = 60.0
HEAD_S = 3.0

# tritonclient's HTTP client brings an event loop of its own (gevent), which has no place in this process.
STOCK = """
import json, sys
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1], concurrency=2)
images = np.load(sys.argv[2])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("fashion-mnist")
assert not client.is_model_ready("other")
assert client.get_server_metadata()["name"].startswith("edgemux-")
assert client.get_model_metadata("fashion-mnist", "1")["inputs"][0]["shape"] == [-1, 28, 28]
assert client.get_model_repository_index()[0]["state"] == "READY"
found = []
for binary in (True, False):
    for folded in (None, "gzip", "deflate"):
        for outputs in (None, [triton.InferRequestedOutput("label", binary_data=not binary)]):
            tensor = triton.InferInput("image", list(images.shape), "UINT8")
            tensor.set_data_from_numpy(images, binary_data=binary)
            answer = client.infer(
                "fashion-mnist", [tensor], outputs=outputs, request_id="an id", timeout=50_000_000,
                request_compression_algorithm=folded, response_compression_algorithm=folded, parameters={"own": 1},
            )
            assert answer.get_response()["id"] == "an id"
            found.append(answer.as_numpy("label").tolist())
tensor = triton.InferInput("image", list(images.shape), "UINT8")
tensor.set_data_from_numpy(images)
later = [client.async_infer("fashion-mnist", [tensor]) for _ in range(8)]
found += [each.get_result().as_numpy("label").tolist() for each in later]
try:
    client.infer("other", [tensor])
    raise SystemExit("served a model that is not there")
except triton.InferenceServerException as error:
    assert (error.status(), error.message()) == ("404", "model_name: no such model here"), error
client.close()
print(json.dumps(found))
"""


@pytest.fixture(params=["cloud", "agent"])
def server(request: pytest.FixtureRequest) -> Any:
    """Each of the two."""
    return request.getfixturevalue(request.param)


def connection(server: Any, content: bytes = b"") -> socket.socket:
    host, port = server.http.rsplit(":", 1)
    made = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    made.sendall(content)
    return made


def rest_of(made: socket.socket) -> bytes:
    """All that comes until the server closes."""
    pieces = []
    try:
        while piece := made.recv(65536):
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)


def body_of(images: NDArray[np.uint8], **more: Any) -> bytes:
    given = {"name": "image", "datatype": "UINT8", "shape": list(images.shape), "data": images.tolist()}
    return json.dumps({"inputs": [given], **more}).encode()


def infer(body: bytes, *headers: str) -> bytes:
    lines = (f"POST /v2/models/{MODEL}/infer HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def test_a_stock_client_gets_the_same_answers_in_every_form(
    server: Any, samples: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    images = samples["images"][:4]
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", STOCK, server.http, str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) == 20
    with server.client() as client:
        expected = client.ask(images).as_numpy("label").tolist()
    if server.popen.args[3] == "cloud":  # an agent may answer a picture by another route the next time
        assert all(answer == expected for answer in answers)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_gets_an_answer_over_one_connection(server: Any, samples: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    (tmp_path / "body.json").write_bytes(body_of(samples["images"][:1]))
    url = f"http://{server.http}/v2/models/{MODEL}/infer?timeout_ms=50000"
    command = ["curl", "-sS", "-d", f"@{tmp_path / 'body.json'}", "-w", "\n%{http_code} %{num_connects}\n", url, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    first, how_first, second, how_second = done.stdout.split("\n")[:4]
    assert (how_first, how_second) == ("200 1", "200 0")
    for answer in (json.loads(first), json.loads(second)):
        assert {output["name"] for output in answer["outputs"]} == {"probabilities", "label"}
        assert answer["model_name"] == MODEL


def test_an_encoded_picture_in_json_is_answered_as_its_pixels_are(cloud: Any, samples: dict[str, NDArray[Any]]) -> None:
    image = samples["images"][0]
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    given = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "data": [{"b64": str(b64encode(encoded.getvalue()), "ascii")}],
    }
    answers = []
    for body in (json.dumps({"inputs": [given]}).encode(), body_of(image[None])):
        with connection(cloud, infer(body, "Connection: close")) as sent:
            answers.append(json.loads(rest_of(sent).partition(b"\r\n\r\n")[2])["outputs"])
    assert answers[0] == answers[1]


def test_clients_that_stop_are_closed_within_seconds_and_others_are_served(
    server: Any, samples: dict[str, NDArray[Any]]
) -> None:
    stops = (b"POST /v2", infer(b" " * 100)[:-50], b"")
    with contextlib.ExitStack() as stack:
        began_s = time.monotonic()
        stuck = [stack.enter_context(connection(server, came)) for came in stops]
        with connection(server, infer(body_of(samples["images"][:1]), "Connection: close")) as other:
            assert rest_of(other).startswith(b"HTTP/1.1 200")
        for each in stuck:
            assert rest_of(each) == b""
        assert time.monotonic() - began_s >= HEAD_S * 0.9


def test_large_bodies_and_bombs_are_refused_and_the_server_goes_on(
    server: Any, samples: dict[str, NDArray[Any]]
) -> None:
    limit = 4 * 2**20
    with connection(server, infer(b"").replace(b"Length: 0", b"Length: %d" % (limit + 1))) as large:
        assert rest_of(large).startswith(b"HTTP/1.1 413")
    lists = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1],"data":' + b"[" * (limit - 100)
    many = b'{"inputs":[' + b",".join([b"{}"] * (limit // 3 - 10)) + b"]}"
    for bomb in (lists, many, b"9" * limit):
        with connection(server, infer(bomb, "Connection: close")) as sent:
            answer = rest_of(sent)
            assert answer.split(b" ")[1] in (b"400", b"413")
            assert b'{"error":"' in answer
    with connection(server, infer(body_of(samples["images"][:1]), "Connection: close")) as good:
        assert rest_of(good).startswith(b"HTTP/1.1 200")


def test_what_is_wrong_with_a_tensor_is_said_as_over_grpc(server: Any, samples: dict[str, NDArray[Any]]) -> None:
    images = samples["images"][:1]
    for body, status, reason in (
        (body_of(images[:, :27]), b"400", b"image: shape [1, 27, 28], expected"),
        (body_of(images).replace(b"UINT8", b"FP32"), b"400", b"image: datatype"),
        (body_of(images).replace(b'"image"', b'"other"'), b"400", b"no such input"),
        (body_of(images, outputs=[{"name": "nothing"}]), b"400", b"no such output"),
        (body_of(images, parameters={"timeout": "soon"}), b"400", b"timeout: expected int64_param"),
    ):
        with connection(server, infer(body, "Connection: close")) as sent:
            answer = rest_of(sent)
            assert answer.split(b" ")[1] == status
            assert reason in answer


@pytest.fixture
def slow_server(tiny_bundle: Path, serving_by: Callable[..., Any]) -> Iterator[Any]:
    with serving_by(SLOW, str(tiny_bundle), "0.5") as server:
        yield server


def inflight(server: Any) -> float:
    return sum(value for name, value in server.scrape().items() if name.startswith("edgemux_cloud_inflight"))


def wait_until(condition: Callable[[], bool]) -> None:
    """The test's own timeout ends it."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.02)


def test_what_was_accepted_before_sigterm_is_answered_and_the_rest_is_refused(
    slow_server: Any, samples: dict[str, NDArray[Any]]
) -> None:
    content = infer(body_of(samples["images"][:1]))
    inside = [connection(slow_server, content) for _ in range(3)]
    idle = connection(slow_server)
    wait_until(lambda: inflight(slow_server) == 3)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(rest_of, made) for made in inside]
        slow_server.popen.send_signal(signal.SIGTERM)
        time.sleep(0.7)  # longer than the time in which new inferences are still taken
        late = pool.submit(rest_of, idle)
        idle.sendall(content)
        for answer in answers:
            assert answer.result().startswith(b"HTTP/1.1 200")
        assert late.result() == b"" or late.result().startswith(b"HTTP/1.1 503")
        assert slow_server.ended() == 0
    for made in (*inside, idle):
        made.close()


def test_a_deadline_is_kept_and_who_goes_away_is_not_computed_for(
    slow_server: Any, samples: dict[str, NDArray[Any]]
) -> None:
    body = body_of(samples["images"][:1])
    with connection(slow_server, infer(body)) as first:
        wait_until(lambda: inflight(slow_server) == 1)
        gone = connection(slow_server, infer(body))
        with connection(slow_server, infer(body, "Timeout-Ms: 100", "Connection: close")) as hasty:
            assert rest_of(hasty).startswith(b"HTTP/1.1 504")
        gone.close()
        wait_until(lambda: inflight(slow_server) == 0)
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
    series = slow_server.scrape()
    cancelled = [value for name, value in series.items() if "requests_total" in name and '"cancelled"' in name]
    assert sum(cancelled) == 1
