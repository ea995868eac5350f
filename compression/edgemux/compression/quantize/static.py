"""int8 arithmetic: weights and activations, through ONNX Runtime's own quantiser.

U8S8 with one scale per output channel. Weights use 7 bits (``reduce_range``): without it the 16-bit sums of AVX2
machines that lack VNNI saturate, and a bundle must answer alike wherever it runs.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

CALIBRATION_BATCH = 50


class _Images(CalibrationDataReader):
    """Feeds calibration images, uint8 [n, 28, 28], in small batches."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._batches = iter(np.array_split(images, max(1, len(images) // CALIBRATION_BATCH)))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library warns about every model on the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def static_int8(model: onnx.ModelProto, calibration: NDArray[np.uint8]) -> onnx.ModelProto:
    """The same graph with QuantizeLinear and DequantizeLinear around every operator."""
    with tempfile.TemporaryDirectory() as name, _quiet():
        folder = Path(name)
        onnx.save(model, folder / "fp32.onnx")
        quant_pre_process(str(folder / "fp32.onnx"), str(folder / "ready.onnx"), skip_symbolic_shape=True)
        quantize_static(
            str(folder / "ready.onnx"),
            str(folder / "int8.onnx"),
            _Images(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        result = onnx.load(folder / "int8.onnx")
    result.producer_name = ""
    result.producer_version = ""
    return result
