# ruff: noqa: E402 - nothing here can be imported without torch
"""Signs for weights and inputs: gradients, drawn signs, folding, wider nets, and one bit a weight."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from edgemux.multiplexer.errors import PassError

torch = pytest.importorskip("torch")
from edgemux.compression.pass_contract import PassContract
from edgemux.compression.passes import Pass, Subject
from edgemux.compression.quantize.binary import Binarise, Binary, Sign, binarised, sign
from edgemux.compression.quantize.lowbit import LowBit
from edgemux.compression.quantize.packed import packed_bytes
from edgemux.compression.quantize.thresholds import fold
from edgemux.compression.quantize.widen import widened
from edgemux.compression.quantize.xnor import SignMatrix
from edgemux.compression.retrain import recalibrate
from edgemux.compression.samples import logits_of
from edgemux.compression.structure import same_weights
from edgemux.compression.to_onnx import shipped

MADE = PassContract()


@pytest.fixture(autouse=True)
def one_thread(torch: Any) -> None:
    """The fixture of the folder keeps torch on one thread."""


class Signs(PassContract):
    """A sum of signs that is a threshold may come out on either side: one input in ten may differ, the others not."""

    def compare(self, answers: np.ndarray, wanted: np.ndarray) -> None:
        assert np.quantile(np.abs(answers - wanted).max(axis=1), 0.9) < 1e-3


class TestBinarise(Signs):
    def make(self) -> Pass:
        return Binarise(epochs=1.0)


class TestBinariseWithDrawnSigns(Signs):
    def make(self) -> Pass:
        return Binarise(mode="stochastic", epochs=1.0)


class TestBinariseWiderNet(Signs):
    def make(self) -> Pass:
        return Binarise(epochs=1.0, widen=2)


def settled(layer: Any, shape: tuple[int, ...], mode: Any = "deterministic") -> Any:
    """A binary layer with norms that do something, some of them falling, one of them flat."""
    torch.manual_seed(6)
    binary = Binary(layer, torch.randn(64, *shape), mode).eval()
    for norm in (binary.before, binary.after):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.data.normal_()
        norm.bias.data.normal_()
    binary.before.weight.data[0] = 0.0
    return binary


def test_gradients_go_straight_through_signs_within_one() -> None:
    x = torch.tensor([-1.5, -1.0, -0.2, 0.0, 0.7, 1.01], requires_grad=True)
    y = Sign.apply(x, False)
    y.backward(torch.arange(1.0, 7.0))
    assert y.tolist() == [-1, -1, -1, 1, 1, 1]
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 0]


def test_drawn_signs_are_positive_as_often_as_the_hard_sigmoid_says() -> None:
    torch.manual_seed(7)
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.5]).repeat(20000, 1)
    share = (Sign.apply(x, True) > 0).float().mean(0)
    assert torch.allclose(share, torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0]), atol=0.02)


def test_signs_are_drawn_in_training_only() -> None:
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(8))
    layer = Binary(torch.nn.Linear(12, 5), x, "stochastic")
    for norm in (layer.before, layer.after):
        norm.momentum = 0.0
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_weights_stay_within_one_and_alpha_is_their_mean_magnitude() -> None:
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(9))
    layer = Binary(torch.nn.Linear(12, 5), x, "deterministic").train()
    with torch.no_grad():
        layer.layer.weight.mul_(100.0)
    layer(x)
    assert float(layer.layer.weight.detach().abs().max()) == 1.0
    with torch.no_grad():
        layer.layer.weight.mul_(0.5)
    layer.eval()
    assert torch.allclose(layer.alpha.flatten(), layer.layer.weight.abs().mean(1))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: torch.nn.Linear(10, 7), (10,)),
        (lambda: torch.nn.Linear(10, 7, bias=False), (3, 10)),
        (lambda: torch.nn.Conv2d(6, 8, 3, padding=1, groups=2), (6, 5, 5)),
        (lambda: torch.nn.Conv1d(6, 8, 3, stride=2, bias=False), (6, 9)),
    ],
)
def test_folding_the_norms_changes_nothing(layer: Any, shape: tuple[int, ...]) -> None:
    binary = settled(layer(), shape)
    x = torch.randn(50, *shape)
    axis = -1 if isinstance(binary.layer, torch.nn.Linear) else 1
    with torch.no_grad():

        def normed(norm: Any, value: Any) -> Any:
            moved = value.movedim(axis, -1)
            return norm(moved.reshape(-1, moved.shape[-1])).reshape(moved.shape).movedim(-1, axis)

        norms = [torch.nn.BatchNorm1d(n.num_features) for n in (binary.before, binary.after)]
        for norm, old in zip(norms, (binary.before, binary.after), strict=True):
            norm.load_state_dict(old.state_dict())
            norm.eval()
        plain = copy.deepcopy(binary.layer)
        plain.weight.copy_(sign(plain.weight) * binary.alpha)
        wanted = normed(norms[1], plain(sign(normed(norms[0], x))))
        assert torch.allclose(binary(x), wanted, atol=1e-4)


def test_a_layer_is_its_kernel_its_thresholds_and_a_line() -> None:
    """What a runtime without float products would do: bits in, whole numbers out."""
    binary = settled(torch.nn.Linear(70, 9), (70,))
    x = torch.randn(30, 70)
    threshold, rising = (part.detach().numpy() for part in binary.thresholds())
    scale, shift = (part.detach().numpy() for part in binary.scale_and_shift())
    matrix = SignMatrix(binary.layer.weight.detach().numpy() * rising)
    products = matrix.times(np.where(x.numpy() >= threshold, 1.0, -1.0).astype(np.float32))
    assert np.allclose(products * scale + shift, binary(x).detach().numpy(), atol=1e-4)


def test_norm_and_sign_fold_into_whole_thresholds_exactly() -> None:
    """For every product there can be, rising, falling and flat channels alike, down to the norm's own rounding."""
    torch.manual_seed(10)
    reach, channels = 300, 64
    norm = torch.nn.BatchNorm1d(channels).eval()
    norm.running_mean.normal_(0.0, 30.0)
    norm.running_var.uniform_(1.0, 400.0)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    norm.weight.data[:4] = 0.0
    norm.weight.data[4], norm.bias.data[4] = 1.0, 100.0  # always positive
    norm.weight.data[5:9], norm.running_mean[5:9] = torch.tensor([1.0, -1.0, 1.0, -1.0]), 7.0
    norm.bias.data[5:9] = 0.0  # turns over exactly at a whole number

    def positive(products: Any) -> Any:
        with torch.no_grad():
            return (norm(torch.from_numpy(products).float()[None])[0] >= 0).numpy()

    thresholds = fold(positive, channels, reach)
    every = np.repeat(np.arange(-reach, reach + 1, dtype=np.int32)[:, None], channels, 1)
    wanted = np.stack([positive(row) for row in every])
    assert np.array_equal(thresholds.positive(every), wanted)
    assert np.array_equal(thresholds.signs(every) > 0, wanted)


