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

from edgemux.compression.passes import Subject
from edgemux.compression.samples import Samples
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
    was_training = net.training
    try:
        with torch.inference_mode():
            y = net.eval()(x)
    except Exception as error:  # whatever the user's forward raises
        raise ConfigError(
            f"data: the model does not take inputs of shape {['n', *samples.shape]} ({_line(error)})"
        ) from error
    finally:
        net.train(was_training)
    if not isinstance(y, Tensor) or y.ndim != 2 or len(y) != len(x):
        found = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ConfigError(f"model: must answer logits [n, classes], it answers {found} for n = {len(x)}")
    if y.shape[1] < samples.classes:
        raise ConfigError(f"model: answers {y.shape[1]} classes, the labels name {samples.classes}")


def exported(net: nn.Module, example: Tensor) -> onnx.ModelProto:
    """The net in evaluation mode as a checked graph, without names of scopes and doc strings.

    example: float32 [1, ...]. Raises PassError with the reason when the net cannot be traced.
    """
    net = copy.deepcopy(net).eval()
    x = example[:1].repeat(TRACED_BATCH, *(1,) * (example.ndim - 1))
    reasons = []
    for export in (_traced, _captured):
        try:
            with _quiet():
                model = export(net, x)
            onnx.checker.check_model(model, full_check=True)
            return _stripped(model)
        except Exception as error:  # exporters raise whatever they meet
            reasons.append(_line(error))
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


def _traced(net: nn.Module, x: Tensor) -> onnx.ModelProto:
    buffer = io.BytesIO()
    axes = {INPUT: {0: "n"}, OUTPUT: {0: "n"}}
    names = {"input_names": [INPUT], "output_names": [OUTPUT]}
    torch.onnx.export(net, (x,), buffer, dynamo=False, dynamic_axes=axes, opset_version=OPSET, **names)
    return onnx.load_from_string(buffer.getvalue())


def _captured(net: nn.Module, x: Tensor) -> onnx.ModelProto:
    shapes = ({0: torch.export.Dim("n")},)
    names = {"input_names": [INPUT], "output_names": [OUTPUT]}
    program = torch.onnx.export(
        net, (x,), dynamo=True, dynamic_shapes=shapes, opset_version=NEWER_OPSET, verbose=False, **names
    )
    assert program is not None
    return program.model_proto


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
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


def _line(error: Exception) -> str:
    """The first line of an error, shortened."""
    text = " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
