"""A narrow place at a cut: an encoder on the device, few bits on the way, a decoder before the tail in the cloud.

What is sent are values in 0..1, rounded to 8, 4 or 2 bits. In training each batch draws its bits, so one pair serves
all three, and the rounding lets the gradient through as if nothing had happened (Bengio et al. 2013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch import Tensor, nn

from edgemux.compression.nets import PIXEL_SCALE, ConvUnit
from edgemux.compression.split.graph_net import GraphNet
from edgemux.compression.split.layouts import halvings
from edgemux.multiplexer.errors import ConfigError, PassError

BITS = (8, 4, 2)
# Channels, height, width.
Shape = tuple[int, int, int]


def steps_of(bits: int) -> int:
    """The largest value that is sent. Raises ConfigError for a number of bits that cannot be sent."""
    if bits not in BITS:
        raise ConfigError(f"bits: must be one of {', '.join(map(str, BITS))}, they are {bits!r}")
    return 2**bits - 1


def rounded(x: Tensor, bits: int) -> Tensor:
    """x in 0..1 -> the nearest value that can be sent in so many bits, again in 0..1; the gradient passes unchanged."""
    steps = steps_of(bits)
    return x + ((x * steps).round() / steps - x).detach()


class Source(msgspec.Struct, frozen=True):
    """A tensor that the encoder reads: float [n, *shape], or pixels uint8 [n, *shape], of one channel [n, h, w]."""

    name: str
    shape: Shape
    pixels: bool = False


class Encoder(nn.Module):
    """Sources by name -> values in 0..1, float [n, channels, *size].

    Each source is halved until it has that size, then all are joined. width: channels inside; joins: layers that see
    all sources.
    """

    def __init__(
        self, sources: Sequence[Source], channels: int, size: tuple[int, int], width: int = 48, joins: int = 1
    ) -> None:
        """Raises PassError for a source that halving does not bring to ``size``."""
        super().__init__()
        self.sources, self.size = tuple(sources), size
        self.branches = nn.ModuleList(_narrowed(source, size, width) for source in sources)
        wide = width * len(self.sources)
        self.join = nn.Sequential(*(ConvUnit(width if number else wide, width) for number in range(joins)))
        self.last = nn.Conv2d(width, channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        # Nearly all values begin inside 0..1, where the clip has a gradient.
        nn.init.constant_(self.norm.weight, 0.25)
        nn.init.constant_(self.norm.bias, 0.5)

    def forward(self, given: Mapping[str, Tensor]) -> Tensor:
        """The values to round and send."""
        pairs = zip(self.sources, self.branches, strict=True)
        parts = [branch(_scaled(source, given[source.name])) for source, branch in pairs]
        return self.norm(self.last(self.join(torch.cat(parts, dim=1)))).clamp(0.0, 1.0)


def _scaled(source: Source, x: Tensor) -> Tensor:
    if not source.pixels:
        return x
    y = x.float() * PIXEL_SCALE
    return y[:, None] if y.ndim == 3 else y


def _narrowed(source: Source, size: tuple[int, int], width: int) -> nn.Sequential:
    channels, height, across = source.shape
    count = halvings(source.shape, size)
    if count is None:
        raise PassError(f"{source.name}: halving its {height}x{across} never gives {size[0]}x{size[1]}")
    units: list[ConvUnit] = []
    for _ in range(count):
        # A picture has few channels: more of its neighbourhood goes into the first layer.
        units.append(ConvUnit(channels, width, size=5 if channels <= 3 else 3, stride=2))
        channels = width
    return nn.Sequential(*(units or [ConvUnit(channels, width, size=1)]))


class Decoder(nn.Module):
    """Values in 0..1, float [n, channels, h, w] -> the cut's tensor, float [n, wide, h, w], never below 0."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.units = nn.Sequential(ConvUnit(channels, wide), ConvUnit(wide, wide))

    def forward(self, x: Tensor) -> Tensor:
        """What the tail takes."""
        y: Tensor = self.units(x)
        return y


class Pair(nn.Module):
    """Encoder, decoder and the tail behind them: what is trained together.

    features: an output of the tail that is there for training alone, see ``exposed``; no file has it.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, tail: GraphNet, features: str | None = None) -> None:
        """Raises PassError for a tail that takes several tensors."""
        super().__init__()
        if len(tail.inputs) != 1:
            raise PassError(f"the tail takes {len(tail.inputs)} tensors; a bottleneck gives one")
        self.encoder, self.decoder, self.tail, self.features = encoder, decoder, tail, features
        self._fixed = False

    def fix_cloud(self) -> None:
        """Train the encoder alone from now on: it learns to serve a decoder and a tail that are there already."""
        self._fixed = True
        self.decoder.requires_grad_(False)
        self.tail.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Pair:
        """What is fixed keeps its statistics."""
        super().train(mode)
        if self._fixed:
            self.decoder.eval()
        return self

    def decoded(self, given: Mapping[str, Tensor], bits: int) -> Tensor:
        """What the tail takes, after ``bits`` on the way."""
        y: Tensor = self.decoder(rounded(self.encoder(given), bits))
        return y

    def answers(self, decoded: Tensor) -> Tensor:
        """The tail's first output."""
        y: Tensor = self.tail(decoded)[self.tail.outputs[0]]
        return y

    def forward(self, given: Mapping[str, Tensor], bits: int = 8) -> Tensor:
        """Probabilities [n, classes]."""
        return self.answers(self.decoded(given, bits))
