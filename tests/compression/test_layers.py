"""Layer pruning: which blocks can go, which one goes first, and what is left."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.errors import PassError

pytest.importorskip("torch")


@pytest.fixture
def nets(torch: Any) -> Any:
    """Classes of nets, kept together because they need torch to be defined."""
    nn = torch.nn

    class Block(nn.Module):
        """x + f(x), with f named so that it has equal shapes itself."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.f = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

        def forward(self, x: Any) -> Any:
            return x + self.f(x)

    class Stage(nn.Module):
        """Blocks one after another, in a module of its own class."""

        def __init__(self, width: int, depth: int) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Block(width) for _ in range(depth))

        def forward(self, x: Any) -> Any:
            for part in self.parts:
                x = part(x)
            return x

    class Net(nn.Module):
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, width, 3, padding=1)
            self.low = nn.Sequential(Block(width), Block(width))
            self.down = nn.Conv2d(width, 2 * width, 3, stride=2)
            self.high = Stage(2 * width, 2)
            self.head = nn.Linear(2 * width, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.high(self.down(self.low(self.stem(x)))).mean(dim=(2, 3)))

    class Kinds:
        block, net = Block, Net

    return Kinds


@pytest.fixture
def samples(torch: Any) -> Any:
    """60 inputs [1, 8, 8] of three classes: which third of the picture is bright."""
    from edgemux.compression.samples import Samples

    x = 0.3 * torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.arange(80) % 3
    for at in range(80):
        x[at, 0, 3 * y[at] : 3 * y[at] + 2] += 1.0
    return Samples(x[:60], y[:60], x[60:], y[60:])


def test_blocks_are_found_in_chains_and_not_inside_shortcuts(torch: Any, nets: Any, samples: Any) -> None:
    from edgemux.compression.prune.blocks import identity_blocks

    assert identity_blocks(nets.net(), samples.train_x) == ["low.0", "low.1", "high.parts.0", "high.parts.1"]


def test_shapes_decide_what_is_a_block(torch: Any, samples: Any) -> None:
    from edgemux.compression.prune.blocks import identity_blocks

    nn = torch.nn
    twice = nn.Linear(8, 8)
    net = nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1),  # 0: a layer of equal shapes
        nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 1, 1)),  # 1: only equal as a whole
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()),  # 2: one layer with what belongs to it
        nn.BatchNorm2d(1),  # no work to save
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(64, 8),  # another shape
        twice,
        twice,  # runs twice
        nn.Linear(8, 3),
    )
    assert identity_blocks(net, samples.train_x) == ["0", "1", "2"]


def test_a_shortcut_added_in_place_is_no_chain(torch: Any, samples: Any) -> None:
    from edgemux.compression.prune.blocks import identity_blocks

    nn = torch.nn

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Any) -> Any:
            y = self.two(torch.relu(self.one(x)))
            y += x
            return y

    net = nn.Sequential(InPlace(), nn.Flatten(), nn.Linear(64, 3))
    assert identity_blocks(net, samples.train_x) == ["0"]


def test_probes_see_channels_wherever_they_are(torch: Any) -> None:
    from edgemux.compression.prune.blocks import pooled

    nn = torch.nn
    x = torch.randn(5, 6, 8)
    assert torch.allclose(
        pooled(nn.Conv1d(6, 6, 1), x), torch.stack([x[..., :4].mean(2), x[..., 4:].mean(2)], 2).flatten(1)
    )
    assert torch.allclose(pooled(nn.Linear(8, 8), x), torch.stack([x[:, :3].mean(1), x[:, 3:].mean(1)], 2).flatten(1))
    assert pooled(nn.Conv2d(3, 3, 1), torch.randn(5, 3, 9, 1)).shape == (5, 6)
    assert torch.equal(pooled(nn.Linear(6, 6), x[..., 0]), x[..., 0])


def test_wide_features_are_probed_like_narrow_ones(torch: Any) -> None:
    from edgemux.compression.prune.blocks import probe_accuracy

    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(6))
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    narrow = probe_accuracy(x, y)
    assert narrow > 0.8
    # Copies of the same columns: more of them than inputs, the same plane apart from the ridge.
    assert probe_accuracy(x.repeat(1, 20), y) == pytest.approx(narrow, abs=0.05)


