"""Any torch classifier -> an ONNX graph ``input`` -> ``logits`` with a free batch size.

The TorchScript exporter is used while torch has it: 0.05 s and half the bytes against 4 s of the newer one (a net of
two convolutions, measured), which makes the difference in a search. Where it fails, the newer one is tried.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from edgemux.compression.observing import evaluating
from edgemux.compression.passes import Subject
from edgemux.compression.samples import Samples
from edgemux.compression.structure import ties_of
from edgemux.multiplexer.errors import ConfigError, PassError

INPUT, OUTPUT = "input", "logits"
OPSET = 17
# The newer exporter writes 18 and up.
NEWER_OPSET = 18
# 2 is not 1: an exporter that takes the batch size for a constant is found out.
TRACED_BATCH = 2


def check_model(net: nn.Module, samples: Samples) -> None:
    """Raises ConfigError when the net does not turn these inputs into logits [n, classes]."""
    if not isinstance(net, nn.Module):
        raise ConfigError(f"model: a torch.nn.Module or an ONNX file is needed, not {type(net).__name__}")
    x = samples.test_x[:TRACED_BATCH]
    try:
        with evaluating(net):
            y = net(x)
    except Exception as error:  # whatever the user's forward raises
        raise ConfigError(
            f"data: the model does not take inputs of shape {['n', *samples.shape]} ({first_line(error)})"
        ) from error
    if not isinstance(y, Tensor) or y.ndim != 2 or len(y) != len(x):
        found = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ConfigError(f"model: must answer logits [n, classes], it answers {found} for n = {len(x)}")
    if y.shape[1] < samples.classes:
        raise ConfigError(f"model: answers {y.shape[1]} classes, the labels name {samples.classes}")


def exported(net: nn.Module, example: Tensor, outputs: tuple[str, ...] = (OUTPUT,)) -> onnx.ModelProto:
    """The net in evaluation mode as a checked graph, without names of scopes and doc strings.

    example: float32 [1, ...]. outputs: names, one for each tensor that the net answers. Raises PassError with the
    reason when the net cannot be traced.
    """
    net = copy.deepcopy(net).eval()
    x = example[:1].repeat(TRACED_BATCH, *(1,) * (example.ndim - 1))
    reasons = []
    for export in (_traced, _captured):
        try:
            with _quiet():
                model = export(net, x, outputs)
            onnx.checker.check_model(model, full_check=True)
            return stripped(model)
        except Exception as error:  # exporters raise whatever they meet
            reasons.append(first_line(error))
    raise PassError(f"model: cannot be traced to ONNX ({'; '.join(dict.fromkeys(reasons))})")


def shipped(subject: Subject, samples: Samples) -> onnx.ModelProto:
    """The graph of a subject as it would be saved. Raises PassError when it cannot be exported."""
    if subject.graph is not None:
        return subject.graph
    if subject.net is None:
        raise PassError("nothing is left to export")
    graph = exported(subject.net, samples.test_x)
    for store in subject.stores:
        graph = store(graph)
    return graph


def _traced(net: nn.Module, x: Tensor, outputs: tuple[str, ...]) -> onnx.ModelProto:
    buffer = io.BytesIO()
    axes = {name: {0: "n"} for name in (INPUT, *outputs)}
    names = {"input_names": [INPUT], "output_names": list(outputs)}
    # Batch norms are folded into the weights before them, unless these are used elsewhere with other batch norms: one
    # tensor would become several. The runtime folds at load.
    mode = torch.onnx.TrainingMode.PRESERVE if ties_of(net) else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(net, (x,), buffer, dynamo=False, training=mode, dynamic_axes=axes, opset_version=OPSET, **names)
    return _direct(onnx.load_from_string(buffer.getvalue()))


def _direct(model: onnx.ModelProto) -> onnx.ModelProto:
    """Where a tensor is used twice, the exporter reads its second use through an Identity; here it is read directly."""
    stored = {tensor.name for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    same = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Identity" and node.input[0] in stored and node.output[0] not in outputs
    }
    nodes = [node for node in model.graph.node if node.output[0] not in same]
    for node in nodes:
        node.input[:] = [same.get(name, name) for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _captured(net: nn.Module, x: Tensor, outputs: tuple[str, ...]) -> onnx.ModelProto:
    shapes = ({0: torch.export.Dim("n")},)
    names = {"input_names": [INPUT], "output_names": list(outputs)}
    program = torch.onnx.export(
        net, (x,), dynamo=True, dynamic_shapes=shapes, opset_version=NEWER_OPSET, verbose=False, **names
    )
    assert program is not None
    return program.model_proto


def stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what only people read: at the size of small nets it is a tenth of the file."""
    model.producer_name = model.producer_version = model.doc_string = ""
    model.graph.name = "g"
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    for node in model.graph.node:
        node.name = ""
    del model.graph.value_info[:]
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both exporters warn about themselves and about what a check of the result answers anyway."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def first_line(error: Exception) -> str:
    """The first line of an error, shortened."""
    text = " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
