"""``units(ratio)``: hidden units of LSTM and GRU layers, taken out of all gates and of every layer that reads them.

What belongs to one unit is an intrinsic sparse structure (Wen et al. 2018): its rows of all gates in W_ih, W_hh and
both biases, its column of W_hh, and its columns in the next layer and in the layers that read the output.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemux.compression.observing import evaluating, hooked
from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.prune.criteria import kept_width, largest
from edgemux.compression.prune.readers import Reader, feature_axis, layout, readers
from edgemux.compression.retrain import RATE, Rate, label_loss, retrain
from edgemux.multiplexer.errors import PassError

Criterion = Literal["norm", "contribution"]
Keep = NDArray[np.bool_]
Floats = NDArray[np.float64]
KINDS = (nn.LSTM, nn.GRU)
# Inputs that ``contribution`` looks at, and those that a removal is tried on.
SAMPLED, TRIED = 256, 4
# Sums over fewer terms are added in another order.
TOLERANCE = 1e-4


def recurrent_layers(net: nn.Module, x: Tensor) -> list[str]:
    """Names of the LSTM and GRU layers that x, float32 [n, ...], passes through.

    Raises PassError when there is none, or one that projects its output.
    """
    kinds = [name for name, module in net.named_modules() if isinstance(module, KINDS)]
    for name in kinds:
        if getattr(net.get_submodule(name), "proj_size", 0):
            raise PassError(f"units: {name!r} projects its output (proj_size), and such layers are not handled")
    names = [name for name in kinds if _inputs(net, name, x[:1])]
    if not names:
        raise PassError("units: the net has no LSTM or GRU layer")
    return names


def without_units(net: nn.Module, name: str, keep: Keep, found: Iterable[Reader]) -> nn.Module:
    """A copy of the net whose layer ``name`` has only the kept units.

    keep: bool [layers, directions, hidden], equally many in all layers and directions; found: what ``readers`` says.
    Raises PassError when the net does not answer as it does with what reads the other units set to zero.
    """
    result = copy.deepcopy(net)
    layer = _layer(result, name)
    index = [np.flatnonzero(row) for row in keep.reshape(-1, keep.shape[2])]
    if len({len(row) for row in index}) != 1 or not len(index[0]):
        raise PassError(f"units: {name!r} must keep equally many units, at least one, in all layers and directions")
    for at, (suffix, rows) in enumerate(zip(_suffixes(layer), index, strict=True)):
        gates = getattr(layer, f"weight_hh{suffix}").shape[0] // keep.shape[2]
        of_gates = torch.from_numpy(np.concatenate([gate * keep.shape[2] + rows for gate in range(gates)]))
        for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if layer.bias or key.startswith("weight"):
                _cut(layer, f"{key}{suffix}", of_gates, 0)
        _cut(layer, f"weight_hh{suffix}", torch.from_numpy(rows), 1)
        if at >= keep.shape[1]:
            _cut(layer, f"weight_ih{suffix}", torch.from_numpy(np.flatnonzero(keep[at // keep.shape[1] - 1])), 1)
    layer.hidden_size = len(index[0])
    for reader in found:
        _narrow(result.get_submodule(reader.name), _features(reader, keep))
    return result


def _narrow(layer: nn.Module, kept: Keep) -> None:
    """Take input features out of a reader, in place."""
    index, count = torch.from_numpy(np.flatnonzero(kept)), int(kept.sum())
    if isinstance(layer, nn.BatchNorm1d):
        for key in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, key) is not None:
                _cut(layer, key, index, 0)
        layer.num_features = count
        return
    for key in _reading(layer):
        _cut(layer, key, index, 1)
    attribute = next(key for key in ("in_features", "in_channels", "input_size") if hasattr(layer, key))
    setattr(layer, attribute, count)


def silenced(net: nn.Module, name: str, keep: Keep, found: Iterable[Reader]) -> nn.Module:
    """A copy of the net in which nothing reads the units that are not kept: the weights that did are zero."""
    result = copy.deepcopy(net)
    layer = _layer(result, name)
    dropped = torch.from_numpy(~keep)
    with torch.no_grad():
        for at, suffix in enumerate(_suffixes(layer)):
            depth, direction = divmod(at, keep.shape[1])
            getattr(layer, f"weight_hh{suffix}")[:, dropped[depth, direction]] = 0.0
            if depth:
                getattr(layer, f"weight_ih{suffix}")[:, dropped[depth - 1].flatten()] = 0.0
        for reader in found:
            module = result.get_submodule(reader.name)
            gone = torch.from_numpy(~_features(reader, keep))
            for key in _reading(module):
                getattr(module, key)[:, gone] = 0.0
    return result


def checked(net: nn.Module, name: str, keep: Keep, found: Iterable[Reader], x: Tensor) -> nn.Module:
    """``without_units``, tried on x, float32 [n, ...], against the net with the dropped units silenced."""
    found = list(found)
    result, wanted = without_units(net, name, keep, found).eval(), silenced(net, name, keep, found).eval()
    try:
        with torch.no_grad():
            now, before = result(x[:TRIED]), wanted(x[:TRIED])
    except Exception as error:  # whatever the user's forward raises when sizes do not fit
        raise PassError(f"units: the net does not run with fewer hidden units in {name!r}") from error
    if now.shape != before.shape or not torch.allclose(now, before, rtol=TOLERANCE, atol=TOLERANCE):
        raise PassError(f"units: what reads the hidden units of {name!r} cannot be determined")
    return result.train(net.training)


def strength(net: nn.Module, name: str, criterion: Criterion, found: Iterable[Reader], x: Tensor) -> Floats:
    """How much each unit matters, float64 [layers, directions, hidden].

    norm: length of all weights of the unit's structure, the group of the group lasso of Wen et al. 2018. contribution:
    of what each matrix that reads the unit receives (mean square of the input times squared column, on x), the unit's
    share, summed over these matrices.
    """
    layer, found = _layer(net, name), list(found)
    total = np.zeros(int(np.prod(layout(layer))))
    if criterion == "norm":
        for matrix in (*_inside(layer), *_outside(net, found)):
            _add(total, matrix.unit, matrix.columns)
        for at, suffix in enumerate(_suffixes(layer)):
            rows = _squares(layer, f"weight_ih{suffix}", 1) + _squares(layer, f"weight_hh{suffix}", 1)
            total.reshape(-1, layer.hidden_size)[at] += rows.reshape(-1, layer.hidden_size).sum(axis=0)
        return np.sqrt(total).reshape(layout(layer))
    energy = hidden_energy(net, name, x[:SAMPLED]).reshape(-1)
    for matrix in _inside(layer):
        _add(total, matrix.unit, _share(matrix.columns * energy[matrix.unit]))
    for matrix in _outside(net, found):
        _add(total, matrix.unit, _share(matrix.columns * _input_energy(net, matrix.name, x[:SAMPLED])))
    return total.reshape(layout(layer))


@dataclass(frozen=True, eq=False)
class _Matrix:
    """Reads units: ``columns`` are sums of squares of what reads each feature, ``unit`` as in ``Reader``."""

    name: str
    unit: NDArray[np.int64]
    columns: Floats


def _inside(layer: nn.RNNBase) -> Iterator[_Matrix]:
    """The layer's own matrices: recurrent ones, and inner layers' input matrices."""
    _, directions, hidden = layout(layer)
    for at, suffix in enumerate(_suffixes(layer)):
        yield _Matrix("", at * hidden + np.arange(hidden), _squares(layer, f"weight_hh{suffix}", 0))
        if at >= directions:
            below = (at // directions - 1) * directions * hidden + np.arange(directions * hidden)
            yield _Matrix("", below, _squares(layer, f"weight_ih{suffix}", 0))


def _outside(net: nn.Module, found: Iterable[Reader]) -> Iterator[_Matrix]:
    for reader in found:
        module = net.get_submodule(reader.name)
        for key in _reading(module):
            columns = _squares(module, key, 0).reshape(len(reader.unit), -1).sum(axis=1)
            yield _Matrix(reader.name, reader.unit, columns)


def _add(total: Floats, unit: NDArray[np.int64], values: Floats) -> None:
    np.add.at(total, unit[unit >= 0], values[unit >= 0])


def hidden_energy(net: nn.Module, name: str, x: Tensor) -> Floats:
    """Mean square of every unit over all steps of x, float64 [layers, directions, hidden]; inner layers included."""
    layer = _layer(net, name)
    layers, directions, hidden = layout(layer)
    values = _inputs(net, name, x)[0]
    kind = nn.LSTM if isinstance(layer, nn.LSTM) else nn.GRU
    found = []
    for depth in range(layers):
        one = kind(values.shape[-1], hidden, 1, bool(layer.bias), bool(layer.batch_first), 0.0, directions == 2)
        ends = [f"_l{depth}{side}" for side in ("", "_reverse")[:directions]]
        state = layer.state_dict()
        one.load_state_dict(
            {key.replace(f"_l{depth}", "_l0"): value for key, value in state.items() if key.endswith(tuple(ends))}
        )
        with torch.no_grad():
            values = one(values)[0]
        found.append(values.double().square().flatten(0, -2).mean(0).reshape(directions, hidden).numpy())
    return np.stack(found)


def _inputs(net: nn.Module, name: str, x: Tensor) -> list[Tensor]:
    """What a layer gets in each call, in evaluation mode."""
    seen: list[Tensor] = []

    def hook(_layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append((args[0] if args else next(iter(kwargs.values()))).detach())

    handle = net.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    with hooked([handle]), evaluating(net):
        net(x)
    return seen


def _input_energy(net: nn.Module, name: str, x: Tensor) -> Floats:
    """Mean square of every feature of a reader's input."""
    axis = feature_axis(net.get_submodule(name))
    assert axis is not None
    energy: Floats = _inputs(net, name, x)[0].double().square().movedim(axis, -1).flatten(0, -2).mean(0).numpy()
    return energy


