"""``share(groups)``: layers of equal shape use one tensor, each with its own bias and batch norm; then trained on.

Halving what is stored this way is plain recurrence: the same layer, applied again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

import onnx
import torch
from msgspec import Meta
from torch import nn

from edgemux.compression.observing import calls
from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.retrain import Epochs, Rate, label_loss, retrain
from edgemux.compression.structure import tie, ties_of
from edgemux.compression.to_onnx import shipped
from edgemux.multiplexer.errors import PassError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
AUTO = "auto"
WEIGHTED = ("Conv", "Gemm", "MatMul")


def runs(net: nn.Module, x: torch.Tensor) -> list[list[str]]:
    """Layers of equal shape that follow each other in a forward pass of x, float32 [n, ...]; those alone are left out.

    Layers whose weight is shared already, or that are called more than once, end a run.
    """
    order = calls(net, x, LAYERS)
    shared = {name for group in ties_of(net) for name in group}
    free = [order.count(name) == 1 and f"{name}.weight" not in shared for name in order]
    kinds = [_kind(net.get_submodule(name)) if able else name for name, able in zip(order, free, strict=True)]
    found = [list(group) for _, group in groupby(range(len(order)), key=kinds.__getitem__)]
    return [[order[at] for at in group] for group in found if len(group) > 1 and free[group[0]]]


def automatic(net: nn.Module, x: torch.Tensor, uses: int) -> list[list[str]]:
    """Groups of ``uses`` neighbours in ``runs``; what is left over at the end of a run is a smaller group or none."""
    parts = [run[at : at + uses] for run in runs(net, x) for at in range(0, len(run), uses)]
    return [part for part in parts if len(part) > 1]


def named(net: nn.Module, text: str) -> list[list[str]]:
    """Groups from text: in ``low.0 + low.1, high.0 + high.1`` layers of low.1 use the tensors of their like in low.0.

    Raises PassError for a module that is not there, and for modules whose layers are not of equal shapes.
    """
    groups: list[list[str]] = []
    for part in text.split(","):
        names = [name.strip() for name in part.split("+")]
        if len(set(names)) != len(names) or len(names) < 2:
            raise PassError(f"share: {part.strip()!r} must name different modules, like low.0 + low.1")
        layers = [_layers_of(net, name) for name in names]
        kinds = [[_kind(net.get_submodule(layer)) for layer in each] for each in layers]
        if not layers[0] or any(kind != kinds[0] for kind in kinds):
            raise PassError(f"share: {part.strip()!r} have no layers, or not of equal shapes")
        groups += [list(group) for group in zip(*layers, strict=True)]
    used = [layer for group in groups for layer in group]
    if len(set(used)) != len(used):
        raise PassError("share: a layer is in two groups")
    return groups


def tied(net: nn.Module, groups: Sequence[Sequence[str]], start: Literal["first", "mean"]) -> nn.Module:
    """A copy of the net in which the layers of each group have one weight: the first one's, or the mean of all."""
    result = copy.deepcopy(net)
    for group in groups:
        if start == "mean":
            weights = [result.get_submodule(name).weight.detach() for name in group]
            result.get_submodule(group[0]).weight.data = torch.stack(weights).mean(0)
        tie(result, [f"{name}.weight" for name in group])
    return result


def stored_weights(graph: onnx.ModelProto) -> int:
    """Numbers in the weights of convolutions and matrix products, each tensor counted once."""
    read = {node.input[1] for node in graph.graph.node if node.op_type in WEIGHTED}
    return sum(math.prod(tensor.dims) for tensor in graph.graph.initializer if tensor.name in read)


def _layers_of(net: nn.Module, name: str) -> list[str]:
    try:
        module = net.get_submodule(name)
    except AttributeError as error:
        raise PassError(f"share: the net has no module {name!r}") from error
    return [f"{name}.{inner}" if inner else name for inner, part in module.named_modules() if isinstance(part, LAYERS)]


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """Layers that are equal in this can use one tensor."""
    how = tuple(getattr(layer, key, None) for key in ("stride", "padding", "dilation", "groups", "padding_mode"))
    return type(layer), tuple(layer.weight.shape), how


class Share(Pass, frozen=True):
    """``share(groups, uses, start, epochs, rate)``: convolutions and linear layers use each other's tensors.

    groups: ``auto`` ties every ``uses`` neighbours of equal shape in the order of the data; or text as ``named`` takes
    it. start: the weight that training goes on from. Work and time stay what they are.
    """

    label: ClassVar[str] = "share"
    gives: ClassVar[frozenset[Gain]] = frozenset({"storage"})

    groups: str = AUTO
    uses: Annotated[int, Meta(ge=2, le=64)] = 2
    start: Literal["first", "mean"] = "first"
    epochs: Epochs = 6.0
    rate: Rate = 0.05

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net with layers of equal shape."""
        self._groups(net_of(subject, self.label), setting)

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Tie, and train on."""
        net = net_of(subject, self.label)
        result = tied(net, self._groups(net, setting), self.start)
        samples = setting.samples
        retrain(result, samples, label_loss(samples), setting.epochs(self.epochs), self.rate, setting.seed)
        return subject.with_net(result)

    def ensures(self, before: Subject, after: Subject, setting: Setting) -> None:
        """One tensor a group in the exported graph too."""
        net = net_of(before, self.label)
        saved = sum(
            (len(group) - 1) * net.get_submodule(group[0]).weight.numel() for group in self._groups(net, setting)
        )
        left = [
            stored_weights(shipped(Subject(net_of(subject, self.label)), setting.samples))
            for subject in (before, after)
        ]
        if left[0] - left[1] != saved:
            raise PassError(f"share: the exported graph holds {left[1]} weights, {left[0] - saved} were to be left")

    def _groups(self, net: nn.Module, setting: Setting) -> list[list[str]]:
        x = setting.samples.train_x[:1]
        groups = automatic(net, x, self.uses) if self.groups == AUTO else named(net, self.groups)
        if not groups:
            raise PassError("share: no neighbouring layers are of equal shape; name modules in groups")
        return groups
