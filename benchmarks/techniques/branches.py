"""Row 16: three tasks on one frozen backbone; what a further branch costs, and that it changes nothing else."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from edgemux.compression import gauge, profile
from edgemux.compression.nets import ConvUnit
from edgemux.compression.samples import Samples, accuracy_of
from edgemux.compression.share.branches import MultiBranch, in_parts, train_branch, whole
from edgemux.compression.to_onnx import exported
from techniques import reference
from techniques.row import Figure, Row

# Classes of Fashion-MNIST in their order: top, trousers, pullover, dress, coat, sandal, shirt, sneaker, bag, boot.
TASKS = {
    "kind": (0, 1, 0, 0, 0, 2, 0, 2, 3, 2),  # worn above, below, on the feet; carried
    "sleeves": (1, 0, 1, 0, 1, 0, 1, 0, 0, 0),
    "footwear": (0, 0, 0, 0, 0, 1, 0, 1, 0, 1),
}
AT = "widen"


def rows(quick: bool) -> list[Row]:
    """A net for ten classes, and branches for coarse tasks that read its features at 7x7."""
    start = time.monotonic()
    samples = reference.fashion() if not quick else reference.fashion(600, 500)
    schedule = reference.SCHEDULE if not quick else reference.Schedule(epochs=1, batch=64, peak_rate=0.1, bf16=False)
    backbone = reference.trained("resnet", reference.ResNet, samples, schedule)
    plain = exported(backbone, samples.test_x)
    net = MultiBranch(backbone, AT)
    x = samples.test_x
    same, accuracies = True, []
    torch.manual_seed(reference.SEED)
    for task, of_class in TASKS.items():
        before, before_onnx = _answers(net, x)
        classes = 1 + max(of_class)
        net.add(
            task, nn.Sequential(ConvUnit(48, 16, size=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
        )
        labelled = _relabelled(samples, of_class)
        train_branch(net, task, labelled, 1 if quick else 4)
        after, after_onnx = _answers(net, x)
        same &= all(torch.equal(one, other) for one, other in zip(before, after, strict=False))
        same &= all(np.array_equal(one, other) for one, other in zip(before_onnx, after_onnx, strict=False))
        accuracies.append(float((after[-1].argmax(1) == labelled.test_y).float().mean()))
    graph, parts = whole(net, x), in_parts(net, x)
    before_ms, after_ms = gauge.times_ms(
        [gauge.loaded(plain), gauge.loaded(graph)], x[:1].numpy(), 20 if quick else 100
    )
    cost, work = after_ms / before_ms, profile.macs(graph) / profile.macs(plain)
    accuracy = accuracy_of(backbone, x, samples.test_y)
    told = ", ".join(f"{task} {100 * value:.1f} %" for task, value in zip(TASKS, accuracies, strict=True))
    largest = max(parts[task].ByteSize() for task in TASKS)
    return [
        Row(
            16, "branches on a frozen backbone",
            Figure(accuracy, plain.ByteSize(), before_ms), Figure(accuracy, graph.ByteSize(), after_ms),
            f"answers that were there stay to the bit, {len(TASKS)} branches under 1.3× the backbone",
            f"{'identical' if same else 'changed'} in torch and ONNX Runtime, {cost:.2f}× the ms, {work:.2f}× the MACs",
            same and cost < 1.3 and work < 1.3,
            f"{told}; a file a branch: {largest:,} bytes at most",
            time.monotonic() - start,
        )
    ]  # fmt: skip


def _relabelled(samples: Samples, of_class: tuple[int, ...]) -> Samples:
    label = torch.tensor(of_class)
    return replace(samples, train_y=label[samples.train_y], test_y=label[samples.test_y])


@torch.no_grad()
def _answers(net: MultiBranch, x: torch.Tensor) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """All tasks' answers in torch and from the one ONNX file."""
    batches = x.split(500)
    in_torch = [torch.cat(parts) for parts in zip(*(net(batch) for batch in batches), strict=True)]
    model = gauge.loaded(whole(net, x))
    in_onnx = [np.concatenate(parts) for parts in zip(*(model.run({"input": b.numpy()}) for b in batches), strict=True)]
    return in_torch, in_onnx
