"""VarGNet (Zhang et al. 2019, arXiv 1907.05653): group convolutions with a fixed number of channels a group.

So every group is the same amount of work, and the groups vary with the channels. Blocks as in VarGNet; the first layers
and the embedding as in VarGFaceNet (Yan et al. 2019, arXiv 1910.04985), whose network this is at 112 px, less its
squeeze-and-excitation and with ReLU for PReLU. Smaller inputs get its first stages, one for each halving.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgemux.compression.cells.sizes import Map, Shape, conv_macs, halvings, resized, rounded, strided
from edgemux.compression.cells.unit import CellNet, Unit, entrance

# VarGFaceNet and its authors' code: channels of the first convolution and of the stages, blocks a stage.
STEM, STAGES, BLOCKS = 40, (80, 160, 320), (3, 7, 4)
# A variable group convolution doubles the channels, the pointwise one brings them back; not so in the head block.
EXPANSION, HEAD_EXPANSION = 2, 1
# VarGFaceNet expands 320 channels to 1024 before the map is shrunk to one point, and embeds in half of that.
TAIL = 1024 / 320
# Above 112 px the first convolution halves too.
STRIDED_FROM = 5


class Block(NamedTuple):
    """One block: channels, stride, two first convolutions or one, and the map it answers."""

    c_in: int
    c_out: int
    stride: int
    merge: bool
    out: Map
    expansion: int

    @property
    def changes(self) -> bool:
        """Whether the shortcut is more than the input."""
        return self.merge or self.stride > 1 or self.c_in != self.c_out

    def macs(self, group: int) -> int:
        """Multiply-accumulates for one input."""
        entries = 1 + self.merge + self.changes
        return entries * self._separable_macs(self.c_in, group) + self._separable_macs(self.c_out, group)

    def _separable_macs(self, c_in: int, group: int) -> int:
        middle = self.expansion * c_in
        return conv_macs(c_in, middle, 3, c_in // group, self.out) + conv_macs(middle, self.c_out, 1, 1, self.out)


class Separable(nn.Sequential):
    """Variable group convolution to ``expansion`` times the channels, then a pointwise one without ReLU."""

    def __init__(self, c_in: int, c_out: int, group: int, expansion: int, stride: int = 1) -> None:
        middle = expansion * c_in
        conv = nn.Conv2d(c_in, middle, 3, stride, 1, groups=c_in // group, bias=False)
        super().__init__(conv, nn.BatchNorm2d(middle), nn.ReLU(), Unit(middle, c_out, kernel=1, plain=True))


class VarGBlock(nn.Module):
    """Two separable convolutions beside a shortcut.

    Where the channels or the map change, the shortcut is a separable convolution; in a down-sampling block (``merge``)
    the first convolution is a sum of two.
    """

    def __init__(self, block: Block, group: int) -> None:
        super().__init__()
        entry = partial(Separable, block.c_in, block.c_out, group, block.expansion, block.stride)
        self.first = nn.ModuleList(entry() for _ in range(1 + block.merge))
        self.second = Separable(block.c_out, block.c_out, group, block.expansion)
        self.shortcut: nn.Module = entry() if block.changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        middle = self.first[0](x) if len(self.first) == 1 else self.first[0](x) + self.first[1](x)
        return torch.relu(self.second(torch.relu(middle)) + self.shortcut(x))


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
    blocks = [Block(c_in, c_in, head, False, size, HEAD_EXPANSION)]
    # One halving is the head block's; a network without any keeps its map.
    halved = count - 1 - (stride - 1)
    for stage, base in enumerate(STAGES[: max(1, halved)]):
        c_out = rounded(base * width, group)
        for at in range(BLOCKS[stage]):
            step = 2 if not at and stage < halved else 1
            size = strided(size, step)
            blocks.append(Block(c_in, c_out, step, not at, size, EXPANSION))
            c_in = c_out
    tail = rounded(TAIL * c_in, 2 * group)
    return Plan(stride, stem, first, blocks, tail, tail // 2)


def student(shape: Shape, classes: int, width: float = 1.0, resolution: float = 1.0, group: int = 8) -> nn.Module:
    """A network with fresh weights for inputs float [n, *shape].

    width: factor on all channels. group: channels of a group, the papers' S = 8; channels are multiples of it.
    """
    plan = _plan(shape, width, resolution, group)
    body = [*entrance(shape, resolution), Unit(shape[0], plan.stem, stride=plan.stride)]
    body += [VarGBlock(block, group) for block in plan.blocks]
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
