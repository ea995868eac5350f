"""Training and measuring small students on Fashion-MNIST, for the benchmarks of cells and of angular distillation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import onnx
import torch
from torch import nn

from edgemux.compression import gauge
from edgemux.compression.cells.sizes import Shape
from edgemux.compression.retrain import label_loss, retrain
from edgemux.compression.samples import Samples, accuracy_of
from edgemux.compression.to_onnx import exported
from techniques import reference
from techniques.row import Figure

SHAPE: Shape = (1, 28, 28)
CLASSES = 10
# One schedule for all cells, so that what is compared are the cells. Higher than a large net's rate: these are small
# and see few images.
EPOCHS, RATE = 8, 0.3
TRAIN, TEST = 6000, 10_000
QUICK_TRAIN, QUICK_TEST, QUICK_EPOCHS = 640, 500, 2


def counts(quick: bool) -> tuple[int, int]:
    """Training and test images."""
    return (QUICK_TRAIN, QUICK_TEST) if quick else (TRAIN, TEST)


def fresh(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The net with weights drawn from ``seed``."""
    torch.manual_seed(seed)
    return make()


def taught(make: Callable[[], nn.Module], samples: Samples, epochs: int, seed: int) -> nn.Module:
    """A fresh net, trained from the labels alone."""
    return retrain(fresh(make, seed), samples, label_loss(samples), epochs, RATE, seed)


def teacher(name: str, make: Callable[[], nn.Module], samples: Samples, quick: bool) -> nn.Module:
    """A reference net, kept from run to run; ``quick``: one that has hardly learned."""
    return taught(make, samples, QUICK_EPOCHS, 0) if quick else reference.trained(name, make, samples)


def accuracy(nets: Sequence[nn.Module], samples: Samples) -> float:
    """Mean accuracy of nets that differ by their seed."""
    return statistics.fmean(accuracy_of(net, samples.test_x, samples.test_y) for net in nets)


def figures(graphs: Sequence[onnx.ModelProto], accuracies: Sequence[float], samples: Samples) -> list[Figure]:
    """Bytes and ms of each graph, all measured in turns, beside the accuracies given."""
    times = gauge.times_ms([gauge.loaded(graph) for graph in graphs], samples.test_x[:1].numpy())
    return [
        Figure(share, len(graph.SerializeToString()), ms)
        for graph, share, ms in zip(graphs, accuracies, times, strict=True)
    ]


def graph_of(net: nn.Module, samples: Samples) -> onnx.ModelProto:
    """The net as it would be shipped."""
    return exported(net, samples.test_x)


def percent(share: float) -> str:
    """0.8723 -> 87.2 %."""
    return f"{100 * share:.1f} %"