def _features(reader: Reader, keep: Keep) -> Keep:
    """The features of a reader's input that stay, bool."""
    return (reader.unit < 0) | keep.reshape(-1)[reader.unit]


def _reading(layer: nn.Module) -> list[str]:
    """The matrices of a layer whose axis 1 is its input's features."""
    if isinstance(layer, nn.RNNBase):
        return ["weight_ih_l0", "weight_ih_l0_reverse"][: layout(layer)[1]]
    return [] if isinstance(layer, nn.BatchNorm1d) else ["weight"]


def _squares(layer: nn.Module, key: str, axis: int) -> Floats:
    """Sums of squares along one axis of a matrix."""
    sums: Floats = getattr(layer, key).detach().double().square().sum(axis).numpy()
    return sums


def _share(values: Floats) -> Floats:
    return values / max(float(values.sum()), 1e-30)


def _layer(net: nn.Module, name: str) -> nn.RNNBase:
    layer = net.get_submodule(name)
    assert isinstance(layer, nn.RNNBase)
    return layer


def _suffixes(layer: nn.RNNBase) -> list[str]:
    """How torch ends the names of one layer's and direction's tensors, in the order of unit numbers."""
    layers, directions, _ = layout(layer)
    return [f"_l{depth}{side}" for depth in range(layers) for side in ("", "_reverse")[:directions]]


