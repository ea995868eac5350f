"""Which layers read the hidden units of a recurrent layer: units are changed and what changes with them is watched.

No code is traced, so ``forward`` may do what it likes: take the last step, average, flatten, join other features to it.
All other layers are held at fixed answers meanwhile; what changes is then what reads the units first hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemux.compression.observing import evaluating, hooked
from edgemux.multiplexer.errors import PassError

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]
Calls = dict[str, list[Any]]
# Enough inputs that a rectifier between unit and reader lets some of the drawn values pass (all but 1 in 2^64).
EXAMPLES = 32
# Where the features of a reader's input are, and who reads along it.
FEATURE_AXIS: dict[type[nn.Module], int] = {nn.Linear: -1, nn.RNNBase: -1, nn.Conv1d: 1, nn.BatchNorm1d: 1}


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads units. unit[i]: number of the unit that its input feature i is made of, -1 for none.

    Units are numbered (layer * directions + direction) * hidden_size + unit, as torch orders the final state.
    """

    name: str
    unit: Index


def layout(layer: nn.RNNBase) -> tuple[int, int, int]:
    """Layers, directions, hidden units of each."""
    return int(layer.num_layers), 2 if layer.bidirectional else 1, int(layer.hidden_size)


def readers(net: nn.Module, name: str, x: Tensor) -> list[Reader]:
    """The layers outside ``name`` that read its units.

    x: float32 [n, ...]. Units are told apart by the bits of their numbers. Two runs a bit change those without it and
    those with it; a feature of one unit changes in exactly one of the two, a mixture of units in both for some bit.
    Raises PassError when units are mixed, reach the net's outputs, or are read by a layer that cannot lose
    inputs.
    """
    probe = _Probe(net, name, x[torch.arange(EXAMPLES) % len(x)])
    count = int(np.prod(layout(probe.layer)))
    numbers = torch.arange(count)
    still, answer = probe.run(torch.zeros(count, dtype=torch.bool))
    rounds = []
    for bit in range(max(1, (count - 1).bit_length())):
        changed = []
        for wanted in (0, 1):
            calls, now = probe.run((numbers >> bit) & 1 == wanted)
            if not torch.equal(now, answer):
                raise PassError(f"units: hidden units of {name!r} reach the outputs without a layer in between")
            changed.append(_changes(net, name, still, calls))
        rounds.append(changed)
    found = dict.fromkeys(reader for changed in rounds for side in changed for reader in side)
    return [Reader(reader, _numbers(name, reader, rounds)) for reader in found]


def _numbers(name: str, reader: str, rounds: Sequence[Sequence[Mapping[str, Mask]]]) -> Index:
    """The unit of every feature of a reader, from what changed without and with each bit."""
    width = next(len(side[reader]) for changed in rounds for side in changed if reader in side)
    nothing = np.zeros(width, np.bool_)
    pairs = [tuple(side.get(reader, nothing) for side in changed) for changed in rounds]
    touched = np.logical_or(*pairs[0])
    unit = np.zeros(width, np.int64)
    for bit, (without, with_it) in enumerate(pairs):
        if np.any((without ^ with_it) != touched):
            raise PassError(f"units: what {reader!r} reads mixes hidden units of {name!r}, so none can be taken out")
        unit += with_it.astype(np.int64) << bit
    return np.where(touched, unit, -1)


def _changes(net: nn.Module, name: str, still: Calls, now: Calls) -> dict[str, Mask]:
    """Features of each reader's input that are not what they were."""
    changed: dict[str, Mask] = {}
    for reader, calls in now.items():
        layer = net.get_submodule(reader)
        for before, after in zip(still[reader], calls, strict=True):
            differ = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
            if not any(differ):
                continue
            axis = feature_axis(layer)
            if axis is None or any(differ[1:]) or reader == name:
                what = f"{type(layer).__name__} {reader!r}"
                raise PassError(f"units: {what} reads hidden units of {name!r} and cannot lose inputs")
            features = (before[0] != after[0]).movedim(axis, -1).flatten(0, -2).any(0).numpy()
            changed[reader] = changed.get(reader, np.zeros_like(features)) | features
    return changed


