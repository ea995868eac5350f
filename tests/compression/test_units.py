"""Taking hidden units out of LSTM and GRU layers, and int8 with ranges taken at run time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.errors import PassError

FEATURES, HIDDEN, STEPS = 5, 8, 6
READ = ["last", "mean", "flat", "max", "state", "joined", "attended", "normed", "convolved", "stacked"]
REFUSED = {
    "layer norm": "LayerNorm 'layer_norm' reads hidden units of 'rnn' and cannot lose inputs",
    "softmax": "what 'fc' reads mixes hidden units",
    "outputs": "reach the outputs without a layer in between",
    "gated": "does not run with fewer hidden units",
    "fed back": "GRU 'rnn' reads hidden units of 'rnn'",
}


def net_that(reads: str, kind: str = "GRU", layers: int = 1, two_ways: bool = False) -> Any:
    """A net with one recurrent layer whose units are read in this way; random weights, evaluation mode."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    width = HIDDEN * (2 if two_ways else 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = getattr(nn, kind)(FEATURES, HIDDEN, layers, batch_first=True, bidirectional=two_ways)
            inputs = {"flat": width * STEPS, "joined": width + 2, "state": HIDDEN}.get(reads, width)
            self.fc = nn.Linear(inputs, 3)
            self.norm, self.layer_norm = nn.BatchNorm1d(width), nn.LayerNorm(width)
            self.scores, self.conv = nn.Linear(width, 1), nn.Conv1d(width, width, 3)
            self.second = nn.LSTM(width, width, batch_first=True)

        def forward(self, x: Any) -> Any:
            y, state = self.rnn(x)
            last = y[:, -1]
            ways = {
                "last": lambda: last,
                "mean": lambda: torch.relu(y.mean(1)),
                "flat": lambda: y.flatten(1),
                "max": lambda: y.max(1).values,
                "state": lambda: (state[0] if isinstance(state, tuple) else state)[-1],
                "joined": lambda: torch.cat([last, x[:, 0, :2]], 1),
                "attended": lambda: (torch.softmax(self.scores(y), 1) * y).sum(1),
                "normed": lambda: self.norm(last),
                "convolved": lambda: self.conv(y.transpose(1, 2)).mean(2),
                "stacked": lambda: self.second(y)[0][:, -1],
                "layer norm": lambda: self.layer_norm(last),
                "softmax": lambda: torch.softmax(last, 1),
                "gated": lambda: last * torch.sigmoid(self.second(y)[0][:, -1]),
                "fed back": lambda: self.rnn(torch.relu(y)[:, :, :FEATURES])[0][:, -1],
            }
            return last if reads == "outputs" else self.fc(ways[reads]())

    torch.manual_seed(3)
    return Net().eval()


def some_inputs(torch: Any, count: int = 4) -> Any:
    return torch.randn(count, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))


def samples_of(torch: Any, shape: tuple[int, ...], count: int = 64) -> Any:
    from edgemux.compression.samples import Samples

    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn((count, *shape), generator=generator), torch.randint(3, (count,), generator=generator)
    return Samples(x, y, x[:20], y[:20])


def some_kept(layers: int, directions: int, seed: int, count: int = 3) -> Any:
    keep = np.zeros((layers, directions, HIDDEN), np.bool_)
    for place in np.ndindex(layers, directions):
        keep[place][np.random.default_rng([seed, *place]).permutation(HIDDEN)[:count]] = True
    return keep


