"""What a layer reads and answers on sampled inputs, as products that selection and refitting are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemux.compression.observing import evaluating, hooked
from edgemux.compression.prune.remove import Consumer
from edgemux.multiplexer.errors import PassError

Floats = NDArray[np.float64]
POSITIONS = 12  # sampled places of an image; He et al. 2017 take 10
BATCH = 100
# Added to the diagonal, relative to its mean, so that a feature which is always zero does no harm.
RIDGE = 1e-4


@dataclass(frozen=True, eq=False)
class Moments:
    """Of one consumer's inputs x [samples, features] and wanted outputs y [samples, outputs], bias taken off.

    xx = x^T x, xy = x^T y, and their means. A convolution's features are its inputs times its kernel's places.
    """

    xx: Floats
    xy: Floats
    x_mean: Floats
    y_mean: Floats
    count: int


def moments(net: nn.Module, wanted: nn.Module, names: Sequence[str], x: Tensor, seed: int) -> dict[str, Moments]:
    """Moments of the named layers: inputs as ``net`` hands them, outputs as the same layers of ``wanted`` answer.

    x: float32 [n, ...]. The same places are taken from both.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, list[Tensor]] = {}
    counts = dict.fromkeys(names, 0)
    mine, theirs = ({name: net_.get_submodule(name) for name in names} for net_ in (net, wanted))
    for part in x.split(BATCH):
        read = _passing(net, mine, part, inputs=True)
        answered = _passing(wanted, theirs, part, inputs=False)
        for name in names:
            features, outputs = _rows(mine[name], read[name], answered[name], generator)
            bias = theirs[name].bias
            if bias is not None:
                outputs = outputs - bias.detach().double()
            products = [features.T @ features, features.T @ outputs, features.sum(0), outputs.sum(0)]
            old = sums.get(name)
            sums[name] = products if old is None else [a + b for a, b in zip(old, products, strict=True)]
            counts[name] += len(features)
    return {
        name: Moments(
            sums[name][0].numpy(),
            sums[name][1].numpy(),
            sums[name][2].numpy() / counts[name],
            sums[name][3].numpy() / counts[name],
            counts[name],
        )
        for name in names
    }


def _passing(net: nn.Module, layers: dict[str, nn.Module], x: Tensor, inputs: bool) -> dict[str, Tensor]:
    """What each layer got or gave in one pass of the net in evaluation mode."""
    seen: dict[str, Tensor] = {}

    def remember(name: str, value: Tensor) -> None:
        seen[name] = value

    handles = [
        layer.register_forward_hook(
            lambda _layer, got, gave, name=name: remember(name, (got[0] if inputs else gave).detach())
        )
        for name, layer in layers.items()
    ]
    with hooked(handles), evaluating(net):
        net(x)
    return seen


def _rows(layer: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Matching rows [samples, features] and [samples, outputs] in float64: sampled places, or all of a linear layer."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).double(), y.reshape(-1, y.shape[-1]).double()
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    size, stride, pad, dilation = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    if isinstance(pad, str):
        raise PassError(f"prune: padding={pad!r} by name is not sampled; give it as numbers")
    if isinstance(layer, nn.Conv1d):
        x, y = x[:, :, None], y[:, :, None]
        size, stride, pad, dilation = (1, *size), (1, *stride), (0, *pad), (1, *dilation)
    patches = nn.functional.unfold(x, size, dilation=dilation, padding=pad, stride=stride)  # [n, c * k, places]
    outputs = y.flatten(2)
    places = torch.randint(outputs.shape[2], (len(x), min(POSITIONS, outputs.shape[2])), generator=generator)
    features = patches.gather(2, places[:, None].expand(-1, patches.shape[1], -1)).transpose(1, 2)
    chosen = outputs.gather(2, places[:, None].expand(-1, outputs.shape[1], -1)).transpose(1, 2)
    return features.reshape(-1, patches.shape[1]).double(), chosen.reshape(-1, outputs.shape[1]).double()


def matrix_of(layer: nn.Module) -> Floats:
    """The layer's weights as float64 [outputs, features], features as in ``Moments``."""
    weight: Tensor = layer.weight
    matrix: Floats = weight.detach().double().flatten(1).numpy()
    return matrix


def feature_channels(layer: nn.Module, consumer: Consumer) -> NDArray[np.int64]:
    """The group's channel of every feature of ``Moments``; -1 for features of other groups."""
    places = int(np.prod(layer.kernel_size)) if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else 1
    inputs = matrix_of(layer).shape[1] // places
    of_input = np.full(inputs, -1, np.int64)
    of_input[consumer.features] = consumer.channels
    return np.repeat(of_input, places)


def contributions(m: Moments, weight: Floats, channel: NDArray[np.int64], width: int) -> tuple[Floats, Floats]:
    """Gram matrix and target of the group's channels for one consumer, see ``criteria``.

    <Z_i, Z_j> = sum over features f of i and g of j of (x^T x)[f, g] (W^T W)[f, g]: the contributions themselves, as
    large as samples times outputs times channels, are never made.
    """
    ours = channel >= 0
    belongs = np.zeros((width, int(ours.sum())))
    belongs[channel[ours], np.arange(belongs.shape[1])] = 1.0
    w = weight[:, ours]
    gram = belongs @ (m.xx[np.ix_(ours, ours)] * (w.T @ w)) @ belongs.T
    wanted = m.xy[ours] - m.xx[np.ix_(ours, ~ours)] @ weight[:, ~ours].T
    target = belongs @ (wanted * w.T).sum(axis=1)
    return gram, target


def refitted(m: Moments, weight: Floats, keep: NDArray[np.bool_], with_bias: bool) -> tuple[Floats, Floats]:
    """Least-squares weights [outputs, features] that use only the kept features, and what to add to the bias [outputs].

    He et al. 2017, equation 4. With a bias the fit is of centred values. The ridge pulls towards the old weights.
    """
    xx, xy = m.xx[np.ix_(keep, keep)], m.xy[keep]
    if with_bias:
        xx = xx - m.count * np.outer(m.x_mean[keep], m.x_mean[keep])
        xy = xy - m.count * np.outer(m.x_mean[keep], m.y_mean)
    ridge = RIDGE * max(float(np.trace(xx)) / max(1, len(xx)), 1e-12)
    old = weight[:, keep].T
    fitted = np.linalg.solve(xx + ridge * np.eye(len(xx)), xy + ridge * old).T
    new = np.zeros_like(weight)
    new[:, keep] = fitted
    shift = m.y_mean - new @ m.x_mean if with_bias else np.zeros(len(weight))
    return new, shift
