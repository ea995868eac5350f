"""What the cells are made of."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from edgemux.compression.cells.sizes import Map, Shape, resized


class Unit(nn.Sequential):
    """Convolution without bias, batch norm and, unless ``plain``, ReLU; padded so that stride 1 keeps the map."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, plain: bool = False
    ) -> None:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(c_out), *([] if plain else [nn.ReLU()]))


class Resize(nn.Module):
    """Bilinear resize from one fixed map to another: float [n, c, *before] -> [n, c, *after].

    Given as factors, it exports as one Resize node with constants; given as a size, the exporter computes the shape at
    run time and shape inference loses the map.
    """

    def __init__(self, before: Map, after: Map) -> None:
        super().__init__()
        self.factors = factor(before[0], after[0]), factor(before[1], after[1])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the resize."""
        return functional.interpolate(x, scale_factor=self.factors, mode="bilinear", align_corners=False)


def factor(before: int, after: int) -> float:
    """A float32 value f, after / before or a little more, so that floor(f * before) is ``after`` however rounded."""
    return 1.0 if before == after else float(np.nextafter(np.float32(after / before), np.float32(np.inf)))


class CellNet(nn.Module):
    """A body that ends in an embedding [n, features], and a linear head: float [n, c, h, w] -> logits [n, classes]."""

    def __init__(self, body: list[nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        return self.head(self.body(x))


def entrance(shape: Shape, resolution: float) -> list[nn.Module]:
    """The resolution multiplier as part of the network, so that it is exported too: nothing at 1."""
    size = resized(shape, resolution)
    return [] if size == shape[1:] else [Resize((shape[1], shape[2]), size)]


def pooled() -> list[nn.Module]:
    """The mean of every channel: [n, c, h, w] -> [n, c]."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