def erased(torch: Any, net: Any, keep: Any) -> Any:
    """A copy in which every tensor of the other units is zero, so that they always are zero themselves."""
    import copy

    from edgemux.compression.prune.units import _suffixes

    result = copy.deepcopy(net)
    with torch.no_grad():
        for at, suffix in enumerate(_suffixes(result.rnn)):
            for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                tensor = getattr(result.rnn, key + suffix)
                tensor.view(-1, HIDDEN, *tensor.shape[1:])[:, torch.from_numpy(~keep.reshape(-1, HIDDEN)[at])] = 0.0
    return result


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("reads", READ)
def test_units_that_are_exactly_zero_can_be_taken_out_without_any_change(torch: Any, kind: str, reads: str) -> None:
    from edgemux.compression.prune.readers import readers
    from edgemux.compression.prune.units import checked

    x, keep = some_inputs(torch), some_kept(2, 2, 5)
    net = net_that(reads, kind, layers=2, two_ways=True)
    zeroed = erased(torch, net, keep)
    with torch.no_grad():
        thin = checked(zeroed, "rnn", keep, readers(net, "rnn", x), x)
        assert torch.allclose(thin(x), zeroed(x), atol=1e-5)
    assert thin.rnn.hidden_size == 3
    assert thin.rnn.weight_hh_l1_reverse.shape == ((4 if kind == "LSTM" else 3) * 3, 3)
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in net.parameters())


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["LSTM", "GRU"]),
    layers=st.integers(1, 3),
    two_ways=st.booleans(),
    seed=st.integers(0, 999),
    count=st.integers(1, HIDDEN),
)
def test_any_zero_units_of_any_layer_and_direction_can_be_taken_out(
    kind: str, layers: int, two_ways: bool, seed: int, count: int
) -> None:
    torch = pytest.importorskip("torch")
    from edgemux.compression.prune.readers import Reader
    from edgemux.compression.prune.units import without_units

    directions = 2 if two_ways else 1
    keep = some_kept(layers, directions, seed, count)
    net = erased(torch, net_that("last", kind, layers, two_ways), keep)
    reader = Reader("fc", (layers - 1) * directions * HIDDEN + np.arange(directions * HIDDEN))
    x = some_inputs(torch)
    with torch.no_grad():
        assert torch.allclose(without_units(net, "rnn", keep, [reader])(x), net(x), atol=1e-5)


def test_readers_know_which_unit_each_of_their_features_is_made_of(torch: Any) -> None:
    from edgemux.compression.prune.readers import readers

    x = some_inputs(torch)
    (flat,) = readers(net_that("flat", layers=2), "rnn", x)
    assert flat.unit.tolist() == [HIDDEN + unit for _ in range(STEPS) for unit in range(HIDDEN)]
    (joined,) = readers(net_that("joined", two_ways=True), "rnn", x)
    assert joined.unit.tolist() == [*range(2 * HIDDEN), -1, -1]
    (state,) = readers(net_that("state", two_ways=True), "rnn", x)
    assert state.unit.tolist() == list(range(HIDDEN, 2 * HIDDEN))
    assert {reader.name for reader in readers(net_that("attended"), "rnn", x)} == {"scores", "fc"}


@pytest.mark.parametrize("reads", list(REFUSED))
def test_a_net_that_cannot_lose_units_is_refused_with_the_reason(torch: Any, reads: str) -> None:
    from edgemux.compression.prune.readers import readers
    from edgemux.compression.prune.units import checked

    x = some_inputs(torch)
    net = net_that(reads)
    with pytest.raises(PassError, match=REFUSED[reads]):
        checked(net, "rnn", some_kept(1, 1, 0), readers(net, "rnn", x), x)


def test_nets_without_units_and_layers_that_project_are_refused(torch: Any) -> None:
    from edgemux.compression.prune.units import recurrent_layers

    with pytest.raises(PassError, match="no LSTM or GRU"):
        recurrent_layers(torch.nn.Linear(FEATURES, 3), some_inputs(torch))
    with pytest.raises(PassError, match="proj_size"):
        recurrent_layers(torch.nn.Sequential(torch.nn.LSTM(FEATURES, 8, proj_size=4)), some_inputs(torch))


@pytest.mark.parametrize("criterion", ["norm", "contribution"])
def test_units_of_no_weight_are_the_ones_that_go(torch: Any, criterion: Any) -> None:
    from edgemux.compression.prune.readers import readers
    from edgemux.compression.prune.units import silenced, strength

    x, keep = some_inputs(torch), some_kept(2, 1, 7)
    net = net_that("last", "LSTM", layers=2)
    found = readers(net, "rnn", x)
    quiet = erased(torch, silenced(net, "rnn", keep, found), keep)
    values = strength(quiet, "rnn", criterion, found, x)
    assert np.all(values[~keep] == 0.0) and np.all(values[keep] > 0.0)


@pytest.mark.parametrize("two_ways", [False, True])
def test_hidden_energy_of_the_last_layer_is_that_of_its_output(torch: Any, two_ways: bool) -> None:
    from edgemux.compression.prune.units import hidden_energy

    x = some_inputs(torch)
    net = net_that("last", "GRU", layers=2, two_ways=two_ways)
    with torch.no_grad():
        wanted = net.rnn(x)[0].square().mean((0, 1)).numpy()
    assert np.allclose(hidden_energy(net, "rnn", x)[-1].reshape(-1), wanted, rtol=1e-4)


