"""Arithmetic of small image networks: channels, maps, multiply-accumulates. Pure, no torch."""

from __future__ import annotations

from collections.abc import Callable

# Channels, height, width of one input; height and width of a map.
Shape = tuple[int, int, int]
Map = tuple[int, int]
# ImageNet networks of this kind halve 224 px five times and end with 7x7 (Howard et al. 2017, table 1).
LAST_SIDE, MAX_HALVINGS = 7, 5


def rounded(channels: float, multiple: int) -> int:
    """The multiple nearest to ``channels``, at least one; one more where that would take away over a tenth.

    The rule of the reference MobileNets.
    """
    near = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return near if near >= 0.9 * channels else near + multiple


def resized(shape: Shape, resolution: float) -> Map:
    """Height and width in px after the resolution multiplier, at least 1."""
    return max(1, round(shape[1] * resolution)), max(1, round(shape[2] * resolution))


def halvings(size: Map) -> int:
    """How often a map is halved until its smaller side has at most 7 px; at most five times."""
    side, count = min(size), 0
    while side > LAST_SIDE and count < MAX_HALVINGS:
        side, count = (side + 1) // 2, count + 1
    return count


def strided(size: Map, stride: int) -> Map:
    """The map after a 3x3 convolution or pooling with padding 1."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def conv_macs(c_in: int, c_out: int, kernel: int, groups: int, out: Map) -> int:
    """Multiply-accumulates of a convolution without bias whose answer is ``out`` large, for one input."""
    return out[0] * out[1] * c_out * (c_in // groups) * kernel * kernel


def nearest_width(macs_of: Callable[[float], int], macs: int, low: float = 0.05, high: float = 4.0) -> float:
    """The width in steps of 1/200 whose network is nearest to so many multiply-accumulates.

    macs_of: multiply-accumulates by width; may be a staircase, as channels are rounded, and is not assumed monotone.
    """
    steps = range(round(200 * low), round(200 * high) + 1)
    return min((step / 200 for step in steps), key=lambda width: abs(macs_of(width) - macs))
