"""``lowbit(w, a, method, epochs, rate)``: a net trained with weights and activations of a few bits.

Hubara et al. 2018 (quantized neural networks): the forward pass sees rounded values, the backward pass goes straight
through the rounding, and float weights collect the small steps. The step size is learned (LSQ, Esser et al. 2020), or
the largest magnitude is scaled to the last step (``max``, the baseline that falls apart at 2 bits). The first and the
last layer have 8 bits.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.quantize.packed import pack_weights, quantised
from edgemux.compression.quantize.swap import inner_layers, run_layer, swap
from edgemux.compression.retrain import RATE, Epochs, Rate, label_loss, retrain
from edgemux.compression.to_onnx import exported
from edgemux.multiplexer.errors import PassError

Method = Literal["lsq", "max"]
EDGE_BITS = 8
# ``a`` that leaves activations alone.
FLOAT_BITS = 32
SMALLEST_STEP = 1e-8
# How fast the largest activation is followed: an average over about a hundred batches (Jacob et al. 2018, section 3).
FOLLOW = 0.01


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest level (LSQ, section 2: -Q_N and Q_P)."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


class LearnedStep(torch.autograd.Function):
    """``round(clip(x / step)) * step`` with the gradients of LSQ (Esser et al. 2020, equations 1 to 5).

    x: float of any shape; step: float, one number > 0; low, high: levels; scale: the factor g on the step's gradient.
    The limits themselves count as inside, or the largest weight under max scaling would never learn.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
        """The rounded values, of the shape of x."""
        levels = x / step
        ctx.save_for_backward(levels)
        ctx.low, ctx.high, ctx.scale = low, high, scale
        return levels.clamp(low, high).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """To x: as if nothing had happened, within the levels, else 0. To the step: level - x / step, or the limit."""
        (levels,) = ctx.saved_tensors
        clipped = levels.clamp(ctx.low, ctx.high)
        inside = clipped == levels
        slope = clipped.round_().sub_(levels * inside)
        return grad * inside, (grad * slope).sum() * ctx.scale, None, None, None


class Rounding(nn.Module):
    """Rounds a tensor to levels of one step size: ``step`` is a parameter (lsq) or follows the largest value (max)."""

    step: Tensor

    def __init__(self, bits: int, example: Tensor, method: Method, *, weight: bool) -> None:
        """example: the weight itself, or what the layer was seen to get, float32 [n, ...]."""
        super().__init__()
        signed = weight or bool(example.min() < 0)
        self.low, self.high = limits(bits, signed)
        self.weight = weight
        count = example.numel() if weight else example[0].numel()
        # LSQ, section 2.2: N is the number of weights, or of features of one input.
        self.scale = 1.0 / math.sqrt(count * self.high)
        if method == "lsq":
            # LSQ, section 2.1.
            start = 2.0 * example.detach().abs().mean() / math.sqrt(self.high)
            self.step = nn.Parameter(start.clamp_min(SMALLEST_STEP))
        else:
            self.register_buffer("step", self._largest(example))

    def _largest(self, x: Tensor) -> Tensor:
        return (x.detach().abs().max() / self.high).clamp_min(SMALLEST_STEP)

    @property
    def learned(self) -> bool:
        """Is the step trained?"""
        return isinstance(self.step, nn.Parameter)

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Keep the step above zero, or follow the largest value: of weights at once, of activations slowly."""
        if self.learned:
            self.step.clamp_(min=SMALLEST_STEP)
        elif self.weight:
            self.step.copy_(self._largest(x))
        else:
            self.step.lerp_(self._largest(x), FOLLOW)

    def levels(self, x: Tensor) -> Tensor:
        """Whole numbers as float, of the shape of x."""
        return (x / self.step).clamp(self.low, self.high).round()

    def forward(self, x: Tensor) -> Tensor:
        """The rounded values, for training."""
        self.follow(x)
        rounded: Tensor = LearnedStep.apply(x, self.step, self.low, self.high, self.scale)
        return rounded


class LowBit(nn.Module):
    """A convolution or linear layer whose weight and input are rounded; in evaluation the input stays whole numbers.

    Then their step is a factor of the weight's: one multiplication an input less, and a weight that is packed.
    """

    def __init__(self, layer: nn.Module, w: int, a: int, example: Tensor, method: Method) -> None:
        """layer: taken over, not copied; example: inputs that it was seen to get."""
        super().__init__()
        self.layer = layer
        self.of_weight = Rounding(w, layer.weight, method, weight=True)
        self.of_input = Rounding(a, example, method, weight=False) if a < FLOAT_BITS else None

    def train(self, mode: bool = True) -> LowBit:
        """The optimiser has moved the weight since the step was last set to it."""
        if not mode:
            self.of_weight.follow(self.layer.weight)
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of its rounded input with its rounded weight."""
        weight, bias = self.layer.weight, self.layer.bias
        if self.training:
            x = x if self.of_input is None else self.of_input(x)
            return run_layer(self.layer, x, self.of_weight(weight), bias)
        step = self.of_weight.step
        if self.of_input is not None:
            x, step = self.of_input.levels(x), step * self.of_input.step
        return run_layer(self.layer, x, self.of_weight.levels(weight) * step, bias)


