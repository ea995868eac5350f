"""One pass: a server under one load for a few seconds; requests in each server's form; h2load or our own client.

h2load (C, of Debian's nghttp2-client) carries all closed loops of a comparison where it is installed, our own client
otherwise; streams and open loops are always our own client's, which then also measures what they are compared with.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np

from edgemux.wire import oip_pb2 as oip
from serving_bench.client import Order, Passed, quantile
from serving_bench.http1 import request as whole_request
from serving_bench.http2 import message
from serving_bench.running import HERE, MODEL, Machine, Running, usage

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
OWN = "own"
H2LOAD = "h2load"


class Target(msgspec.Struct, frozen=True):
    """A way to ask a server. kind: ``unary``, ``stream``, ``http``; body: what is sent, without HTTP's headers."""

    label: str
    server: Running
    kind: str
    path: str
    headers: dict[str, str]
    body: bytes
    least: int

    @property
    def address(self) -> str:
        """Where it is sent."""
        return self.server.http if self.kind == "http" else self.server.grpc


class Measured(msgspec.Struct, frozen=True):
    """A pass. cpu_ms: of the server's processes, per request; rss_mb: of all of them, after it.

    foreign: the share of the CPUs that was taken by neither the server nor the generator."""

    passed: Passed
    cpu_ms: float
    rss_mb: float
    generator: str
    foreign: float


def _tensor(rows: np.ndarray[Any, Any]) -> dict[str, Any]:
    datatype = {"uint8": "UINT8", "float32": "FP32"}[rows.dtype.name]
    return {"name": "image", "datatype": datatype, "shape": list(rows.shape)}


def infer_request(rows: np.ndarray[Any, Any], **parameters: int) -> bytes:
    """The protocol's message for one input named ``image``, raw."""
    request = oip.ModelInferRequest(model_name=MODEL)
    request.inputs.add(**_tensor(rows))
    request.raw_input_contents.append(rows.tobytes())
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    return bytes(request.SerializeToString())


def over_grpc(label: str, server: Running, rows: np.ndarray[Any, Any], classes: int, stream: bool = False) -> Target:
    """A unary call, or messages of a stream."""
    kind, path = ("stream", STREAM) if stream else ("unary", INFER)
    return Target(label, server, kind, path, {}, message(infer_request(rows)), 4 * classes)


def over_rest(label: str, server: Running, rows: np.ndarray[Any, Any], classes: int) -> Target:
    """The binary extension, both ways."""
    raw = rows.tobytes()
    tensor = _tensor(rows) | {"parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "scores", "parameters": {"binary_data": True}}]})
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Target(label, server, "http", f"/v2/models/{MODEL}/infer", headers, head.encode() + raw, 4 * classes)


def over_litserve(label: str, server: Running, rows: np.ndarray[Any, Any], classes: int) -> Target:
    """LitServe's own: JSON, the tensor in base64."""
    body = json.dumps({"data": base64.b64encode(rows.tobytes()).decode()}).encode()
    return Target(label, server, "http", "/predict", {"Content-Type": "application/json"}, body, 2 * classes)


def check(target: Target) -> None:
    """One request by a client that reads the whole answer. Raises ValueError with what was wrong."""
    if target.kind == "http":
        asked = urllib.request.Request(
            f"http://{target.address}{target.path}", target.body, target.headers, method="POST"
        )
        with urllib.request.urlopen(asked, timeout=30) as reply:
            size = len(reply.read())
    else:
        size = _grpc_size(target)
    if size < target.least:
        raise ValueError(f"{target.label}: an answer of {size} bytes")


def _grpc_size(target: Target) -> int:
    with grpc.insecure_channel(target.address) as channel:
        if target.kind == "unary":
            answer = channel.unary_unary(target.path)(target.body[5:], timeout=30)
            return len(oip.ModelInferResponse.FromString(answer).raw_output_contents[0])
        (answer,) = channel.stream_stream(target.path)(iter([target.body[5:]]), timeout=30)
        response = oip.ModelStreamInferResponse.FromString(answer)
        if response.error_message:
            raise ValueError(f"{target.label}: {response.error_message}")
        return len(response.infer_response.raw_output_contents[0])


def run_pass(
    target: Target, connections: int, seconds: float, generator: str = "", rate: float = 0.0, seed: int = 0
) -> Measured:
    """Load the target. Raises ValueError where requests failed."""
    can = shutil.which(H2LOAD) is not None and target.kind != "stream" and not rate
    chosen = generator or (H2LOAD if can else OWN)
    before, machine = usage(target.server.pid), Machine.now()
    with tempfile.TemporaryDirectory() as folder:
        if chosen == H2LOAD:
            passed = _h2load(target, connections, seconds, Path(folder))
        else:
            passed = _own(target, connections, seconds, rate, seed, Path(folder))
    after, machine_after = usage(target.server.pid), Machine.now()
    every = passed.good + passed.failed
    if passed.failed > 0.001 * every or not passed.good:
        raise ValueError(f"{target.label}: {passed.failed} of {every} requests failed")
    used_s = after.cpu_s - before.cpu_s
    return Measured(passed, 1e3 * used_s / every, after.rss_bytes / 1e6, chosen, machine_after.others(machine, used_s))


def _own(target: Target, connections: int, seconds: float, rate: float, seed: int, folder: Path) -> Passed:
    body = target.body
    if target.kind == "http":
        body = whole_request(target.address, target.path, target.headers, body)
    (folder / "body").write_bytes(body)
    order = Order(
        kind=target.kind,
        address=target.address,
        path=target.path,
        body=str(folder / "body"),
        least=target.least,
        connections=connections,
        seconds=seconds,
        rate=rate,
        seed=seed,
    )
    done = subprocess.run(
        [sys.executable, "-m", "serving_bench.client"],
        input=msgspec.json.encode(order),
        stdout=subprocess.PIPE,
        cwd=HERE.parent,
        check=True,
        timeout=seconds + 60,
    )
    return msgspec.json.decode(done.stdout, type=Passed)


def _h2load(target: Target, connections: int, seconds: float, folder: Path) -> Passed:
    (folder / "body").write_bytes(target.body)
    headers = target.headers
    command = [H2LOAD, f"-c{connections}", "-m1", "-t1", f"-D{round(1e3 * seconds)}ms", "-d", str(folder / "body")]
    command += ["--log-file", str(folder / "log")]
    if target.kind == "http":
        command += ["--h1"]
    else:
        headers = {"content-type": "application/grpc", "te": "trailers"}
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    done = subprocess.run(
        [*command, f"http://{target.address}{target.path}"], capture_output=True, text=True, check=True
    )
    lines = [line.split("\t") for line in (folder / "log").read_text().splitlines()]
    taken = sorted(int(took) / 1e3 for _, status, took in lines if status == "200")
    times = [(int(start), int(start) + int(took)) for start, _, took in lines]
    elapsed_s = (max(end for _, end in times) - min(start for start, _ in times)) / 1e6 if times else seconds
    brought = re.search(r"\((\d+)\) data", done.stdout)
    # A call of gRPC that failed is a 200 too, and brings nothing.
    short = brought is None or int(brought[1]) < len(taken) * target.least
    return Passed(
        good=0 if short else len(taken),
        failed=len(lines) if short else len(lines) - len(taken),
        rps=len(taken) / elapsed_s,
        p50_ms=quantile(taken, 0.5),
        p99_ms=quantile(taken, 0.99),
        worst_ms=taken[-1] if taken else 0.0,
    )
