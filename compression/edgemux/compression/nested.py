"""The nested family: one net whose levels share their lower channels.

Every layer's output channels are cut into groups, one per level, and a channel of group k reads only channels of
groups <= k: the weight matrices are block lower triangular (Doubly Nested Network, Kim et al. 2018). So one pass of
the widest net contains every level exactly, batch statistics do not depend on the level, and raising the level adds
work but changes nothing that was computed before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemux.compression.nets import CLASS_COUNT, IMAGE_SHAPE
from edgemux.compression.quantize.weights import round_to_int8
from edgemux.compression.recipe import Family


class TriangularConv(nn.Module):
    """Convolution and batch norm whose weights are masked to be block triangular.

    ``c_in`` and ``c_out`` are cumulative channels per level; the channels of an image are read by every group.
    """

    mask: Tensor

    def __init__(self, c_in: tuple[int, ...], c_out: tuple[int, ...], size: int, stride: int) -> None:
        super().__init__()
        self.c_in, self.c_out, self.size, self.stride = c_in, c_out, size, stride
        self.conv = nn.Conv2d(c_in[-1], c_out[-1], size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(c_out[-1])
        self.quantised = False
        mask = torch.zeros(c_out[-1], c_in[-1], 1, 1)
        fan_in = torch.zeros(c_out[-1], 1, 1, 1)
        for first, last, seen in zip((0, *c_out), c_out, c_in, strict=False):
            mask[first:last, :seen] = 1.0
            fan_in[first:last] = seen * size * size
        self.register_buffer("mask", mask, persistent=False)
        with torch.no_grad():
            # He et al. 2015, with the fan-in that is left of each row.
            self.conv.weight.normal_().mul_((2.0 / fan_in).sqrt()).mul_(mask)

    def weight(self) -> Tensor:
        """The weights in force: masked, and rounded to int8 steps once ``quantised`` is set."""
        masked = self.conv.weight * self.mask
        return round_to_int8(masked) if self.quantised else masked

    def forward(self, x: Tensor) -> Tensor:
        """float [n, c_in, h, w] -> [n, c_out, h / stride, w / stride]."""
        y = nn.functional.conv2d(x, self.weight(), None, self.stride, self.size // 2)
        return torch.relu(self.norm(y))

    def rows(self, level: int) -> slice:
        """The output channels that a level (1 = smallest) adds."""
        return slice(0 if level == 1 else self.c_out[level - 2], self.c_out[level - 1])

    def group(self, x: Tensor, level: int, learning: bool) -> Tensor:
        """Only the channels that a level adds; x: float [n, at least what the level reads, h, w].

        learning: normalise by the batch and update this group's running statistics; else use the running ones.
        """
        rows, seen, norm = self.rows(level), self.c_in[level - 1], self.norm
        y = nn.functional.conv2d(x[:, :seen], self.weight()[rows, :seen], None, self.stride, self.size // 2)
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        running = (norm.running_mean[rows], norm.running_var[rows])
        affine = (norm.weight[rows], norm.bias[rows])
        return torch.relu(nn.functional.batch_norm(y, *running, *affine, learning, norm.momentum, norm.eps))


class Head(nn.Linear):
    """A level's classifier, rounded to int8 steps once ``quantised`` is set."""

    quantised = False

    def matrix(self) -> Tensor:
        """The weights in force, float [classes, features]."""
        return round_to_int8(self.weight) if self.quantised else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """float [n, features] -> logits [n, classes]."""
        return nn.functional.linear(x, self.matrix(), self.bias)


class NestedNet(nn.Module):
    """Pixels in 0..1, float [n, *shape] -> logits of every level, float [levels, n, classes].

    shape: channels, height and width of an image; the net itself takes any height and width, the files these.
    """

    def __init__(self, family: Family, shape: tuple[int, int, int] = IMAGE_SHAPE, classes: int = CLASS_COUNT) -> None:
        super().__init__()
        self.shape, self.classes = shape, classes
        image = (shape[0],) * family.levels
        self.conv1 = TriangularConv(image, family.conv1, size=5, stride=2)
        self.conv2 = TriangularConv(family.conv1, family.conv2, size=3, stride=1)
        self.conv3 = TriangularConv(family.conv2, family.conv3, size=3, stride=1)
        self.conv4 = TriangularConv(family.conv3, family.conv4, size=3, stride=1)
        self.heads = nn.ModuleList(Head(width, classes) for width in family.conv4)

    def features(self, x: Tensor) -> Tensor:
        """float [n, channels of conv4]: what the heads read."""
        x = self.conv3(self.conv2(self.conv1(x)))
        return self.conv4(nn.functional.max_pool2d(x, 2)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all levels from one pass of the widest."""
        features = self.features(x)
        return torch.stack([head(features[:, : head.in_features]) for head in self.heads])

    def quantise(self, on: bool) -> None:
        """Train and answer with int8-rounded weights from now on, or no longer."""
        for part in self.modules():
            if isinstance(part, (TriangularConv, Head)):
                part.quantised = on