def lowered(net: nn.Module, x: Tensor, w: int, a: int, method: Method) -> nn.Module:
    """A copy of the net whose layers are ``LowBit``, the first and the last at 8 bits; not trained yet.

    x: float32 [n, ...]. Raises PassError when there is no layer between the first and the last, or the net reaches
    into its layers.
    """
    result = copy.deepcopy(net).requires_grad_(True)
    used = inner_layers("lowbit", result, x)
    edges = {used[0].name, used[-1].name}
    others: dict[nn.Module, nn.Module] = {}
    for item in used:
        bits = (max(w, EDGE_BITS), max(a, EDGE_BITS)) if item.name in edges else (w, a)
        others[item.layer] = LowBit(item.layer, *bits, item.input, method)
    swap("lowbit", result, others, x)
    return result


class Lowbit(Pass, frozen=True):
    """``lowbit(w, a, method, epochs, rate)``: weights of w bits, activations of a bits (32: left alone), trained.

    Passes that train after it train the rounded net on. Recurrent layers stay as they are. Storage only: stock
    runtimes compute in float32. They add in another order than torch does, so a value in the middle between two levels
    may be rounded the other way there; the others agree as closely as those of any exported net.
    """

    label: ClassVar[str] = "lowbit"
    gives: ClassVar[frozenset[Gain]] = frozenset({"storage"})

    w: Annotated[int, Meta(ge=2, le=8)] = 4
    a: Annotated[int, Meta(ge=2, le=32)] = 4
    method: Method = "lsq"
    epochs: Epochs = 3.0
    rate: Rate = RATE

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net with three convolutions or linear layers; a is 2 to 8, or 32."""
        if EDGE_BITS < self.a < FLOAT_BITS:
            raise PassError(f"lowbit: a is 2 to {EDGE_BITS} bits, or {FLOAT_BITS} for float activations, not {self.a}")
        inner_layers(self.label, net_of(subject, self.label), setting.samples.train_x)

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Put in the roundings, train, and store what comes out bit by bit."""
        samples = setting.samples
        net = lowered(net_of(subject, self.label), samples.train_x, self.w, self.a, self.method)
        retrain(net, samples, label_loss(samples), setting.epochs(self.epochs), self.rate, setting.seed)
        return subject.with_net(net, pack_weights)

    def ensures(self, before: Subject, after: Subject, setting: Setting) -> None:
        """Every rounded weight is one in the exported graph."""
        ensure_exported(self.label, after, LowBit, setting)


def ensure_exported(label: str, after: Subject, kind: type[nn.Module], setting: Setting) -> None:
    """Raises PassError when a weight that a layer of this kind rounds is not found rounded in the exported graph."""
    net = net_of(after, label)
    layers = sum(isinstance(module, kind) for module in net.modules())
    found = len(quantised(exported(net, setting.samples.test_x)))
    if found < layers:
        raise PassError(f"{label}: only {found} of {layers} weights are still rounded once the net is exported")