def feature_axis(layer: nn.Module) -> int | None:
    """The axis of a reader's input along which features are taken out, None for a layer that cannot lose any."""
    if getattr(layer, "groups", 1) != 1:
        return None
    return next((axis for kind, axis in FEATURE_AXIS.items() if isinstance(layer, kind)), None)


class _Probe:
    """Runs a net with drawn values for the units of one layer, and every other layer's answers as they were."""

    def __init__(self, net: nn.Module, name: str, x: Tensor) -> None:
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.RNNBase)
        self.net, self.name, self.x, self.layer = net, name, x, layer
        self.watched = {
            other: module
            for other, module in net.named_modules()
            if _has_state(module) and not (name == other or name.startswith(f"{other}.") or other == "")
        }
        self.fixed: Calls = {other: [] for other in self.watched}
        with self._hooked({other: self._remember(other) for other in self.watched}):
            self._answer()

    def run(self, changed: Tensor) -> tuple[Calls, Tensor]:
        """Inputs of every call of the watched layers and of the layer itself, and the net's answer."""
        seen: Calls = {other: [] for other in (*self.watched, self.name)}
        calls = iter(range(1 << 30))

        def drawn(_layer: Any, args: Any, kwargs: Any, output: Any) -> Any:
            seen[self.name].append(_tensors((args, kwargs)))
            return _drawn(self.layer, output, changed, next(calls))

        hooks = {other: self._replay(other, seen[other]) for other in self.watched}
        with self._hooked({**hooks, self.name: drawn}):
            answer = self._answer()
        return seen, answer

    def _remember(self, other: str) -> Callable[..., None]:
        def hook(_layer: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            self.fixed[other].append(_cloned(output))

        return hook

    def _replay(self, other: str, seen: list[Any]) -> Callable[..., Any]:
        per_feature = isinstance(self.watched[other], nn.BatchNorm1d)

        def hook(_layer: Any, args: Any, kwargs: Any, output: Any) -> Any:
            seen.append(_tensors((args, kwargs)))
            # A batch norm keeps features apart: what it answers goes on to the reader behind it.
            return output if per_feature else _cloned(self.fixed[other][len(seen) - 1])

        return hook

    def _hooked(self, hooks: Mapping[str, Callable[..., Any]]) -> AbstractContextManager[None]:
        return hooked(
            self.net.get_submodule(name).register_forward_hook(hook, with_kwargs=True) for name, hook in hooks.items()
        )

    def _answer(self) -> Tensor:
        try:
            with evaluating(self.net):
                answer: Tensor = self.net(self.x)
        except Exception as error:  # whatever the user's forward raises
            raise PassError(f"units: the net cannot be followed ({type(error).__name__})") from error
        return answer


def _cloned(value: Any) -> Any:
    """The same tensors in memory of their own, as ``forward`` may change them in place."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_cloned, value))
    return value.clone() if isinstance(value, Tensor) else value


def _has_state(module: nn.Module) -> bool:
    return bool(module._parameters or module._buffers)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [found for part in value.values() for found in _tensors(part)]
    if isinstance(value, (tuple, list)):
        return [found for part in value for found in _tensors(part)]
    return []


def _drawn(layer: nn.RNNBase, output: Any, changed: Tensor, call: int) -> Any:
    """Random values in the place of output [..., directions * hidden] and states [layers * directions, n, hidden].

    ``changed`` units get other values than in a run in which they are not changed; equal calls draw equal values.
    """
    layers, directions, hidden = layout(layer)
    generator = torch.Generator().manual_seed(call)

    def draw(like: Tensor, mask: Tensor) -> Tensor:
        one, other = torch.randn((2, *like.shape), generator=generator).to(like.dtype)
        return torch.where(mask, other, one)

    sequence, state = output
    if not isinstance(sequence, Tensor):
        raise PassError("units: packed sequences cannot be followed")
    last = changed.reshape(layers, directions * hidden)[-1]
    by_state = changed.reshape(layers * directions, 1, hidden)
    if isinstance(state, tuple):
        return draw(sequence, last), tuple(draw(part, by_state) for part in state)
    return draw(sequence, last), draw(state, by_state)
