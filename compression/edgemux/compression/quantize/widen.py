"""A net with wider layers that answers as it did (Net2Net, Chen et al. 2016), to be trained on with fewer bits.

Every inner channel gets copies of its own, which differ by a little noise so that training tells them apart; what reads
the channel reads all its copies with a share of the weight each.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from edgemux.compression.prune.remove import Consumer, Group, channel_groups, remove_channels
from edgemux.multiplexer.errors import PassError

# Spread of the noise on copies, as a share of the spread of their layer's weights.
NOISE = 0.1


def widened(net: nn.Module, example: Tensor, factor: int, noise: float = NOISE) -> nn.Module:
    """A copy of the net with ``factor`` times as many channels in every group that can be followed.

    example: float32 [1, ...]. With noise 0 it answers as the net does. Raises PassError when channels cannot be
    followed, or are joined with others before they are read.
    """
    result = copy.deepcopy(net)
    if factor == 1:
        return result
    groups = channel_groups(net, example)
    norms = [_norms(net, example, group) for group in groups]
    modules = dict(result.named_modules())
    for group, coupled in zip(groups, norms, strict=True):
        for name in group.layers:
            _more_outputs(modules[name], factor, noise)
        for name in coupled:
            _more_features(modules[name], factor)
        for consumer in group.consumers:
            _more_inputs(modules[consumer.name], consumer, group, factor)
    return result


def _norms(net: nn.Module, example: Tensor, group: Group) -> list[str]:
    """Batch norms that belong to a group: those that lose a channel when the group does."""
    narrow = remove_channels(net, example, {group.root: range(group.width - 1)}) if group.width > 1 else net
    now = dict(narrow.named_modules())
    return [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.num_features != now[name].num_features
    ]


def _repeated(module: nn.Module, key: str, factor: int, axis: int = 0) -> None:
    """A parameter or buffer, repeated as a whole along an axis."""
    old = getattr(module, key)
    if old is None:
        return
    new = torch.cat([old.detach()] * factor, dim=axis)
    setattr(module, key, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


@torch.no_grad()
def _more_outputs(layer: nn.Module, factor: int, noise: float) -> None:
    spread = noise * layer.weight.std()
    count = len(layer.weight)
    for key in ("weight", "bias"):
        _repeated(layer, key, factor)
    layer.weight[count:].add_(spread * torch.randn_like(layer.weight[count:]))
    if isinstance(layer, nn.Linear):
        layer.out_features *= factor
        return
    layer.out_channels *= factor
    if layer.groups > 1:  # depthwise: as many inputs as outputs
        layer.in_channels *= factor
        layer.groups *= factor


def _more_features(norm: nn.Module, factor: int) -> None:
    for key in ("weight", "bias", "running_mean", "running_var"):
        _repeated(norm, key, factor)
    norm.num_features *= factor


@torch.no_grad()
def _more_inputs(layer: nn.Module, consumer: Consumer, group: Group, factor: int) -> None:
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    in_order = np.array_equal(consumer.features, np.arange(width))
    block = width // group.width
    if not in_order or not np.array_equal(consumer.channels, np.repeat(np.arange(group.width), block)):
        raise PassError(f"widen: {consumer.name!r} reads channels joined with others, which cannot be widened")
    _repeated(layer, "weight", factor, axis=1)
    layer.weight.div_(factor)
    if isinstance(layer, nn.Linear):
        layer.in_features *= factor
    else:
        layer.in_channels *= factor
