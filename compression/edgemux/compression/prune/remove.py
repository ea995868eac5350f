"""Which channels hang together, and how to take them out: the one place that knows torch-pruning.

A channel of one layer is an input of others, and shortcuts force several layers to lose the same one. torch-pruning
(DepGraph, Fang et al. 2023) works that out from a traced backward pass. What comes back is checked here: every layer
as wide as planned, and the outputs as many as before.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemux.compression.observing import calls, evaluating
from edgemux.multiplexer.errors import PassError

Index = NDArray[np.int64]
LAYERS = (nn.Conv2d, nn.Conv1d, nn.Linear)


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that reads the group: ``features[i]`` of its inputs belongs to channel ``channels[i]`` of the group."""

    name: str
    features: Index
    channels: Index


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that can only be removed together. root: the layer that a plan names; layers: all that make them."""

    root: str
    width: int
    layers: tuple[str, ...]
    consumers: tuple[Consumer, ...]


def channel_groups(net: nn.Module, example: Tensor) -> list[Group]:
    """Groups whose channels may be removed, in the order of the data. Heads have no consumer and are left out.

    example: float32 [1, ...]. Groups with grouped convolutions other than depthwise ones are left out as well. Raises
    PassError when the net cannot be followed.
    """
    graph, names = _followed(net, example)
    found = []
    for raw in graph.get_all_groups(root_module_types=list(LAYERS)):
        group = _group(raw, names)
        if group is not None:
            found.append(group)
    order = calls(net, example, LAYERS)
    place = {name: order.index(name) for name in order}
    return sorted(found, key=lambda group: min(place.get(name, len(order)) for name in group.layers))


def _group(raw: Any, names: Mapping[nn.Module, str]) -> Group | None:
    layers, consumers = [], []
    for item in raw.items:
        module = item.dep.target.module
        if not isinstance(module, LAYERS):
            continue
        if _grouped(module):
            return None
        if "in_channels" in item.dep.handler.__name__ and not _depthwise(module):
            features, channels = (np.array(index, np.int64) for index in (item.idxs, item.root_idxs))
            consumers.append(Consumer(names[module], features, channels))
        else:
            layers.append(names[module])
    if not consumers:
        return None
    root = raw.items[0].dep.target.module
    return Group(names[root], _width(root), tuple(dict.fromkeys(layers)), tuple(consumers))


def remove_channels(net: nn.Module, example: Tensor, plan: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of the net that keeps, of each planned layer, only these output channels; those coupled to it follow.

    plan: layer name -> channels to keep, rising. Raises PassError for a layer that is not the root of a group, for
    channels that are not there, and when the result is not as wide as planned.
    """
    result = copy.deepcopy(net).requires_grad_(True)
    graph, names = _followed(result, example)
    modules = {name: module for module, name in names.items()}
    for name, keep in plan.items():
        module = modules.get(name)
        if not isinstance(module, LAYERS):
            raise PassError(f"remove_channels: {name!r} is no convolution or linear layer of the net")
        width = _width(module)
        if not keep or sorted(set(keep)) != list(keep) or keep[0] < 0 or keep[-1] >= width:
            raise PassError(f"remove_channels: {name!r} has channels 0 to {width - 1}; keep some of them, in order")
        drop = sorted(set(range(width)) - set(keep))
        if not drop:
            continue
        prune = (
            torch_pruning.prune_linear_out_channels
            if isinstance(module, nn.Linear)
            else torch_pruning.prune_conv_out_channels
        )
        raw = graph.get_pruning_group(module, prune, idxs=drop)
        if not graph.check_pruning_group(raw):
            raise PassError(f"remove_channels: nothing would be left of a layer that is coupled to {name!r}")
        raw.prune()
    _check(net, result, example, plan)
    for before, after in zip(net.parameters(), result.parameters(), strict=True):
        after.requires_grad_(before.requires_grad)
    return result.train(net.training)


def _check(net: nn.Module, result: nn.Module, example: Tensor, plan: Mapping[str, Sequence[int]]) -> None:
    modules = dict(result.named_modules())
    for name, keep in plan.items():
        if _width(modules[name]) != len(keep):
            raise PassError(f"remove_channels: {name!r} came out {_width(modules[name])} wide, planned {len(keep)}")
    try:
        with torch.inference_mode():
            before, after = copy.deepcopy(net).eval()(example), copy.deepcopy(result).eval()(example)
    except Exception as error:  # whatever the user's forward raises when sizes do not fit
        raise PassError("remove_channels: the net does not run without these channels") from error
    if before.shape != after.shape:
        raise PassError(f"remove_channels: the net now answers {list(after.shape)}, before {list(before.shape)}")


def _followed(net: nn.Module, example: Tensor) -> tuple[Any, dict[nn.Module, str]]:
    if any(isinstance(part, nn.RNNBase) for part in net.modules()):
        raise PassError("prune: recurrent layers cannot be followed; units() removes their hidden units")
    names = {module: name for name, module in net.named_modules()}
    trainable = [p.requires_grad for p in net.parameters()]
    try:
        net.requires_grad_(True)  # dependencies are read off the backward graph
        with evaluating(net), warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(net, example_inputs=example)
    except Exception as error:  # the library raises whatever it meets
        raise PassError(f"prune: the net's layers cannot be followed ({type(error).__name__})") from error
    finally:
        for parameter, value in zip(net.parameters(), trainable, strict=True):
            parameter.requires_grad_(value)
    return graph, names


def _width(module: nn.Module) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _depthwise(module: nn.Module) -> bool:
    return getattr(module, "groups", 1) > 1 and not _grouped(module)


def _grouped(module: nn.Module) -> bool:
    groups = getattr(module, "groups", 1)
    return groups > 1 and not (groups == module.in_channels == module.out_channels)