def test_a_net_trained_with_drawn_signs_has_the_batch_statistics_of_those_it_answers_from() -> None:
    net = MADE.net()
    setting = MADE.setting(net)
    after = Binarise(mode="stochastic", epochs=1.0).apply(Subject(net=net), setting).net
    again = copy.deepcopy(after)
    recalibrate(again, setting.samples.train_x)
    assert same_weights(after, again)


def test_the_first_and_the_last_layer_stay_real_at_8_bits() -> None:
    net = binarised(MADE.net(), MADE.samples().train_x, "deterministic")
    kinds = [type(module) for module in net.modules() if isinstance(module, (Binary, LowBit))]
    assert kinds == [LowBit, Binary, Binary, Binary, LowBit]
    edges = [module for module in net.modules() if isinstance(module, LowBit)]
    assert all(edge.of_weight.high == 127 and edge.of_input is None for edge in edges)


def test_a_binary_weight_takes_one_bit() -> None:
    net = MADE.net()
    setting = MADE.setting(net)
    after = Binarise(epochs=1.0).apply(Subject(net=net), setting)
    graph = shipped(after, setting.samples)
    # Two convolutions of 8 to 8 channels; the linear layers are too small to gain.
    assert packed_bytes(graph) == 2 * 8 * 8 * 9 // 8


@pytest.mark.parametrize("factor", [2, 3])
def test_a_wider_net_answers_as_before_and_its_copies_differ(factor: int) -> None:
    net, x = MADE.net(), MADE.samples().test_x
    net[1].running_mean.normal_()
    wide = widened(net, x[:1], factor, noise=0.0)
    assert [wide[at].out_channels for at in (0, 4, 6)] == [8 * factor] * 3
    assert (wide[1].num_features, wide[10].out_features, wide[12].out_features) == (8 * factor, 16 * factor, 3)
    assert torch.allclose(logits_of(wide, x), logits_of(net, x), atol=1e-5)
    noisy = widened(net, x[:1], factor)[4].weight
    assert not torch.equal(noisy[:8], noisy[8:16])


def test_channels_that_are_joined_cannot_be_widened() -> None:
    class Joined(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    with pytest.raises(PassError, match="widen: 'c' reads channels joined with others"):
        widened(Joined(), torch.rand(1, 4), 2)
