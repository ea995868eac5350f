"""Channel pruning: what is chosen, what is refitted, what is removed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.errors import PassError

pytest.importorskip("torch")


@pytest.fixture
def net(torch: Any) -> Any:
    """A residual net with a depthwise convolution, batch norm, and a linear layer behind a flattened map."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
            self.n = nn.BatchNorm2d(8)
            self.b = nn.Conv2d(8, 8, 1)

        def forward(self, x: Any) -> Any:
            return x + self.b(torch.relu(self.n(self.a(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(2, 8, 3, padding=1)
            self.block = Block()
            self.out = nn.Conv2d(8, 6, 3, stride=2)
            self.fc = nn.Linear(6 * 3 * 3, 12)
            self.head = nn.Linear(12, 4)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.out(torch.relu(self.block(torch.relu(self.stem(x))))))
            return self.head(torch.relu(self.fc(x.flatten(1))))

    torch.manual_seed(3)
    return Net().eval()


@pytest.fixture
def x(torch: Any) -> Any:
    """Sixty inputs, float32 [60, 2, 8, 8]."""
    return torch.randn(60, 2, 8, 8, generator=torch.Generator().manual_seed(4))


def statistics(width: int, seed: int) -> tuple[Any, Any]:
    z = np.random.default_rng(seed).normal(size=(50, width, 3))
    y = z.sum(axis=1)
    return np.einsum("sio,sjo->ij", z, z), np.einsum("sio,so->i", z, y)


def test_heads_are_found_and_shortcuts_couple_layers(net: Any, x: Any) -> None:
    from edgemux.compression.prune.remove import channel_groups

    groups = {frozenset(group.layers): group for group in channel_groups(net, x[:1])}
    assert frozenset({"head"}) not in groups
    shared = groups[frozenset({"stem", "block.a", "block.b"})]
    assert {consumer.name for consumer in shared.consumers} == {"block.b", "out"}
    flattened = groups[frozenset({"out"})].consumers[0]
    assert flattened.channels.tolist() == np.repeat(np.arange(6), 9).tolist()


@pytest.mark.parametrize("criterion", ["lasso", "thinet", "l1", "random"])
@pytest.mark.parametrize("refit", [True, False])
def test_half_of_the_channels_go_and_the_net_given_stays(net: Any, x: Any, criterion: Any, refit: bool) -> None:
    import copy

    from edgemux.compression.prune.channels import pruned
    from edgemux.compression.structure import same_weights

    before = copy.deepcopy(net)
    thin = pruned(net, x, criterion, 0.5, round_to=1, refit=refit)
    assert thin.stem.out_channels == thin.block.a.groups == 4
    assert (thin.out.out_channels, thin.fc.in_features, thin.fc.out_features) == (3, 27, 6)
    assert thin(x).shape == (60, 4)
    assert same_weights(before, net)


def test_removing_channels_that_nobody_reads_changes_no_answer(net: Any, x: Any, torch: Any) -> None:
    from edgemux.compression.prune.remove import remove_channels

    with torch.no_grad():
        net.out.weight[:, [1, 4]] = 0.0
        net.block.b.weight[:, [1, 4]] = 0.0
    thin = remove_channels(net, x[:1], {"stem": [0, 2, 3, 5, 6, 7]})
    with torch.inference_mode():
        assert torch.allclose(net(x), thin(x), atol=1e-6)


def test_channels_that_carry_nothing_are_chosen_first_by_every_criterion_but_chance(
    net: Any, x: Any, torch: Any
) -> None:
    from edgemux.compression.prune.channels import pruned

    dead = [0, 3, 5]
    with torch.no_grad():
        net.out.weight[dead] = 0.0
        net.out.bias[dead] = 0.0
    for criterion in ("lasso", "thinet", "l1"):
        thin = pruned(net, x, criterion, 0.5, round_to=1)
        kept = {tuple(row) for row in thin.out.weight.detach().flatten(1).abs().sum(1, keepdim=True).tolist()}
        assert len(kept) == 3 and (0.0,) not in kept


@pytest.mark.parametrize("criterion", ["lasso", "thinet"])
def test_least_squares_recovers_outputs_that_the_kept_channels_can_make(criterion: Any, torch: Any) -> None:
    """Channel 2 is a copy of channel 0 and channel 3 of channel 1: two of them suffice, with other weights."""
    from edgemux.compression.prune.channels import pruned

    first = torch.nn.Conv2d(1, 4, 3)
    with torch.no_grad():
        first.weight[2:] = first.weight[:2]
        first.bias[2:] = first.bias[:2]
    net = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    x = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    thin = pruned(net, x, criterion, 0.25, round_to=1)
    assert thin[0].out_channels == 3
    cut = pruned(net, x, criterion, 0.25, round_to=1, refit=False)
    with torch.inference_mode():
        assert torch.allclose(thin(x), net(x), atol=5e-3)
        assert not torch.allclose(cut(x), net(x), atol=5e-3)


@given(st.integers(2, 12), st.integers(0, 10_000), st.data())
@settings(max_examples=40, deadline=None)
def test_lasso_and_thinet_keep_exactly_so_many(width: int, seed: int, data: Any) -> None:
    from edgemux.compression.prune.criteria import lasso, thinet

    gram, target = statistics(width, seed)
    keep = data.draw(st.integers(1, width))
    for chosen in (lasso(gram, target, keep), thinet(gram, keep)):
        assert len(chosen) == keep
        assert sorted(set(chosen.tolist())) == chosen.tolist()


@given(st.integers(2, 7), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_thinet_drops_first_the_channel_whose_loss_is_least(width: int, seed: int) -> None:
    from edgemux.compression.prune.criteria import thinet

    gram, _ = statistics(width, seed)
    assert int(np.argmin(np.diag(gram))) not in thinet(gram, width - 1)


@given(st.integers(2, 8), st.integers(0, 10_000), st.floats(0.0, 50.0))
@settings(max_examples=40, deadline=None)
def test_coordinate_descent_ends_where_the_conditions_of_lasso_hold(width: int, seed: int, penalty: float) -> None:
    from edgemux.compression.prune.criteria import descended

    gram, target = statistics(width, seed)
    beta = descended(gram, target, penalty, np.zeros(width))
    slope = target - gram @ beta
    tolerance = 1e-3 * float(np.abs(target).max())
    assert (np.abs(slope) <= penalty + tolerance).all()
    assert np.abs(slope - penalty * np.sign(beta))[beta != 0.0].max(initial=0.0) <= tolerance


@given(st.integers(1, 300), st.floats(0.01, 0.99), st.integers(0, 16))
def test_a_width_is_a_multiple_where_that_fits_and_never_none(width: int, ratio: float, step: int) -> None:
    from edgemux.compression.prune.criteria import kept_width

    kept = kept_width(width, ratio, step)
    assert 1 <= kept <= width
    assert step in (0, 1) or step >= width or kept % step == 0 or kept == width


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"nothing": [0]}, "no convolution"),
        ({"stem": []}, "channels 0 to 7"),
        ({"stem": [3, 1]}, "channels 0 to 7"),
        ({"stem": [8]}, "channels 0 to 7"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_name(net: Any, x: Any, plan: Any, message: str) -> None:
    from edgemux.compression.prune.remove import remove_channels

    with pytest.raises(PassError, match=message):
        remove_channels(net, x[:1], plan)


def test_recurrent_layers_are_referred_to_the_pass_that_can_take_their_units(torch: Any) -> None:
    from edgemux.compression.prune.remove import channel_groups

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = torch.nn.GRU(3, 5, batch_first=True)
            self.head = torch.nn.Linear(5, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.gru(x)[0][:, -1])

    with pytest.raises(PassError, match="units"):
        channel_groups(Net(), torch.zeros(1, 4, 3))