@pytest.mark.parametrize("probe", ["linear", "cka"])
def test_the_block_that_does_nothing_goes_first(torch: Any, nets: Any, samples: Any, probe: Any) -> None:
    from edgemux.compression.prune.layers import without_blocks
    from edgemux.compression.samples import logits_of
    from edgemux.compression.structure import rebuilt, same_weights, structure_of

    torch.manual_seed(4)
    net = nets.net().eval()
    with torch.no_grad():
        for name in ("low.0", "low.1", "high.parts.0", "high.parts.1"):
            net.get_submodule(name).f[0].weight.mul_(3.0)
        idle = net.get_submodule("high.parts.0").f[1]
        idle.weight.mul_(1e-4)
        idle.bias.zero_()
    before = copy.deepcopy(net)
    x, y = samples.train_x, samples.train_y
    made, gone = without_blocks(net, 1, x, y, probe)
    assert same_weights(net, before)
    if probe == "cka":
        assert gone == ["high.parts.0"]
        again = rebuilt(nets.net(), structure_of(made), made.state_dict())
        assert torch.equal(logits_of(again, x), logits_of(made, x))
    else:
        from edgemux.compression.prune.blocks import importances

        does = importances(net, ["high.parts.0"], x, y, probe)
        assert does["high.parts.0"] == pytest.approx(0.0, abs=1e-6)


def test_a_linear_probe_sees_what_a_block_adds(torch: Any) -> None:
    from edgemux.compression.prune.blocks import importances

    class Square(torch.nn.Module):
        """Separates by length what no line separates; the layer makes it one that does work."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            return x.square()

    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(2))
    y = (x.square().sum(dim=1) > 1.4).long()
    net = torch.nn.Sequential(Square(), torch.nn.Identity())
    does = importances(net, ["0", "1"], x, y, "linear")
    assert does["0"] > 0.2
    assert does["1"] == 0.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10.0))
def test_cka_ignores_rotation_scale_and_shift(seed: int, scale: float) -> None:
    import torch

    from edgemux.compression.prune.blocks import cka

    random = np.random.default_rng(seed)
    x = random.normal(size=(12, 5))
    turned = scale * x @ np.linalg.qr(random.normal(size=(5, 5)))[0] + 3.0
    assert cka(torch.from_numpy(x), torch.from_numpy(turned)) == pytest.approx(1.0)
    other = torch.from_numpy(random.normal(size=(12, 3)))
    alike = cka(torch.from_numpy(x), other)
    assert 0.0 <= alike < 1.0
    assert alike == pytest.approx(cka(other, torch.from_numpy(x)))
    assert cka(torch.from_numpy(x), torch.ones(12, 3).double()) == 0.0


@pytest.mark.parametrize("distill", [True, False])
def test_layers_takes_its_share_exports_and_reloads(torch: Any, nets: Any, samples: Any, distill: bool) -> None:
    from edgemux.compression.gauge import answers, loaded
    from edgemux.compression.passes import Setting, Subject
    from edgemux.compression.prune.layers import Layers
    from edgemux.compression.samples import logits_of
    from edgemux.compression.structure import rebuilt, same_weights, structure_of
    from edgemux.compression.to_onnx import exported

    torch.manual_seed(4)
    net = nets.net().eval()
    before = copy.deepcopy(net)
    what, subject = Layers(ratio=0.5, distill=distill, epochs=1), Subject(net=net)
    setting = Setting(samples, copy.deepcopy(net) if distill else None)
    what.requires(subject, setting)
    made = what.apply(subject, setting).net
    assert made is not None
    assert same_weights(net, before)
    identities = structure_of(made).identities
    assert len(identities) == 2
    x = samples.test_x
    assert np.allclose(answers(loaded(exported(made, x)), x.numpy()), logits_of(made, x).numpy(), atol=1e-5)
    again = rebuilt(nets.net(), structure_of(made), made.state_dict())
    assert torch.equal(logits_of(again, x), logits_of(made, x))


def test_layers_says_what_it_lacks(torch: Any, nets: Any, samples: Any) -> None:
    from edgemux.compression.passes import Setting, Subject
    from edgemux.compression.prune.layers import Layers, without_blocks

    net = nets.net()
    with pytest.raises(PassError, match="layers: learns from the original"):
        Layers().requires(Subject(net=net), Setting(samples, None))
    with pytest.raises(PassError, match=r"layers: a share of 0\.1 of 4 blocks"):
        Layers(ratio=0.1).requires(Subject(net=net), Setting(samples, net))
    with pytest.raises(PassError, match="layers: 5 blocks are to go, 4 can"):
        without_blocks(net, 5, samples.train_x, samples.train_y, "cka")
