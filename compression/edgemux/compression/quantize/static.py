"""int8 arithmetic: weights and activations, through ONNX Runtime's own quantiser.

One scale per output channel of a weight; the types are the target's, see ``targets``. The default is U8S8 with 7-bit
weights: without those the 16-bit sums of AVX2 machines that lack VNNI saturate, and a bundle must answer alike wherever
it runs.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgemux.compression.quantize.targets import TARGETS, Arithmetic

CALIBRATION_BATCH = 50
Method = Literal["minmax", "percentile", "entropy"]
METHODS: dict[Method, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


class _Inputs(CalibrationDataReader):
    """Feeds calibration inputs [n, ...] in small batches."""

    def __init__(self, inputs: NDArray[Any], name: str) -> None:
        self._batches = iter(np.array_split(inputs, max(1, len(inputs) // CALIBRATION_BATCH)))
        self._name = name

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The library warns about every model on the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def static_int8(
    model: onnx.ModelProto,
    calibration: NDArray[Any],
    how: Arithmetic = TARGETS["x86-avx2"],
    input_name: str = "image",
    method: Method = "minmax",
) -> onnx.ModelProto:
    """The same graph with QuantizeLinear and DequantizeLinear around every operator.

    calibration: inputs [n, ...] of the type that the graph takes. method: how a range is taken from the values seen.
    """
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        onnx.save(model, folder / "fp32.onnx")
        quant_pre_process(str(folder / "fp32.onnx"), str(folder / "ready.onnx"), skip_symbolic_shape=True)
        quantize_static(
            str(folder / "ready.onnx"),
            str(folder / "int8.onnx"),
            _Inputs(calibration, input_name),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if how.signed_activations else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=how.reduce_range,
            calibrate_method=METHODS[method],
        )
        result = onnx.load(folder / "int8.onnx")
    result.producer_name = ""
    result.producer_version = ""
    return result
