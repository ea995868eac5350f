"""ShuffleNet (Zhang et al. 2018, arXiv 1707.01083): grouped pointwise convolutions and a channel shuffle.

At 224 px this is the network of the paper's table 1; smaller inputs get its first stages, one for each halving after
the first convolution's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgemux.compression.cells.sizes import Map, Shape, conv_macs, halvings, resized, rounded, strided
from edgemux.compression.cells.unit import CellNet, Unit, entrance, pooled

# Table 1: channels of the first convolution; of the first stage by groups (doubled from stage to stage); units a stage.
STEM, CHANNELS, UNITS = 24, {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}, (4, 8, 4)
# Section 3.2: the bottleneck has a quarter of the unit's channels.
BOTTLENECK = 4
POOL_FROM = 5


class Shuffle(nn.Module):
    """Channel (i, j) of ``groups`` groups becomes channel (j, i): float [n, c, *size] -> the same shape.

    The map is given, so that the export is a Reshape, a Transpose and a Reshape with constant shapes.
    """

    def __init__(self, channels: int, groups: int, size: Map) -> None:
        super().__init__()
        self.channels, self.groups, self.size = channels, groups, size

    def forward(self, x: Tensor) -> Tensor:
        """Apply the shuffle."""
        parts = x.reshape(-1, self.groups, self.channels // self.groups, *self.size)
        return parts.transpose(1, 2).reshape(-1, self.channels, *self.size)

    def inverse(self) -> Shuffle:
        """The shuffle that undoes this one."""
        return Shuffle(self.channels, self.channels // self.groups, self.size)


class UnitPlan(NamedTuple):
    """One unit: its channels, its stride, the groups of its first pointwise convolution, and the map it takes.

    ``joins``: its answer is put beside the pooled input instead of being added to it.
    """

    c_in: int
    c_out: int
    stride: int
    first_groups: int
    groups: int
    size: Map
    joins: bool

    @property
    def middle(self) -> int:
        """Channels of the bottleneck."""
        return self.c_out // BOTTLENECK

    @property
    def made(self) -> int:
        """Channels that the unit computes; the others are its pooled input."""
        return self.c_out - self.c_in if self.joins else self.c_out


class ShuffleUnit(nn.Module):
    """Figure 2 (b) and (c) of the paper; the shuffle can be left out to measure what it costs."""

    def __init__(self, plan: UnitPlan, shuffle: bool) -> None:
        super().__init__()
        middle = plan.middle
        shuffles = [Shuffle(middle, plan.groups, plan.size)] if shuffle else []
        self.branch = nn.Sequential(
            Unit(plan.c_in, middle, kernel=1, groups=plan.first_groups),
            *shuffles,
            Unit(middle, middle, stride=plan.stride, groups=middle, plain=True),
            Unit(middle, plan.made, kernel=1, groups=plan.groups, plain=True),
        )
        self.pool = nn.AvgPool2d(3, plan.stride, 1) if plan.joins else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit."""
        if self.pool is None:
            return torch.relu(x + self.branch(x))
        return torch.relu(torch.cat([self.pool(x), self.branch(x)], dim=1))


class Plan(NamedTuple):
    """Input map, channels and stride of the first convolution, whether a pooling follows, and the units."""

    size: Map
    stem: int
    stride: int
    pool: bool
    units: list[UnitPlan]


def _plan(shape: Shape, width: float, resolution: float, groups: int) -> Plan:
    first = resized(shape, resolution)
    count = halvings(first)
    multiple = BOTTLENECK * groups
    # Joined channels are grouped as well, so the first convolution's must divide.
    stem = c_in = rounded(STEM * width, groups)
    stride, pool = min(2, 1 + count), count >= POOL_FROM
    size = strided(first, stride)
    size = strided(size, 2) if pool else size
    units: list[UnitPlan] = []
    for stage, depth in enumerate(UNITS[: max(1, count - 1 - pool)]):
        c_out = max(rounded(CHANNELS[groups] * 2**stage * width, multiple), multiple * (1 + c_in // multiple))
        for at in range(depth):
            halve = 2 if not at and count > 1 else 1
            # Section 3.3: the very first pointwise convolution has too few channels to be grouped.
            units.append(UnitPlan(c_in, c_out, halve, 1 if not units else groups, groups, size, not at))
            size, c_in = strided(size, halve), c_out
    return Plan(first, stem, stride, pool, units)


def student(
    shape: Shape, classes: int, width: float = 1.0, resolution: float = 1.0, groups: int = 3, shuffle: bool = True
) -> nn.Module:
    """A network with fresh weights for inputs float [n, *shape].

    width: factor on all channels, which are multiples of 4 ``groups``; groups: 1, 2, 3, 4 or 8. shuffle: False leaves
    the groups apart, for comparison.
    """
    plan = _plan(shape, width, resolution, groups)
    body = [*entrance(shape, resolution), Unit(shape[0], plan.stem, stride=plan.stride)]
    if plan.pool:
        body.append(nn.MaxPool2d(3, 2, 1))
    body += [ShuffleUnit(unit, shuffle) for unit in plan.units]
    return CellNet([*body, *pooled()], plan.units[-1].c_out, classes)


def macs(shape: Shape, classes: int, width: float = 1.0, resolution: float = 1.0, groups: int = 3) -> int:
    """Multiply-accumulates of ``student`` for one input; section 3.2's hw(2cm/g + 9m), per unit."""
    plan = _plan(shape, width, resolution, groups)
    total = conv_macs(shape[0], plan.stem, 3, 1, strided(plan.size, plan.stride))
    for unit in plan.units:
        out = strided(unit.size, unit.stride)
        total += conv_macs(unit.c_in, unit.middle, 1, unit.first_groups, unit.size)
        total += conv_macs(unit.middle, unit.middle, 3, unit.middle, out)
        total += conv_macs(unit.middle, unit.made, 1, unit.groups, out)
    return total + plan.units[-1].c_out * classes
