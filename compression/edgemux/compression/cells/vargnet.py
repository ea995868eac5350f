"""VarGNet (Zhang et al. 2019, arXiv 1907.05653): group convolutions with a fixed number of channels a group.

So every group is the same amount of work, and the groups vary with the channels. Blocks as in VarGNet; the first layers
and the embedding as in VarGFaceNet (Yan et al. 2019, arXiv 1910.04985), whose network this is at 112 px, less its
squeeze-and-excitation and with ReLU for PReLU. Smaller inputs get its first stages, one for each halving.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgemux.compression.cells.sizes import Map, Shape, conv_macs, halvings, resized, rounded, strided
from edgemux.compression.cells.unit import CellNet, Unit, entrance

# VarGFaceNet, table 1: channels of the first convolution and of the stages, blocks a stage.
STEM, STAGES, BLOCKS = 40, (80, 160, 320), (3, 7, 4)
# A variable group convolution doubles the channels, the pointwise one brings them back.
EXPANSION = 2
# VarGFaceNet expands 320 channels to 1024 before the map is shrunk to one point, and embeds in half of that.
TAIL = 1024 / 320
# Above 112 px the first convolution halves too.
STRIDED_FROM = 5


def var_group_conv(c_in: int, c_out: int, group: int, kernel: int = 3, stride: int = 1, fill: bool = True) -> nn.Conv2d:
    """A convolution whose groups have ``group`` input channels each; ``fill``: padded to keep the map."""
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2 if fill else 0, groups=c_in // group, bias=False)


class Separable(nn.Sequential):
    """Variable group convolution to twice the channels, then a pointwise convolution; ``plain``: no ReLU at the end."""

    def __init__(self, c_in: int, c_out: int, group: int, stride: int = 1, plain: bool = False) -> None:
        middle = EXPANSION * c_in
        conv = var_group_conv(c_in, middle, group, stride=stride)
        super().__init__(conv, nn.BatchNorm2d(middle), nn.ReLU(), Unit(middle, c_out, kernel=1, plain=plain))


class VarGBlock(nn.Module):
    """Two separable convolutions beside a shortcut.

    Where the channels or the map change, the shortcut is a separable convolution; in a down-sampling block (``merge``)
    the first convolution is a sum of two.
    """

    def __init__(self, c_in: int, c_out: int, group: int, stride: int, merge: bool) -> None:
        super().__init__()
        self.first = nn.ModuleList(Separable(c_in, c_out, group, stride, plain=True) for _ in range(1 + merge))
        self.second = Separable(c_out, c_out, group, plain=True)
        same = c_in == c_out and stride == 1 and not merge
        self.shortcut: nn.Module = nn.Identity() if same else Separable(c_in, c_out, group, stride, plain=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        middle = self.first[0](x) if len(self.first) == 1 else self.first[0](x) + self.first[1](x)
        return torch.relu(self.second(torch.relu(middle)) + self.shortcut(x))


class Block(NamedTuple):
    """One block: channels, stride, two first convolutions or one, and the map it answers."""

    c_in: int
    c_out: int
    stride: int
    merge: bool
    out: Map

    def macs(self, group: int) -> int:
        """Multiply-accumulates for one input."""
        changes = self.merge or self.stride > 1 or self.c_in != self.c_out
        entries = 1 + self.merge + changes
        return entries * _separable_macs(self.c_in, self.c_out, group, self.out) + _separable_macs(
            self.c_out, self.c_out, group, self.out
        )


def _separable_macs(c_in: int, c_out: int, group: int, out: Map) -> int:
    middle = EXPANSION * c_in
    return conv_macs(c_in, middle, 3, c_in // group, out) + conv_macs(middle, c_out, 1, 1, out)


class Plan(NamedTuple):
    """Stride, channels and map of the first convolution, the blocks, channels of the tail and of the embedding."""

    stride: int
    stem: int
    size: Map
    blocks: list[Block]
    tail: int
    embedding: int


def _plan(shape: Shape, width: float, resolution: float, group: int) -> Plan:
    size = resized(shape, resolution)
    count = halvings(size)
    stem = c_in = rounded(STEM * width, group)
    stride = 2 if count >= STRIDED_FROM else 1
    first = size = strided(size, stride)
    head = 2 if count > 0 else 1
    size = strided(size, head)
    blocks = [Block(c_in, c_in, head, False, size)]
    # One halving is the head block's; a network without any keeps its map.
    halved = count - 1 - (stride - 1)
    for stage, base in enumerate(STAGES[: max(1, halved)]):
        c_out = rounded(base * width, group)
        for at in range(BLOCKS[stage]):
            step = 2 if not at and stage < halved else 1
            size = strided(size, step)
            blocks.append(Block(c_in, c_out, step, not at, size))
            c_in = c_out
    tail = rounded(TAIL * c_in, EXPANSION * group)
    return Plan(stride, stem, first, blocks, tail, tail // 2)


def student(shape: Shape, classes: int, width: float = 1.0, resolution: float = 1.0, group: int = 8) -> nn.Module:
    """A network with fresh weights for inputs float [n, *shape].

    width: factor on all channels. group: channels of a group, the papers' S = 8; channels are multiples of it.
    """
    plan = _plan(shape, width, resolution, group)
    body = [*entrance(shape, resolution), Unit(shape[0], plan.stem, stride=plan.stride)]
    body += [VarGBlock(block.c_in, block.c_out, group, block.stride, block.merge) for block in plan.blocks]
    body += _tail(plan, group)
    return CellNet(body, plan.embedding, classes)


def _tail(plan: Plan, group: int) -> list[nn.Module]:
    """Expands the channels, shrinks the map to one point group by group, and embeds: -> [n, embedding]."""
    last = plan.blocks[-1]
    kernel = last.out
    shrink = nn.Conv2d(plan.tail, plan.tail, kernel, groups=plan.tail // group, bias=False)
    return [
        Unit(last.c_out, plan.tail, kernel=1),
        shrink,
        nn.BatchNorm2d(plan.tail),
        Unit(plan.tail, plan.embedding, kernel=1, plain=True),
        nn.Flatten(),
    ]


def macs(shape: Shape, classes: int, width: float = 1.0, resolution: float = 1.0, group: int = 8) -> int:
    """Multiply-accumulates of ``student`` for one input."""
    plan = _plan(shape, width, resolution, group)
    last = plan.blocks[-1]
    total = conv_macs(shape[0], plan.stem, 3, 1, plan.size) + sum(block.macs(group) for block in plan.blocks)
    total += conv_macs(last.c_out, plan.tail, 1, 1, last.out)
    total += plan.tail * group * last.out[0] * last.out[1]
    total += plan.tail * plan.embedding
    return total + plan.embedding * classes
