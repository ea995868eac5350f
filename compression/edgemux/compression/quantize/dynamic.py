"""``int8_dynamic``: integer weights, and activations whose ranges are taken anew from every input; no calibration.

ONNX Runtime has such operators for LSTM, matrix products and convolutions, and none for GRU, which stays in float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgemux.compression.passes import Gain, Pass, Setting, Stage, Subject
from edgemux.compression.quantize.static import quiet
from edgemux.compression.quantize.targets import Arithmetic, arithmetic_of
from edgemux.compression.to_onnx import shipped
from edgemux.multiplexer.errors import PassError

# The library makes a MatMul and an Add of every Gemm first.
KINDS = ("LSTM", "MatMul", "Gemm")
COMPUTES = {"DynamicQuantizeLSTM", "MatMulInteger", "ConvInteger"}


def dynamic_int8(
    model: onnx.ModelProto, how: Arithmetic, per_channel: bool = False, convs: bool = False
) -> onnx.ModelProto:
    """The same graph with integer LSTM, MatMul and, with ``convs``, Conv nodes; weights signed, activations unsigned.

    per_channel: one scale for every output of a weight, and of every gate's unit of an LSTM, instead of one in all.
    """
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        onnx.save(model, folder / "fp32.onnx")
        quantize_dynamic(
            folder / "fp32.onnx",
            folder / "int8.onnx",
            op_types_to_quantize=[*KINDS, "Conv"] if convs else list(KINDS),
            per_channel=per_channel,
            reduce_range=how.reduce_range,
            weight_type=QuantType.QInt8,
        )
        result = onnx.load(folder / "int8.onnx")
    result.producer_name = ""
    result.producer_version = ""
    return result


class Int8Dynamic(Pass, frozen=True):
    """``int8_dynamic(per_channel, convs)``: LSTM and linear layers in 8-bit integers, by ONNX Runtime.

    per_channel: one scale for every output instead of one a tensor. An LSTM of 256 units on rows of Fashion-MNIST was
    as accurate without (79.3 % of training inputs either way), a tenth faster and 3 % smaller. convs: convolutions
    too, which is slower than float32 on most devices. A net whose work is in GRU layers gains nothing; units() makes
    those faster.
    """

    label: ClassVar[str] = "int8_dynamic"
    stage: ClassVar[Stage] = "onnx"
    gives: ClassVar[frozenset[Gain]] = frozenset({"speed", "storage"})

    per_channel: bool = False
    convs: bool = False

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Export if need be, and quantise."""
        graph = shipped(subject, setting.samples)
        if any(node.op_type in COMPUTES or node.op_type == "QuantizeLinear" for node in graph.graph.node):
            raise PassError("int8_dynamic: the graph computes in integers already")
        result = dynamic_int8(graph, arithmetic_of(setting.target), self.per_channel, self.convs)
        if not any(node.op_type in COMPUTES for node in result.graph.node):
            kinds = "LSTM, MatMul, Gemm or Conv" if self.convs else "LSTM, MatMul or Gemm"
            raise PassError(f"int8_dynamic: the graph has no {kinds} with constant weights; GRU stays in float32")
        return subject.with_graph(result)
