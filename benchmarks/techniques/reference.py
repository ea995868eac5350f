"""The nets and the data that the techniques are measured on; trained once and kept in the user's cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from edgemux.compression import data, places
from edgemux.compression.augment import Batch
from edgemux.compression.fit import Tick, fit_drawn
from edgemux.compression.nets import ConvUnit, Residual
from edgemux.compression.recipe import Schedule
from edgemux.compression.samples import Samples
from edgemux.compression.workshop import Workshop

SEED = 20261125
TRAIN, TEST = 12_000, 10_000
SCHEDULE = Schedule(epochs=12, batch=128, peak_rate=0.1, bf16=False)
QUICK = Schedule(epochs=2, batch=64, peak_rate=0.05, bf16=False)
WEIGHTS = "weights.pt"


def fashion(train: int = TRAIN, test: int = TEST) -> Samples:
    """Fashion-MNIST: the first so many images of a stratified shuffle, float32 [n, 1, 28, 28] in 0..1."""
    images = data.load("fashion-mnist", 5000, SEED)
    return Samples.of_splits(images.train, images.test).limited(train, test)


class LeNet(nn.Module):
    """The LeNet-5 of the compression literature (LeCun et al. 1998, as in Han et al. 2016): 431,080 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """float [n, 1, 28, 28] -> logits [n, 10]."""
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class PlainNet(nn.Module):
    """Four convolutions with batch norm, no shortcuts: where channel selection is told apart most clearly."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvUnit(1, width, size=5, stride=2),
            ConvUnit(width, 2 * width),
            nn.MaxPool2d(2),
            ConvUnit(2 * width, 2 * width),
            ConvUnit(2 * width, 4 * width),
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """float [n, 1, 28, 28] -> logits [n, 10]."""
        return self.head(self.body(x).mean(dim=(2, 3)))


class ResNet(nn.Module):
    """A stem and residual stages at 14x14 and 7x7; ``depth`` blocks of two convolutions a stage."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.stem = ConvUnit(1, width, size=5, stride=2)
        self.low = nn.Sequential(*(Residual(width, 2) for _ in range(depth)))
        self.widen = ConvUnit(width, 2 * width, stride=2)
        self.high = nn.Sequential(*(Residual(2 * width, 2) for _ in range(depth)))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """float [n, 1, 28, 28] -> logits [n, 10]."""
        return self.head(self.high(self.widen(self.low(self.stem(x)))).mean(dim=(2, 3)))


def trained(name: str, make: Callable[[], nn.Module], samples: Samples, schedule: Schedule = SCHEDULE) -> nn.Module:
    """The net, trained with plain cross-entropy on the samples; kept under its name, schedule and number of images."""
    torch.manual_seed(SEED)
    net = make()

    def work(folder: Path, tick: Tick) -> None:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return nn.functional.cross_entropy(model(batch.pixels).float(), samples.train_y[batch.index])

        fit_drawn(net, len(samples.train_x), samples.draw, loss, schedule, SEED, folder / "checkpoint.pt", tick)
        torch.save(net.state_dict(), folder / WEIGHTS)

    folder = Workshop(cache()).stage(f"reference-{name}", work, schedule, len(samples.train_x), SEED)
    net.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    return net.eval().requires_grad_(True)


def cache() -> Path:
    """Where reference nets are kept between runs."""
    return places.cache("benchmarks")