def test_the_pass_leaves_its_net_alone_and_what_it_makes_exports_and_comes_back(torch: Any) -> None:
    from edgemux.compression import gauge
    from edgemux.compression.artifact import weights_file
    from edgemux.compression.passes import Setting, Subject
    from edgemux.compression.prune.units import Units
    from edgemux.compression.structure import rebuilt, same_weights, structure_of
    from edgemux.compression.to_onnx import exported

    samples = samples_of(torch, (STEPS, FEATURES))
    net = net_that("stacked", layers=2, two_ways=True)
    setting = Setting(samples, net)
    what = Units(ratio=0.5, epochs=1)
    what.requires(Subject(net), setting)
    thin = what.apply(Subject(net), setting).net
    assert thin is not None and same_weights(net, net_that("stacked", layers=2, two_ways=True))
    assert thin.rnn.hidden_size == HIDDEN // 2 and thin.second.hidden_size == HIDDEN
    with torch.no_grad():
        wanted = thin(samples.test_x).numpy()
    got = gauge.answers(gauge.loaded(exported(thin, samples.test_x)), samples.test_x.numpy())
    assert np.allclose(got, wanted, atol=1e-5)
    again = rebuilt(net_that("stacked", layers=2, two_ways=True), structure_of(thin), thin.state_dict())
    assert same_weights(again, thin) and weights_file(again) == weights_file(thin)
    with torch.no_grad():
        assert torch.equal(again(samples.test_x), thin(samples.test_x))


def test_a_ratio_that_removes_nothing_is_refused(torch: Any) -> None:
    from edgemux.compression.passes import Setting, Subject
    from edgemux.compression.prune.units import Units

    net = net_that("last")
    with pytest.raises(PassError, match="at this ratio"):
        Units(ratio=0.01, epochs=0).apply(Subject(net), Setting(samples_of(torch, (STEPS, FEATURES)), net))


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_int8_makes_lstm_and_linear_layers_compute_in_integers(torch: Any, per_channel: bool) -> None:
    from edgemux.compression import gauge, profile
    from edgemux.compression.passes import Setting, Subject
    from edgemux.compression.quantize.dynamic import Int8Dynamic
    from edgemux.compression.to_onnx import exported

    samples = samples_of(torch, (STEPS, FEATURES))
    net = net_that("last", "LSTM")
    graph = Int8Dynamic(per_channel).apply(Subject(net), Setting(samples, net, "x86-avx2")).graph
    assert graph is not None
    kinds = [node.op_type for node in graph.graph.node]
    assert "DynamicQuantizeLSTM" in kinds and "MatMulInteger" in kinds and "LSTM" not in kinds
    assert profile.macs(graph) == profile.macs(exported(net, samples.test_x))
    with torch.no_grad():
        wanted = net(samples.test_x).numpy()
    got = gauge.answers(gauge.loaded(graph), samples.test_x.numpy())
    assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()
    with pytest.raises(PassError, match="already"):
        Int8Dynamic().apply(Subject(graph=graph), Setting(samples, net))


def test_dynamic_int8_leaves_gru_in_float32_and_says_so_where_nothing_else_is_left(torch: Any) -> None:
    from edgemux.compression.passes import Setting, Subject
    from edgemux.compression.quantize.dynamic import Int8Dynamic

    nn = torch.nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(FEATURES, 3, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.rnn(x)[0][:, -1]

    net = Net().eval()
    with pytest.raises(PassError, match="GRU stays in float32"):
        Int8Dynamic().apply(Subject(net), Setting(samples_of(torch, (STEPS, FEATURES)), net))


def test_dynamic_int8_takes_convolutions_only_when_asked(torch: Any) -> None:
    from edgemux.compression.passes import Setting, Subject
    from edgemux.compression.quantize.dynamic import Int8Dynamic

    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    setting = Setting(samples_of(torch, (1, 6, 6)), net)
    for convs in (False, True):
        graph = Int8Dynamic(convs=convs).apply(Subject(net), setting).graph
        assert graph is not None
        assert ("ConvInteger" in {node.op_type for node in graph.graph.node}) == convs
