"""``binarise(mode, epochs, rate, widen)``: inner layers multiply signs by signs.

Binarised neural networks (Courbariaux et al. 2016): the forward pass sees signs, the backward pass goes straight
through them where the value is in [-1, 1], and float weights, clipped to [-1, 1], collect the small steps. Weights
have a scale per output channel (XNOR-Net, Rastegari et al. 2016), a batch norm follows, and the first and the last
layer stay real, at 8 bits. A batch norm also comes before the sign: a net with rectifiers gives a layer no negative
value, and every sign would be the same.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.quantize.lowbit import EDGE_BITS, FLOAT_BITS, LowBit, ensure_exported
from edgemux.compression.quantize.packed import pack_weights
from edgemux.compression.quantize.swap import inner_layers, run_layer, swap
from edgemux.compression.quantize.widen import widened
from edgemux.compression.retrain import Epochs, Rate, label_loss, recalibrate, retrain

Mode = Literal["deterministic", "stochastic"]
NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
# Mean magnitude that a channel's weights start with: far enough from 0 that a step does not flip them all.
START = 0.5
# A threshold that no value is below.
FAR = 3e38
EPOCHS, RATE = 8.0, 0.1
# Inputs that batch statistics are measured on once training is over.
MEASURED = 2500


def sign(x: Tensor) -> Tensor:
    """-1 below zero, else 1."""
    return torch.where(x >= 0, 1.0, -1.0)


class Sign(torch.autograd.Function):
    """Signs, or drawn ones; the gradient passes where |x| <= 1 (Courbariaux et al. 2016, equation 4).

    Drawn: 1 with probability clip((x + 1) / 2, 0, 1), the hard sigmoid of equation 3, else -1.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, drawn: bool) -> Tensor:
        """-1 or 1, of the shape of x."""
        ctx.save_for_backward(x)
        return sign(x - (2.0 * torch.rand_like(x) - 1.0)) if drawn else sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Straight through, within [-1, 1]."""
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1.0), None


class Binary(nn.Module):
    """A convolution or linear layer with signs for weights and inputs: norm, sign, product times alpha, norm.

    In evaluation the norm before is a threshold per channel, and the norm after is part of the weight's scale and of
    the bias; signs are drawn in training only.
    """

    alpha: Tensor

    def __init__(self, layer: nn.Module, example: Tensor, mode: Mode) -> None:
        """layer: taken over, its weight rescaled per channel; example: inputs that it was seen to get, [n, ...]."""
        super().__init__()
        self.layer, self.mode = layer, mode
        kind = NORMS[type(layer)]
        axis = self._axis
        weight = layer.weight
        with torch.no_grad():
            output = layer.eval()(example).movedim(axis, 0).flatten(1)
            size = weight.abs().flatten(1).mean(1).clamp_min(1e-12)
            weight.mul_(START / size.reshape(-1, *(1,) * (weight.ndim - 1))).clamp_(-1.0, 1.0)
        self.before, self.after = kind(example.shape[axis]), kind(len(output))
        self.register_buffer("alpha", self._sizes())
        # What comes after the layer sees what it saw before, in mean and spread.
        with torch.no_grad():
            self.after.weight.copy_(output.std(1))
            self.after.bias.copy_(output.mean(1))

    @property
    def _axis(self) -> int:
        return -1 if isinstance(self.layer, nn.Linear) else 1

    def _sizes(self) -> Tensor:
        weight = self.layer.weight.detach()
        return weight.abs().flatten(1).mean(1).reshape(-1, *(1,) * (weight.ndim - 1))

    def train(self, mode: bool = True) -> Binary:
        """The optimiser has moved the weight since alpha was last taken from it."""
        if not mode:
            self.alpha.copy_(self._sizes())
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of the signs."""
        if not (self.training or self.before.training):
            return self._folded(x)
        weight = self.layer.weight
        drawn = self.training and self.mode == "stochastic"
        if self.training:
            with torch.no_grad():
                weight.clamp_(-1.0, 1.0)
                self.alpha.copy_(self._sizes())
        signs: Tensor = Sign.apply(_along(self.before, x, self._axis), drawn)
        product = run_layer(self.layer, signs, Sign.apply(weight, drawn) * self.alpha, self.layer.bias)
        return _along(self.after, product, self._axis)

    def _folded(self, x: Tensor) -> Tensor:
        threshold, rising = self.thresholds()
        above = x >= threshold.reshape(-1, *(1,) * (0 if self._axis == -1 else x.ndim - 2))
        signs = torch.where(above, 1.0, -1.0)
        scale, shift = self.scale_and_shift()
        weight = self.layer.weight
        # A threshold from which the sign falls turns round the weights that read it instead.
        turned = weight * _per_input(rising, self.layer).reshape(len(weight), -1, *(1,) * (weight.ndim - 2))
        return run_layer(self.layer, signs, sign(turned) * scale.reshape(-1, *(1,) * (weight.ndim - 1)), shift)

    def thresholds(self) -> tuple[Tensor, Tensor]:
        """The norm before and its sign: ``rising`` (-1 or 1) from the threshold on, else the other; float [c in]."""
        slope, shift = _line(self.before)
        flat = slope == 0
        threshold = torch.where(flat, -FAR, -shift / torch.where(flat, 1.0, slope))
        return threshold, sign(torch.where(flat, shift, slope))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The layer's output is the product of signs, a whole number, times scale, plus shift; both float [c out]."""
        slope, shift = _line(self.after)
        bias = 0.0 if self.layer.bias is None else self.layer.bias * slope
        return slope * self.alpha.flatten(), shift + bias


