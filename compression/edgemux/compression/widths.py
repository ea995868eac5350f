"""Channels per layer and level: counting what they store, and choosing them."""

from __future__ import annotations

import msgspec

from edgemux.compression.nets import CLASS_COUNT
from edgemux.compression.recipe import Family

# Kernel sizes of the four layers, as in NestedNet.
SIZES = (5, 3, 3, 3)
LAYERS = ("conv1", "conv2", "conv3", "conv4")


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
