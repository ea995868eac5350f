"""Does a file answer as the trained net does?"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemux.multiplexer.errors import PassError

# float32 sums in another order; folding and softmax included. Measured: below 1e-5.
TOLERANCE = 1e-3


def same_answers(name: str, exported: NDArray[Any], trained: NDArray[Any], tolerance: float = TOLERANCE) -> float:
    """The largest difference of two probability arrays of the same shape.

    Raises PassError naming the file when it is above ``tolerance`` or not a number.
    """
    if exported.shape != trained.shape:
        raise PassError(f"{name}: answers {exported.shape}, the trained net answers {trained.shape}")
    difference = float(np.abs(exported - trained).max())
    if not difference <= tolerance:
        raise PassError(f"{name}: differs from the trained net by {difference:.2g}, allowed {tolerance:.2g}")
    return difference


def self_contained(name: str, model: onnx.ModelProto) -> None:
    """Raises PassError when a graph refers to files outside itself or carries doc strings."""
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise PassError(f"{name}: keeps weights in another file")
    texts = [model.doc_string, model.graph.doc_string, *(node.doc_string for node in model.graph.node)]
    if any(texts):
        raise PassError(f"{name}: carries doc strings")
