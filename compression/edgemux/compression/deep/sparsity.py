"""Connections removed by magnitude, a few at a time, with training in between and after.

Thresholds are a quality factor times the standard deviation of a layer's weights (Han et al. 2015, section 3.1), with
one factor for all layers, set so that the net as a whole reaches the ratio. The ratio rises over the training along
the cubic curve of Zhu and Gupta 2017.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from edgemux.compression.deep.layers import connections
from edgemux.compression.passes import Setting
from edgemux.compression.retrain import BATCH, label_loss, retrain

# Part of the training after which all that is to go has gone, and how many times connections are removed until then.
RAMP, ROUNDS = 0.4, 24


def ratio_at(done: float, start: float, ratio: float) -> float:
    """Share of zeros when the share ``done`` of the training is over: rises from ``start`` to ``ratio``."""
    return ratio + (start - ratio) * (1.0 - min(1.0, done / RAMP)) ** 3


def keeping(weights: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """Masks, bool, true for the connections that stay: the smallest of all in units of their layer's deviation go.

    Exactly round(ratio * connections) go, zeros first. The deviation counts removed connections as zeros, so a layer
    that has lost more than others loses less from then on.
    """
    scores = [weight.abs() / weight.std(correction=0).clamp_min(1e-12) for weight in weights.values()]
    flat = torch.cat([score.reshape(-1) for score in scores])
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[flat.argsort(stable=True)[: round(ratio * len(flat))]] = False
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {name: part.reshape(weights[name].shape) for name, part in zip(weights, parts, strict=True)}


def zeros_in(net: nn.Module) -> float:
    """Share of the connections that are zero."""
    weights = list(connections(net).values())
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


class _Removal:
    """Removes connections step by step; what went stays zero."""

    def __init__(self, net: nn.Module, ratio: float, steps: int) -> None:
        self.weights = connections(net)
        self.steps = steps
        self.start = zeros_in(net)
        self.ratio = max(ratio, self.start)
        self.every = max(1, int(RAMP * steps / ROUNDS))
        self.taken = 0
        self.masks: dict[str, Tensor] = {}

    def step(self) -> None:
        """After every change of the weights."""
        if self.taken % self.every == 0 and self.taken <= RAMP * self.steps + self.every:
            self.choose(ratio_at(self.taken / self.steps, self.start, self.ratio))
        self.taken += 1
        self.clear()

    def choose(self, ratio: float) -> None:
        """Which are to stay from now on."""
        self.masks = keeping({name: weight.detach() for name, weight in self.weights.items()}, ratio)

    @torch.no_grad()
    def clear(self) -> None:
        """Zeros, without a sign, for those that went."""
        for name, weight in self.weights.items():
            weight.masked_fill_(~self.masks[name], 0.0)


def sparsified(net: nn.Module, ratio: float, epochs: int, rate: float, setting: Setting) -> nn.Module:
    """A copy of the net with this share of its connections removed."""
    net = copy.deepcopy(net)
    count = len(setting.samples.train_x)
    removal = _Removal(net, ratio, epochs * math.ceil(count / min(BATCH, count)))
    retrain(net, setting.samples, label_loss(setting.samples), epochs, rate, setting.seed, on_step=removal.step)
    # Where training was too short for the curve; otherwise this removes nothing.
    removal.choose(removal.ratio)
    removal.clear()
    return net