def _line(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Slope and shift of a batch norm in evaluation, float [c]."""
    slope = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return slope, norm.bias - norm.running_mean * slope


def _per_input(values: Tensor, layer: nn.Module) -> Tensor:
    """Values of input channels [c in] as a weight sees them, [c out, c in / groups]."""
    groups = getattr(layer, "groups", 1)
    return values.reshape(groups, 1, -1).expand(-1, len(layer.weight) // groups, -1).flatten(0, 1)


def _along(norm: nn.Module, x: Tensor, axis: int) -> Tensor:
    """A batch norm over the last axis of [n, ..., c], or over axis 1."""
    if axis == 1 or x.ndim == 2:
        return norm(x)
    return norm(x.flatten(0, -2)).reshape(x.shape)


def binarised(net: nn.Module, x: Tensor, mode: Mode, widen: int = 1) -> nn.Module:
    """A copy of the net whose inner layers are ``Binary``, the first and the last real at 8 bits; not trained yet.

    x: float32 [n, ...]. Raises PassError when there are no inner layers, the net cannot be widened, or it reaches
    into its layers.
    """
    result = widened(net, x[:1], widen).requires_grad_(True)
    used = inner_layers("binarise", result, x)
    others: dict[nn.Module, nn.Module] = {item.layer: Binary(item.layer, item.input, mode) for item in used[1:-1]}
    for item in (used[0], used[-1]):
        others[item.layer] = LowBit(item.layer, EDGE_BITS, FLOAT_BITS, item.input, "lsq")
    swap("binarise", result, others, x)
    return result


class Binarise(Pass, frozen=True):
    """``binarise(mode, epochs, rate, widen)``: signs for weights and inputs of all layers but the first and the last.

    mode: in training, signs as they are (deterministic) or drawn (stochastic); batch statistics are then measured
    again, because the net answers from signs that are not drawn. widen: factor on all inner widths, to win back
    accuracy. Storage only: stock runtimes compute with signs in float32; ``xnor`` has the fast product.
    """

    label: ClassVar[str] = "binarise"
    gives: ClassVar[frozenset[Gain]] = frozenset({"storage"})

    mode: Mode = "deterministic"
    epochs: Epochs = EPOCHS
    rate: Rate = RATE
    widen: Annotated[int, Meta(ge=1, le=4)] = 1

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net with three convolutions or linear layers."""
        inner_layers(self.label, net_of(subject, self.label), setting.samples.train_x)

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Put in the signs, train, measure batch statistics, and store one bit a weight."""
        samples = setting.samples
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            net = binarised(net_of(subject, self.label), samples.train_x, self.mode, self.widen)
            retrain(net, samples, label_loss(samples), setting.epochs(self.epochs), self.rate, setting.seed)
        if self.mode == "stochastic":
            recalibrate(net, samples.train_x[:MEASURED])
        return subject.with_net(net, pack_weights)

    def ensures(self, before: Subject, after: Subject, setting: Setting) -> None:
        """Every sign of a weight is one in the exported graph."""
        ensure_exported(self.label, after, Binary, setting)
