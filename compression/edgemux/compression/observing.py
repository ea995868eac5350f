"""Running a net to look at it: its mode and its hooks are afterwards what they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the net's own mode is put back."""
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        net.train(was_training)


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Takes the hooks off again. handles: what registering them gave."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


def calls(net: nn.Module, x: Tensor, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """Names of the layers of these kinds in the order in which ``net(x)`` calls them; x: float32 [n, ...]."""
    order: list[str] = []
    layers = [(name, module) for name, module in net.named_modules() if isinstance(module, kinds)]
    # ``append`` answers None, which leaves a layer's input as it is.
    handles = [layer.register_forward_pre_hook(lambda *_, name=name: order.append(name)) for name, layer in layers]
    with hooked(handles), evaluating(net):
        net(x)
    return order
