"""A slimmable net: dense, and level k uses the first channels of every layer (Yu et al. 2019).

The channels of a level read all channels of that level below them, so what a lower level computes is of no use to a
higher one, and each level needs its own batch norm: the same channel has other statistics at every width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemux.compression.nets import CLASS_COUNT, IMAGE_SHAPE
from edgemux.compression.recipe import Family


class SlimmableConv(nn.Module):
    """Convolution whose first channels are a level, with one batch norm a level (switchable batch norm).

    ``c_in`` and ``c_out``: channels of each level.
    """

    def __init__(self, c_in: tuple[int, ...], c_out: tuple[int, ...], size: int, stride: int) -> None:
        super().__init__()
        self.c_in, self.c_out, self.size, self.stride = c_in, c_out, size, stride
        self.weight = nn.Parameter(torch.empty(c_out[-1], c_in[-1], size, size))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in c_out)
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """float [n, c_in of the level, h, w] -> [n, c_out of the level, h / stride, w / stride]; 1 = smallest."""
        weight = self.weight[: self.c_out[level - 1], : self.c_in[level - 1]]
        y = nn.functional.conv2d(x, weight, None, self.stride, self.size // 2)
        return torch.relu(self.norms[level - 1](y))


class SlimmableNet(nn.Module):
    """Pixels in 0..1, float [n, *shape] -> logits of every level, float [levels, n, classes], one pass a level.

    The layers are those of ``NestedNet``. The classifier is sliced like the layers; all levels share its bias.
    """

    def __init__(self, family: Family, shape: tuple[int, int, int] = IMAGE_SHAPE, classes: int = CLASS_COUNT) -> None:
        super().__init__()
        self.levels = family.levels
        self.conv1 = SlimmableConv((shape[0],) * family.levels, family.conv1, size=5, stride=2)
        self.conv2 = SlimmableConv(family.conv1, family.conv2, size=3, stride=1)
        self.conv3 = SlimmableConv(family.conv2, family.conv3, size=3, stride=1)
        self.conv4 = SlimmableConv(family.conv3, family.conv4, size=3, stride=1)
        self.head = nn.Linear(family.conv4[-1], classes)

    def at(self, x: Tensor, level: int) -> Tensor:
        """Logits float [n, classes] of one level (1 = smallest)."""
        x = self.conv3(self.conv2(self.conv1(x, level), level), level)
        features = self.conv4(nn.functional.max_pool2d(x, 2), level).mean(dim=(2, 3))
        return nn.functional.linear(features, self.head.weight[:, : features.shape[1]], self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all levels: their losses are summed, as the paper does."""
        return torch.stack([self.at(x, level) for level in range(1, self.levels + 1)])
