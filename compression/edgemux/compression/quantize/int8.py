"""``int8``: integer arithmetic after training, calibrated on training inputs, with the types that suit the target."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import onnx
from msgspec import Meta

from edgemux.compression import gauge
from edgemux.compression.passes import Gain, Pass, Setting, Stage, Subject
from edgemux.compression.quantize.static import Method, static_int8
from edgemux.compression.quantize.targets import AUTO, TARGETS
from edgemux.compression.samples import Samples
from edgemux.compression.to_onnx import shipped
from edgemux.multiplexer.errors import PassError

COMPUTES = {"Conv", "Gemm", "MatMul"}
# A candidate may lose this much of the best one's accuracy on training inputs and still win by its time.
TOLERATED = 0.002
COMPARED = 2000


class Int8(Pass, frozen=True):
    """``int8(calibration, method)``: weights and activations as 8-bit integers (Jacob et al. 2018), by ONNX Runtime.

    calibration: training inputs that the activations' ranges are taken from. For the target ``auto`` every type pair is
    tried, and the fastest here that is about as accurate as the best wins.
    """

    label: ClassVar[str] = "int8"
    stage: ClassVar[Stage] = "onnx"
    gives: ClassVar[frozenset[Gain]] = frozenset({"speed", "storage"})

    calibration: Annotated[int, Meta(ge=1)] = 500
    method: Method = "minmax"

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Export if need be, quantise, and choose."""
        graph = shipped(subject, setting.samples)
        if not any(node.op_type in COMPUTES for node in graph.graph.node):
            raise PassError("int8: the graph has no convolution and no matrix product")
        if any(node.op_type == "QuantizeLinear" for node in graph.graph.node):
            raise PassError("int8: the graph computes in integers already")
        samples = setting.samples
        inputs = samples.train_x[: self.calibration].numpy()
        kinds = list(TARGETS.values()) if setting.target == AUTO else [TARGETS[setting.target]]
        forms = [static_int8(graph, inputs, kind, graph.graph.input[0].name, self.method) for kind in kinds]
        return subject.with_graph(forms[0] if len(forms) == 1 else _best(forms, samples))


def _best(forms: list[onnx.ModelProto], samples: Samples) -> onnx.ModelProto:
    """The fastest of those that are about as accurate on training inputs as the best."""
    models = [gauge.loaded(form) for form in forms]
    x, y = samples.train_x[:COMPARED].numpy(), samples.train_y[:COMPARED].numpy()
    right = np.array([(gauge.answers(model, x).argmax(1) == y).mean() for model in models])
    ms = gauge.times_ms(models, x[:1])
    able = [number for number in range(len(forms)) if right[number] >= right.max() - TOLERATED]
    return forms[min(able, key=lambda number: ms[number])]
