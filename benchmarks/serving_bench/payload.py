"""The same row for every server, in each one's form: a gRPC message, a binary REST body, JSON with base64."""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

import numpy as np

from edgemux.wire.codec import make_request

MODEL = "model"
INPUT = "image"


class Http(NamedTuple):
    """A POST."""

    path: str
    headers: dict[str, str]
    body: bytes


def row(inputs: list[tuple[str, str, list[int]]], rows: int = 1) -> Any:
    """Values by chance, always the same, [rows, ...]."""
    ((_, datatype, shape),) = inputs
    rng = np.random.default_rng(1)
    if datatype == "UINT8":
        return rng.integers(0, 256, (rows, *shape), dtype=np.uint8)
    return rng.standard_normal((rows, *shape)).astype(np.float32)


def grpc_message(array: Any) -> bytes:
    """A ModelInferRequest, raw."""
    return bytes(make_request(MODEL, {INPUT: array}).SerializeToString())


def rest_binary(array: Any) -> Http:
    """The protocol's binary-tensor extension, both ways."""
    datatype = "UINT8" if array.dtype == np.uint8 else "FP32"
    raw = array.tobytes()
    tensor = {"name": INPUT, "datatype": datatype, "shape": list(array.shape)}
    head = {
        "inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return Http(f"/v2/models/{MODEL}/infer", headers, text + raw)


def litserve(array: Any) -> Http:
    """What peer_models/litserve_model.py reads."""
    body = json.dumps({"data": base64.b64encode(array.tobytes()).decode()}).encode()
    return Http("/predict", {"Content-Type": "application/json"}, body)
