"""Blocks that could become identities, and how much each one does, told by looking at its input and its output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemux.compression.observing import evaluating, hooked
from edgemux.compression.samples import BATCH

Probe = Literal["linear", "cka"]
# What a block passes on, by name: its input and its output, each float32 [n, ...].
Passed = dict[str, tuple[Tensor, Tensor]]
Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]
Keep = Callable[[nn.Module, Tensor], Tensor]
CONVOLUTIONS = nn.modules.conv._ConvNd
WORK = (CONVOLUTIONS, nn.Linear, nn.RNNBase)
POOLS: dict[int, Callable[..., Tensor]] = {
    3: functional.adaptive_avg_pool1d,
    4: functional.adaptive_avg_pool2d,
    5: functional.adaptive_avg_pool3d,
}
# Positions per axis that probes see of a map: where something is tells classes apart as well as whether it is there.
POSITIONS = 2
# Ridge of the linear probe as a share of the mean variance of its inputs: 200 features of 1000 inputs do not overfit.
RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Output:
    """What a module answered; ``version`` counts changes in place up to then."""

    tensor: Tensor
    version: int


def identity_blocks(net: nn.Module, x: Tensor) -> list[str]:
    """Names of the modules whose output has the shape of their input, in the order in which they run.

    x: float32 [n, ...]. A block contains a convolution, a linear or a recurrent layer, runs once, and is as large as
    possible; but a chain of two and more blocks, a ``Sequential`` or a module whose answer is its last block's, is
    taken apart. A module inside a larger block is none: of ``x + f(x)`` written as a module, ``f`` alone stays.
    """
    found = _same_shape(net, x)

    def blocks(name: str, module: nn.Module) -> list[str]:
        chain = isinstance(module, nn.Sequential) or _answers_of_last(name, found)
        if name in found and not chain:
            return [name]
        below = [
            block for leaf, child in module.named_children() for block in blocks(f"{name}.{leaf}".lstrip("."), child)
        ]
        return [name] if name in found and len(below) < 2 else below

    chosen = set(blocks("", net))
    return [name for name in found if name in chosen]


def _answers_of_last(name: str, found: dict[str, Output]) -> bool:
    """Is the very tensor that a module answers the answer of a block inside it, to which nothing was added in place?"""
    return name in found and any(
        other.startswith(f"{name}.") and output.tensor is found[name].tensor and output.version == found[name].version
        for other, output in found.items()
    )


def _same_shape(net: nn.Module, x: Tensor) -> dict[str, Output]:
    """Outputs of modules that do work, run once, and take and give one tensor of the same shape; in order."""
    counts: Counter[str] = Counter()
    equal: dict[str, Output] = {}

    def note(name: str) -> Hook:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            counts[name] += 1
            single = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
            if single and inputs[0].shape == output.shape:
                equal[name] = Output(output, output._version)

        return hook

    working = [
        name
        for name, module in net.named_modules()
        if name and any(isinstance(part, WORK) for part in module.modules())
    ]
    with _hooked(net, {name: note(name) for name in working}):
        net(x[:2])
    return {name: output for name, output in equal.items() if counts[name] == 1}


def passed(net: nn.Module, names: Sequence[str], x: Tensor, keep: Keep) -> Passed:
    """What the named modules take and give for inputs float32 [n, ...], after ``keep`` has made it smaller."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def note(name: str) -> Hook:
        return lambda module, inputs, output: parts[name].append((keep(module, inputs[0]), keep(module, output)))

    with _hooked(net, {name: note(name) for name in names}):
        for part in x.split(BATCH):
            net(part)
    return {name: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])) for name, pairs in parts.items()}


def importances(net: nn.Module, names: Sequence[str], x: Tensor, y: Tensor, probe: Probe) -> dict[str, float]:
    """How much each block does; the least goes first.

    linear: by how much a linear classifier is better on the block's output than on its input (Alain & Bengio 2016,
    Chen & Zhao 2018), in shares of inputs. cka: 1 - linear CKA of the two. x: float32 [n, ...], y: int64 [n], n > 1.
    """
    if probe == "cka":  # block by block: whole maps of all blocks at once would be large
        return {name: 1.0 - cka(*passed(net, [name], x, lambda _, part: part.flatten(1))[name]) for name in names}
    pairs = passed(net, names, x, pooled)
    return {name: probe_accuracy(b, y) - probe_accuracy(a, y) for name, (a, b) in pairs.items()}


def pooled(block: nn.Module, x: Tensor) -> Tensor:
    """Features float [n, d] of what a block takes or gives, averaged to two positions along each axis but channels.

    Channels come first, [n, channels, ...], in blocks with convolutions, and last, [n, steps, channels], in others.
    """
    if not any(isinstance(part, CONVOLUTIONS) for part in block.modules()):
        x = x.movedim(-1, 1)
    if x.ndim in POOLS:
        x = POOLS[x.ndim](x, tuple(min(POSITIONS, side) for side in x.shape[2:]))
    return x.flatten(1)


def probe_accuracy(features: Tensor, y: Tensor) -> float:
    """Accuracy of a linear classifier on the second half of the inputs, fitted on the first by ridge regression.

    features: float [n, d]; y: int64 [n]. Least squares on one-hot labels instead of a trained softmax: it has a closed
    form, and only differences between probes matter here. Solved for the shorter side of the features.
    """
    half = len(y) // 2
    z = features.double()
    z = functional.pad((z - z[:half].mean(0)) / (z[:half].std(0) + 1e-6), (0, 1), value=1.0)
    seen, new, wanted = z[:half], z[half:], functional.one_hot(y[:half], int(y.max()) + 1).double()
    wide = z.shape[1] > half
    gram = seen @ seen.T if wide else seen.T @ seen
    gram.diagonal().add_(RIDGE * half)
    guess = new @ (seen.T @ torch.linalg.solve(gram, wanted) if wide else torch.linalg.solve(gram, seen.T @ wanted))
    return float((guess.argmax(1) == y[half:]).double().mean())


def cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of features float [n, d] and [n, e], 0..1 (Kornblith et al. 2019, equation 3).

    1 when one is a rotation, scaling or shift of the other; 0 as well when either is constant.
    """
    one, other = (_centred_gram(part) for part in (a, b))
    scale = float(one.norm() * other.norm())
    return float((one * other).sum()) / scale if scale > 0.0 else 0.0


def _centred_gram(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return (x @ x.T).double()


@contextmanager
def _hooked(net: nn.Module, hooks: dict[str, Hook]) -> Iterator[None]:
    """The net with forward hooks, in evaluation mode and without gradients; both are put back."""
    with hooked(net.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()), evaluating(net):
        yield
