"""Layers with others in their place: which a net runs, in which order, on what, and how a wrapper takes one's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgemux.compression.observing import evaluating, hooked
from edgemux.multiplexer.errors import PassError

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# Inputs a net is run on to see what its layers get.
SEEN = 256


@dataclass(frozen=True, eq=False)
class Used:
    """A convolution or linear layer and the input of its first call, float32 [n, ...]."""

    name: str
    layer: nn.Module
    input: Tensor


def layers_used(net: nn.Module, x: Tensor) -> list[Used]:
    """The convolutions and linear layers that ``net(x)`` calls, in order; x: float32 [n, ...], some of which is run."""
    found: dict[str, Used] = {}
    hooks = []
    for name, module in net.named_modules():
        if type(module) in KINDS:

            def note(layer: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                found.setdefault(name, Used(name, layer, args[0].detach()))

            hooks.append(module.register_forward_pre_hook(note))
    with hooked(hooks), evaluating(net):
        net(x[:SEEN])
    return list(found.values())


def inner_layers(label: str, net: nn.Module, x: Tensor) -> list[Used]:
    """The same. Raises PassError, in the name of a pass, when there is none between the first and the last."""
    used = layers_used(net, x)
    if len(used) < 3:
        names = ", ".join(repr(item.name) for item in used) or "none"
        raise PassError(
            f"{label}: leaves the first and the last convolution or linear layer at 8 bits, and the net has no other"
            f" ({names})"
        )
    return used


def swap(label: str, net: nn.Module, others: Mapping[nn.Module, nn.Module], x: Tensor) -> None:
    """Put each value in the place of its key, wherever the net holds it, in place.

    Raises PassError when the net does not run with them on x: it reaches into its layers.
    """
    for parent in list(net.modules()):
        for key, child in parent._modules.items():
            if child in others:
                parent._modules[key] = others[child]
    try:
        with torch.no_grad():
            net.eval()(x[:2])
    except Exception as error:  # whatever the user's forward raises
        raise PassError(f"{label}: the net reaches into its layers ({type(error).__name__})") from error


def run_layer(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer makes of x with this weight and bias instead of its own; padding mode and groups are the layer's."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return layer._conv_forward(x, weight, bias)
