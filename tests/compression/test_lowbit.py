# ruff: noqa: E402 - nothing here can be imported without torch
"""Weights and activations of a few bits: the gradients, the levels, and the bits they are stored in."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.errors import PassError

torch = pytest.importorskip("torch")
from edgemux.compression import gauge, profile
from edgemux.compression.pass_contract import CLASSES, PassContract
from edgemux.compression.passes import Pass, Subject
from edgemux.compression.quantize.bits import bits_for, pack, unpack
from edgemux.compression.quantize.lowbit import LearnedStep, LowBit, Lowbit, Rounding, limits, lowered
from edgemux.compression.quantize.packed import pack_weights, packed_bytes, quantised
from edgemux.compression.quantize.swap import layers_used
from edgemux.compression.samples import logits_of
from edgemux.compression.structure import same_weights
from edgemux.compression.to_onnx import exported

MADE = PassContract()


@pytest.fixture(autouse=True)
def one_thread(torch: Any) -> None:
    """The fixture of the folder keeps torch on one thread."""


def mostly_alike(answers: np.ndarray, wanted: np.ndarray) -> None:
    """A value in the middle of two levels may be rounded either way: one input in ten may differ, the others not."""
    assert np.quantile(np.abs(answers - wanted).max(axis=1), 0.9) < 1e-3


class TestLowbit(PassContract):
    def make(self) -> Pass:
        return Lowbit(w=4, a=4)

    def compare(self, answers: np.ndarray, wanted: np.ndarray) -> None:
        mostly_alike(answers, wanted)


class TestLowbitWithMaxScaling(TestLowbit):
    def make(self) -> Pass:
        return Lowbit(w=2, a=2, method="max")


class TestLowbitOfWeightsOnly(PassContract):
    """No activation is rounded, so none can be rounded the other way: the usual tolerance holds."""

    def make(self) -> Pass:
        return Lowbit(w=3, a=32)


def lsq(x: Any, step: Any, low: int, high: int, scale: float) -> Any:
    return LearnedStep.apply(x, step, low, high, scale)


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (4, True), (2, False), (4, False)])
def test_the_gradient_of_the_step_is_that_of_the_paper(bits: int, signed: bool) -> None:
    """Equation 3, value by value; equation 5 to the input."""
    low, high = limits(bits, signed)
    scale = 0.25
    for value in np.linspace(1.7 * low - 1.3, 1.7 * high + 1.1, 57):
        x = torch.tensor([0.3 * float(value)], requires_grad=True)
        step = torch.tensor(0.3, requires_grad=True)
        lsq(x, step, low, high, scale).backward(torch.tensor([2.0]))
        ratio = float(x.detach() / 0.3)
        inside = low <= ratio <= high
        slope = round(ratio) - ratio if inside else (low if ratio < low else high)
        assert float(step.grad) == pytest.approx(2.0 * scale * slope, abs=1e-4)
        assert float(x.grad) == (2.0 if inside else 0.0)


def test_the_gradient_of_the_step_is_the_slope_of_the_rounded_values_where_nothing_changes_its_level() -> None:
    """With the ratios x / step held, the output grows with the step as the level does; the rest is straight through.

    So gradient to the step + sum of gradient to x times the ratio = the slope of step * level, by finite difference.
    """
    x = (torch.randn(400, generator=torch.Generator().manual_seed(1)) * 0.7).requires_grad_()
    step = torch.tensor(0.21, requires_grad=True)
    low, high = limits(3, True)
    lsq(x, step, low, high, 1.0).sum().backward()
    ratio = (x / step).detach()
    inside = (ratio >= low) & (ratio <= high)

    def total(size: float) -> float:
        return float((ratio.clamp(low, high).round() * size).double().sum())

    slope = (total(0.211) - total(0.209)) / 0.002
    assert float(step.grad + (x.grad * ratio)[inside].sum()) == pytest.approx(slope, abs=1e-2)


def test_steps_start_and_are_scaled_as_in_the_paper() -> None:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    rounding = Rounding(4, weight, "lsq", weight=True)
    assert float(rounding.step.detach()) == pytest.approx(2.0 * float(weight.abs().mean()) / math.sqrt(7))
    assert rounding.scale == pytest.approx(1.0 / math.sqrt(30 * 7))
    inputs = Rounding(4, weight.abs(), "lsq", weight=False)
    assert (inputs.low, inputs.high) == (0, 15)
    assert inputs.scale == pytest.approx(1.0 / math.sqrt(5 * 15))


def test_max_scaling_puts_the_largest_weight_on_the_last_level() -> None:
    weight = torch.tensor([[0.5, -2.0, 0.1]])
    rounding = Rounding(3, weight, "max", weight=True)
    assert rounding(weight).tolist() == [[pytest.approx(2 / 3), -2.0, 0.0]]
    assert not rounding.learned
    rounding.follow(2.0 * weight)
    assert float(rounding.step) == pytest.approx(4.0 / 3.0)


@pytest.mark.parametrize("method", ["lsq", "max"])
def test_training_and_evaluation_round_alike(method: Any) -> None:
    layer = torch.nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="circular")
    x = torch.rand(5, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    rounded = LowBit(layer, 3, 3, x, method)
    trained = rounded.train()(x).detach()
    assert torch.allclose(rounded.eval()(x), trained, atol=1e-5)
    assert not torch.allclose(trained, layer(x), atol=1e-3)


def test_the_first_and_the_last_layer_have_8_bits() -> None:
    net = lowered(MADE.net(), MADE.samples().train_x, 3, 2, "lsq")
    found = [(m.of_weight.high, m.of_input.high) for m in net.modules() if isinstance(m, LowBit)]
    assert found[0] == found[-1] == (127, 255)
    assert set(found[1:-1]) == {(3, 3)}


def test_layers_come_in_the_order_of_use_and_unused_ones_not_at_all() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.unused, self.first = (torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Any) -> Any:
            return self.last(self.first(x))

    assert [item.name for item in layers_used(Odd(), torch.ones(2, 4))] == ["first", "last"]


def test_a_net_without_inner_layers_or_that_reads_weights_itself_is_refused() -> None:
    class Reads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Any) -> Any:
            return self.c(self.b(self.a(x)) * self.b.weight[0])

    x = torch.rand(4, 4)
    with pytest.raises(PassError, match="lowbit: the net reaches into its layers"):
        lowered(Reads(), x, 4, 4, "lsq")
    with pytest.raises(PassError, match=r"the net has no other \('0', '1'\)"):
        lowered(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)), x, 4, 4, "lsq")
    setting = MADE.setting(MADE.net())
    with pytest.raises(PassError, match="not 9"):
        Lowbit(a=9).requires(Subject(net=MADE.net()), setting)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_packed_weights_answer_the_same_bits_in_onnx_runtime_and_take_as_many_as_said(bits: int) -> None:
    """A linear layer on sequences exports as another operator, with its weight the other way round."""
    torch.manual_seed(4)
    linear = torch.nn.Linear
    net = torch.nn.Sequential(linear(6, 32), linear(32, 33), linear(33, 10), torch.nn.Flatten(), linear(50, 3))
    x = torch.randn(20, 5, 6)
    rounded = lowered(net, x, bits, 4, "max").eval()
    graph = exported(rounded, x)
    packed = pack_weights(graph)
    assert len(quantised(graph)) == 4
    assert not quantised(packed)
    before, after = (gauge.answers(gauge.loaded(item), x.numpy()) for item in (graph, packed))
    assert np.array_equal(before, after)
    assert np.quantile(np.abs(after - logits_of(rounded, x).numpy()).max(1), 0.9) < 1e-3
    # The second and third layer; the first (192 weights) and the last (150) are too small to gain.
    assert packed_bytes(packed) == bits * (math.ceil(32 * 33 / 8) + math.ceil(33 * 10 / 8))
    # Weights and biases, whatever they are stored in, and the step sizes of the inputs not.
    assert profile.parameters(packed) == sum(p.numel() for p in net.parameters())
    assert profile.macs(packed) == profile.macs(exported(net, x))
    assert len(packed.SerializeToString()) < len(graph.SerializeToString())
    assert {node.op_type for node in packed.graph.node} <= {
        "BitShift", "Cast", "Reshape", "Mul", "ReduceSum", "Slice", "Add", "Div", "Clip", "Round", "MatMul", "Gemm",
        "Flatten", "Transpose", "Constant",
    }  # fmt: skip


def test_stores_leave_other_graphs_as_they_answer() -> None:
    graph = exported(MADE.net(), MADE.samples().test_x)
    x = MADE.samples().test_x.numpy()
    before, after = (gauge.answers(gauge.loaded(item), x) for item in (graph, pack_weights(graph)))
    assert np.array_equal(before, after)


def test_what_trains_afterwards_trains_the_rounded_net_and_is_stored_as_it_ends() -> None:
    net = MADE.net()
    setting = MADE.setting(net)
    after = Lowbit(w=2, a=32).apply(Subject(net=net), setting)
    moved = copy.deepcopy(after.net).train()
    with torch.no_grad():
        for module in moved.modules():
            if isinstance(module, LowBit):
                module.layer.weight.neg_()
    moved.eval()
    assert not same_weights(moved, after.net)
    graph = pack_weights(exported(moved, setting.samples.test_x))
    x = setting.samples.test_x
    assert packed_bytes(graph) > 0
    assert np.allclose(gauge.answers(gauge.loaded(graph), x.numpy()), logits_of(moved, x), atol=1e-4)
    assert logits_of(moved, x).shape[1] == CLASSES


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_numbers_come_back_from_their_bits(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    planes = pack(values, bits)
    assert planes.shape == (bits, math.ceil(count / 8))
    assert np.array_equal(unpack(planes, (count,)), values)


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="up to 4 do not fit 2 bits"):
        pack(np.array([1, 4], np.uint8), 2)
    assert [bits_for(value) for value in (0, 1, 2, 3, 255)] == [1, 1, 2, 2, 8]
