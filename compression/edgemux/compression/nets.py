"""The cloud model: a small residual net that halves the resolution in its first layer.

Most of its work is done at 14x14 and 7x7, where two CPU cores train about a thousand images a second in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemux.compression.recipe import Cloud

CLASS_COUNT = 10
# Channels, height, width.
IMAGE_SHAPE = (1, 28, 28)
PIXEL_SCALE = 1.0 / 255.0


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU: [n, c_in, h, w] -> [n, c_out, h / stride, w / stride]."""

    def __init__(self, c_in: int, c_out: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit."""
        return torch.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    """Adds what one or two units make of their input; the shape stays."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.units = nn.Sequential(*(ConvUnit(channels, channels) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.units(x)


class CloudNet(nn.Module):
    """Pixels in 0..1, float [n, 1, 28, 28] -> logits float [n, 10]."""

    def __init__(self, widths: tuple[int, int, int], blocks: tuple[int, int]) -> None:
        super().__init__()
        stem, middle, top = widths
        self.body = nn.Sequential(
            ConvUnit(1, stem, size=5, stride=2),
            ConvUnit(stem, middle),
            Residual(middle, blocks[0]),
            nn.MaxPool2d(2),
            ConvUnit(middle, top),
            Residual(top, blocks[1]),
        )
        self.head = nn.Linear(top, CLASS_COUNT)

    @classmethod
    def of(cls, recipe: Cloud) -> CloudNet:
        """The net that a recipe describes, with fresh weights."""
        return cls(recipe.widths, recipe.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        return self.head(self.body(x).mean(dim=(2, 3)))