def _cut(layer: nn.Module, key: str, index: Tensor, axis: int) -> None:
    """Keep some places of one axis of a parameter or buffer, in place."""
    old = getattr(layer, key)
    new = old.detach().index_select(axis, index).clone()
    setattr(layer, key, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)


class Units(Pass, frozen=True):
    """``units(ratio, criterion, round_to, epochs, rate)``: that share of LSTM and GRU units goes.

    Every recurrent layer keeps its units of most ``strength``, equally many in all its layers and directions; then the
    net is trained on from the labels for ``epochs`` (0: not at all). round_to: widths become multiples of it, 0
    chooses. W_hh shrinks with the square: half of the units is a quarter of its work.
    """

    label: ClassVar[str] = "units"
    gives: ClassVar[frozenset[Gain]] = frozenset({"speed", "storage"})

    ratio: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.5
    criterion: Criterion = "contribution"
    round_to: Annotated[int, Meta(ge=0, le=1024)] = 0
    epochs: Annotated[float, Meta(ge=0.0, le=1000.0)] = 3.0
    rate: Rate = RATE

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net with LSTM or GRU layers whose readers can be found."""
        net = net_of(subject, self.label)
        x = setting.samples.train_x
        for name in recurrent_layers(net, x):
            readers(net, name, x)

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Choose, remove, check, train on."""
        net = copy.deepcopy(net_of(subject, self.label))
        x = setting.samples.train_x
        narrowed = 0
        for name in recurrent_layers(net, x):
            found = readers(net, name, x)
            values = strength(net, name, self.criterion, found, x)
            width = kept_width(values.shape[2], self.ratio, self.round_to)
            if width == values.shape[2]:
                continue
            keep = np.zeros(values.shape, np.bool_)
            for place in np.ndindex(*values.shape[:2]):
                keep[place][largest(values[place], width)] = True
            net = checked(net, name, keep, found, x)
            narrowed += 1
        if not narrowed:
            raise PassError("units: no layer has hidden units that can be removed at this ratio")
        if self.epochs > 0:
            samples = setting.samples
            retrain(net, samples, label_loss(samples), setting.epochs(self.epochs), self.rate, setting.seed)
        return subject.with_net(net.eval())
