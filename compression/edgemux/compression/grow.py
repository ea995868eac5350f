"""Freeze and grow: a nested family trained level by level, what was trained before frozen bit by bit (NestDNN,
Fang et al. 2018).

The smallest level comes out as if it had been trained alone, and a level can be added to a family that is already
deployed; the price is that higher levels cannot ask lower ones for better features.

Masked gradients do not freeze anything: momentum and weight decay go on moving a weight whose gradient is zero, and
batch norm moves its statistics with every batch. So the frozen channels are normalised with their running statistics,
and whatever is not the level's own is put back after every step.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgemux.compression.fit import Draw, Loss, Tick, fit_drawn
from edgemux.compression.nested import NestedNet, TriangularConv
from edgemux.compression.recipe import Family, Schedule
from edgemux.multiplexer.errors import ConfigError


def grow(
    net: NestedNet,
    level: int,
    count: int,
    drawn: Draw,
    loss: Loss,
    schedule: Schedule,
    seed: int,
    checkpoint: Path | None = None,
    tick: Tick = lambda done: None,
) -> None:
    """Train what ``level`` (1 = smallest) adds to the levels below, in place; every other tensor keeps its bits.

    loss: is given a module that answers logits [1, n, classes], those of the level. The rest is as in ``fit_drawn``.
    """
    model, frozen = Growing(net, level), Frozen(net, level)
    fit_drawn(model, count, drawn, loss, schedule, seed, checkpoint, tick, on_step=frozen.restore)


def extended(net: NestedNet, family: Family) -> NestedNet:
    """A net with the levels of ``net`` and more, to be trained by ``grow``; ``net`` is not changed.

    family: its first levels are those of ``net``. Raises ConfigError naming the layer whose widths are not.
    """
    larger = NestedNet(family, net.shape, net.classes)
    for (name, old), (_, new) in zip(layers(net), layers(larger), strict=True):
        if new.c_out[: len(old.c_out)] != old.c_out:
            raise ConfigError(f"family.{name}: must begin with the widths that are there, {list(old.c_out)}")
    with torch.no_grad():
        for (_, old), (_, new) in zip(layers(net), layers(larger), strict=True):
            for large, small in zip(_tensors(new), _tensors(old), strict=True):
                # What an old channel has to say about channels that it does not know is masked.
                large[tuple(slice(0, size) for size in small.shape)] = small
            new.quantised = old.quantised
    for old_head, new_head in zip(net.heads, larger.heads, strict=False):
        new_head.load_state_dict(old_head.state_dict())
    for head in larger.heads:
        head.quantised = bool(net.heads[0].quantised)
    return larger.train(net.training)


def level_logits(net: NestedNet, x: Tensor, level: int, learning: bool) -> Tensor:
    """Logits float [n, classes] of one level, group by group as the exported deltas compute them.

    A level's bits do not depend on which levels there are above it. learning: the level's own channels are
    normalised by the batch and get gradients, the ones below do not.
    """
    for name, layer in layers(net):
        if name == "conv4":
            x = nn.functional.max_pool2d(x, 2)
        with torch.no_grad():
            below = [layer.group(x, lower, learning=False) for lower in range(1, level)]
        x = torch.cat([*below, layer.group(x, level, learning)], dim=1)
    answer: Tensor = net.heads[level - 1](x.mean(dim=(2, 3)))
    return answer


def layers(net: NestedNet) -> list[tuple[str, TriangularConv]]:
    """The convolutions by name, in the order in which they run."""
    return [("conv1", net.conv1), ("conv2", net.conv2), ("conv3", net.conv3), ("conv4", net.conv4)]


class Growing(nn.Module):
    """One level of a nested net as a model of its own: float [n, *shape] -> logits [1, n, classes]."""

    def __init__(self, net: NestedNet, level: int) -> None:
        super().__init__()
        self.net, self.level = net, level

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the level."""
        return level_logits(self.net, x, self.level, self.training)[None]


class Frozen:
    """The tensors of a nested net as they were, but for the channels of one level."""

    def __init__(self, net: NestedNet, level: int) -> None:
        self._kept = [
            (layer, layer.rows(level), [tensor.detach().clone() for tensor in _tensors(layer)])
            for _, layer in layers(net)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back every channel that is not the level's own. (Heads of other levels get no gradient at all.)"""
        for layer, rows, kept in self._kept:
            # Looked up anew: a change of the memory format gives a parameter other storage.
            for live, old in zip(_tensors(layer), kept, strict=True):
                live[: rows.start] = old[: rows.start]
                live[rows.stop :] = old[rows.stop :]


def _tensors(layer: TriangularConv) -> tuple[Tensor, ...]:
    """All tensors of a layer, output channels first."""
    norm = layer.norm
    assert norm.running_mean is not None and norm.running_var is not None
    return layer.conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var
