"""Triton's Python backend around ONNX Runtime: a batch's requests are run as one. Runs in Triton's environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What the backend looks for in the file."""

    def initialize(self, args: dict[str, str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.outputs = [each.name for each in self.session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        arrays = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            for name in self.inputs
        ]
        ends = np.cumsum([len(each) for each in arrays[0]])
        together = {name: np.concatenate(parts) for name, parts in zip(self.inputs, arrays, strict=True)}
        outputs = [np.split(whole, ends[:-1]) for whole in self.session.run(self.outputs, together)]
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, parts[index]) for name, parts in zip(self.outputs, outputs, strict=True)]
            )
            for index in range(len(requests))
        ]
