"""LitServe around ONNX Runtime: ``litserve_model.py ONNX PORT MAX_BATCH``. Runs in LitServe's environment.

A request is ``{"data": BASE64}``: LitServe reads JSON only, and numbers as text would cost it several times more.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime

KINDS = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


class Api(litserve.LitAPI):
    """One input, one output."""

    def __init__(self, path: str, max_batch: int) -> None:
        super().__init__(max_batch_size=max_batch)
        self.path = path

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        (self.tensor,) = self.session.get_inputs()
        self.output = self.session.get_outputs()[0].name

    def decode_request(self, request: dict[str, str]) -> Any:
        values = np.frombuffer(base64.b64decode(request["data"]), KINDS[self.tensor.type])
        return values.reshape(self.tensor.shape[1:])

    def predict(self, x: Any) -> Any:
        """``x``: one array, or an array of as many as were batched."""
        rows = x if self.max_batch_size > 1 else x[None]
        return self.session.run([self.output], {self.tensor.name: rows})[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"output": np.asarray(output).ravel().tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(sys.argv[1], int(sys.argv[3])), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
