"""Channels per layer and level: counting what they store, and choosing them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgemux.compression.export import level_graph
from edgemux.compression.nested import NestedNet
from edgemux.compression.nets import CLASS_COUNT
from edgemux.compression.recipe import Augment, Family, Schedule
from edgemux.multiplexer.errors import ConfigError

# Kernel sizes of the four layers, as in NestedNet.
SIZES = (5, 3, 3, 3)
LAYERS = ("conv1", "conv2", "conv3", "conv4")
# Of the starter bundle's family: a layer's channels against the widest layer's, and a level's against the next one's.
SHARES = (1 / 3, 1 / 2, 1.0, 1.0)
RATIO = 1.75
MOST_CHANNELS = 2048


def at_level(family: Family, level: int) -> tuple[int, ...]:
    """The widths of the four layers at a level (1 = smallest), in channels."""
    return tuple(getattr(family, name)[level - 1] for name in LAYERS)


def alone(family: Family, widths: tuple[int, ...]) -> Family:
    """The recipe of a dense net of these widths: a family of one level, trained like ``family``."""
    layers = {name: (width,) for name, width in zip(LAYERS, widths, strict=True)}
    return msgspec.structs.replace(family, **layers, loss_weights=(1.0,))


def nested_parameters(family: Family, level: int, channels: int = 1, classes: int = CLASS_COUNT) -> int:
    """Weights and biases in the deltas up to a level, batch norms folded: lower heads are stored, and counted."""
    total = 0
    below = (channels,) * family.levels
    for name, size in zip(LAYERS, SIZES, strict=True):
        own: tuple[int, ...] = getattr(family, name)
        for first, last, seen in zip((0, *own), own[:level], below, strict=False):
            total += (last - first) * (seen * size * size + 1)
        below = own
    return total + sum(classes * (width + 1) for width in family.conv4[:level])


def dense_parameters(widths: tuple[int, ...], channels: int = 1, classes: int = CLASS_COUNT) -> int:
    """Weights and biases of a dense net, batch norms folded."""
    below, total = channels, 0
    for width, size in zip(widths, SIZES, strict=True):
        total += width * (below * size * size + 1)
        below = width
    return total + classes * (below + 1)


def same_size(family: Family, level: int, channels: int = 1, classes: int = CLASS_COUNT) -> tuple[int, ...]:
    """Widths of the dense net that stores about as many weights as the family up to a level.

    The level's widths, all shrunk alike; a dense net of the level's own widths has more weights.
    """
    target, full = nested_parameters(family, level, channels, classes), at_level(family, level)
    shrunk = {tuple(max(1, round(width * step / 1000)) for width in full) for step in range(200, 1101)}
    return min(shrunk, key=lambda widths: abs(dense_parameters(widths, channels, classes) - target))


def geometric(top: int, levels: int) -> dict[str, tuple[int, ...]]:
    """Widths of each layer that fall by ``RATIO`` from level to level, ``top`` channels in the widest layers."""
    return {name: _falling(max(1, round(top * share)), levels) for name, share in zip(LAYERS, SHARES, strict=True)}


def within(budget: float, levels: int, shape: tuple[int, int, int], classes: int) -> dict[str, tuple[int, ...]]:
    """The widest levels whose files, weights as int8, take at most ``budget`` bytes together.

    Raises ConfigError naming max_kb when even the narrowest take more.
    """
    least = stored_bytes(geometric(1, levels), shape, classes)
    if least > budget:
        raise ConfigError(f"max_kb: {levels} levels for {classes} classes take at least {least / 1000:.1f} KB")
    fits, over = 1, 2
    while stored_bytes(geometric(over, levels), shape, classes) <= budget and over < MOST_CHANNELS:
        fits, over = over, 2 * over
    while over - fits > 1:
        middle = (fits + over) // 2
        if stored_bytes(geometric(middle, levels), shape, classes) <= budget:
            fits = middle
        else:
            over = middle
    return geometric(fits, levels)


def stored_bytes(chosen: Mapping[str, tuple[int, ...]], shape: tuple[int, int, int], classes: int) -> int:
    """Bytes of all files of a family of these widths: they do not depend on what the weights are."""
    family = Family(
        **chosen,
        loss_weights=(),
        distill=0.0,
        temperature_t=1.0,
        quantise_last=0.0,
        schedule=Schedule(epochs=1, batch=1, peak_rate=1.0),
        augment=Augment(),
    )
    net = NestedNet(family, shape, classes).eval()
    return sum(level_graph(net, k, 1.0, int8=True).ByteSize() for k in range(1, family.levels + 1))


def _falling(widest: int, levels: int) -> tuple[int, ...]:
    """Rising with the level, each at least one more than the one below; the narrowest has at least 2 channels."""
    found: list[int] = []
    for below in reversed(range(levels)):
        found.append(max(found[-1] + 1 if found else 2, round(widest / RATIO**below)))
    return tuple(found)
