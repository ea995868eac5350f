"""MobileNet (Howard et al. 2017, arXiv 1704.04861): depthwise separable convolutions and two multipliers.

At 224 px this is the network of the paper's table 1; smaller inputs get its first stages, one for each halving.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from edgemux.compression.cells.sizes import Map, Shape, conv_macs, halvings, resized, rounded, strided
from edgemux.compression.cells.unit import CellNet, Unit, entrance, pooled

# Table 1: output channels of the first convolution, and of the separable blocks at each resolution.
STEM = 32
STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))


class Block(NamedTuple):
    """A depthwise 3x3 with this stride, then a pointwise convolution."""

    c_in: int
    c_out: int
    stride: int


def _plan(shape: Shape, width: float, resolution: float, round_to: int) -> tuple[Map, int, int, list[Block]]:
    """Input map, stride and channels of the first convolution, and the blocks."""
    size = resized(shape, resolution)
    count = halvings(size)
    stem = c_in = rounded(STEM * width, round_to)
    blocks = []
    for stage, widths in enumerate(STAGES[: max(1, count)]):
        for at, base in enumerate(widths):
            c_out = rounded(base * width, round_to)
            blocks.append(Block(c_in, c_out, 2 if stage and not at else 1))
            c_in = c_out
    return size, min(2, 1 + count), stem, blocks


def student(shape: Shape, classes: int, width: float = 1.0, resolution: float = 1.0, round_to: int = 8) -> nn.Module:
    """A network with fresh weights for inputs float [n, *shape].

    width, resolution: the paper's alpha and rho; rho is a resize inside the network. round_to: channels are multiples
    of it, 8 as in the reference networks; less makes very small widths differ.
    """
    _, stride, stem, blocks = _plan(shape, width, resolution, round_to)
    body = [*entrance(shape, resolution), Unit(shape[0], stem, stride=stride)]
    for block in blocks:
        body.append(Unit(block.c_in, block.c_in, stride=block.stride, groups=block.c_in))
        body.append(Unit(block.c_in, block.c_out, kernel=1))
    return CellNet([*body, *pooled()], blocks[-1].c_out, classes)


def macs(shape: Shape, classes: int, width: float = 1.0, resolution: float = 1.0, round_to: int = 8) -> int:
    """Multiply-accumulates of ``student`` for one input; the paper's equation 7 summed over the blocks."""
    size, stride, stem, blocks = _plan(shape, width, resolution, round_to)
    size = strided(size, stride)
    total = conv_macs(shape[0], stem, 3, 1, size)
    for block in blocks:
        size = strided(size, block.stride)
        total += conv_macs(block.c_in, block.c_in, 3, block.c_in, size)
        total += conv_macs(block.c_in, block.c_out, 1, 1, size)
    return total + blocks[-1].c_out * classes
