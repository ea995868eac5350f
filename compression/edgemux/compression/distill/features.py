"""What a net knows in between: its embedding, and the last feature map at each resolution, found by running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemux.compression.observing import evaluating, hooked
from edgemux.multiplexer.errors import PassError

Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]
MAPS = (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)


class MapAt(NamedTuple):
    """A feature map: the module that answers it, its channels, and its axes (1: a sequence, 2: an image)."""

    module: str
    channels: int
    axes: int


@dataclass(frozen=True)
class Anatomy:
    """Names of modules. head: the last linear layer that runs, whose input is the embedding, ``features`` wide.

    maps: the last convolution or batch norm at each map size, largest map first.
    """

    head: str
    features: int
    maps: tuple[MapAt, ...]


def anatomy_of(net: nn.Module, x: Tensor) -> Anatomy:
    """Found in one run on ``x``, float [n, ...]. Raises PassError when the net does not end in a linear layer."""
    heads: list[tuple[str, int]] = []
    maps: dict[tuple[int, ...], MapAt] = {}

    def note(name: str) -> Hook:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.Linear) and inputs[0].ndim == 2:
                heads.append((name, inputs[0].shape[1]))
            elif isinstance(module, MAPS) and output.ndim > 2 and math.prod(output.shape[2:]) > 1:
                maps[tuple(output.shape[2:])] = MapAt(name, output.shape[1], output.ndim - 2)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in net.named_modules()]
    with hooked(handles), evaluating(net):
        logits = net(x)
    if not heads or net.get_submodule(heads[-1][0]).out_features != logits.shape[1]:
        raise PassError(f"{type(net).__name__} does not end in a linear layer, so it has no embedding")
    found = sorted(maps.items(), key=lambda item: -math.prod(item[0]))
    return Anatomy(*heads[-1], tuple(what for _, what in found))


def check_anatomy(label: str, net: nn.Module, x: Tensor) -> None:
    """Raises PassError, in the name of a pass, when the net does not end in a linear layer."""
    try:
        anatomy_of(net, x)
    except PassError as error:
        raise PassError(f"{label}: {error}") from error


@dataclass(frozen=True, eq=False)
class Features:
    """One run: embedding float [n, features]; maps float [n, channels, ...], as the anatomy names them."""

    logits: Tensor
    embedding: Tensor
    maps: tuple[Tensor, ...]


@contextmanager
def watched(net: nn.Module, anatomy: Anatomy) -> Iterator[Callable[[Tensor], Features]]:
    """Gives a function that runs the net, with gradients, and tells its features; the hooks are gone afterwards."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, of_input: bool) -> Hook:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen[name] = inputs[0] if of_input else output

        return hook

    def run(x: Tensor) -> Features:
        logits = net(x)
        features = Features(logits, seen[anatomy.head], tuple(seen[at.module] for at in anatomy.maps))
        seen.clear()
        return features

    names = [(anatomy.head, True), *((at.module, False) for at in anatomy.maps)]
    with hooked(net.get_submodule(name).register_forward_hook(keep(name, of_input)) for name, of_input in names):
        yield run


def embeddings_of(net: nn.Module, x: Tensor, batch: int = 250) -> Tensor:
    """The embeddings of inputs float [n, ...], float32 [n, features]. Raises PassError like ``anatomy_of``."""
    anatomy = anatomy_of(net, x[:2])
    with watched(net, anatomy) as run, evaluating(net):
        return torch.cat([run(part).embedding.float() for part in x.split(batch)])


def positions(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """A feature map averaged down to ``size``: [n, channels, ...] -> [n, positions, channels]."""
    pool = functional.adaptive_avg_pool1d if x.ndim == 3 else functional.adaptive_avg_pool2d
    return pool(x, size).flatten(2).transpose(1, 2)
