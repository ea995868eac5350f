"""Small networks made to measure: what they cost is known beforehand, and they export as they answer."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

CELLS = ("mobilenet", "shufflenet", "vargnet")
IMAGE = (1, 28, 28)


def cell_of(name: str) -> ModuleType:
    from importlib import import_module

    return import_module(f"edgemux.compression.cells.{name}")


def awake(torch: Any, net: Any) -> Any:
    """The net with batch statistics that neither shrink nor hide anything."""
    generator = torch.Generator().manual_seed(3)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0.0, 0.1, generator=generator)
            part.running_var.uniform_(0.05, 0.2, generator=generator)
            part.bias.data.normal_(0.0, 0.2, generator=generator)
    return net.eval()


def setting_for(torch: Any, shape: tuple[int, ...], classes: int = 4) -> Any:
    from edgemux.compression.passes import Setting
    from edgemux.compression.samples import Samples

    x = torch.rand(12, *shape, generator=torch.Generator().manual_seed(1))
    y = torch.arange(12) % classes
    return Setting(Samples.of((x, y, x, y)), None)


def flat_net(torch: Any, inputs: int, classes: int) -> Any:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inputs, classes))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    ("shape", "width", "resolution"),
    [(IMAGE, 0.25, 1.0), (IMAGE, 0.5, 0.7), ((3, 9, 13), 0.25, 1.0), ((2, 6, 4), 0.1, 1.0), ((3, 40, 36), 0.1, 0.9)],
)
def test_the_exported_net_answers_as_torch_does_and_costs_what_was_predicted(
    torch: Any, name: str, shape: tuple[int, int, int], width: float, resolution: float
) -> None:
    from edgemux.compression import gauge, profile
    from edgemux.compression.to_onnx import exported

    cell = cell_of(name)
    torch.manual_seed(2)
    net = awake(torch, cell.student(shape, 5, width, resolution))
    x = torch.rand(3, *shape)
    graph = exported(net, x)
    with torch.inference_mode():
        wanted = net(x)
    assert wanted.std() > 0.01
    error = (torch.tensor(gauge.answers(gauge.loaded(graph), x.numpy())) - wanted).abs().max()
    assert error < 1e-4 * wanted.abs().max()
    assert cell.macs(shape, 5, width, resolution) == pytest.approx(profile.macs(graph), rel=0.01)


def test_the_mobilenet_costs_what_the_paper_says_at_each_width_and_resolution(torch: Any) -> None:
    mobilenet = cell_of("mobilenet")
    full = (3, 224, 224)
    for width, millions in ((1.0, 569), (0.75, 325), (0.5, 149), (0.25, 41)):
        assert mobilenet.macs(full, 1000, width) / 1e6 == pytest.approx(millions, abs=0.6)
    for side, millions in ((192, 418), (160, 290), (128, 186)):
        assert mobilenet.macs(full, 1000, 1.0, side / 224) / 1e6 == pytest.approx(millions, abs=1.0)


def test_the_shufflenet_costs_what_the_paper_says_for_each_number_of_groups(torch: Any) -> None:
    shufflenet = cell_of("shufflenet")
    for groups, millions in ((1, 143), (2, 140), (3, 137), (4, 133), (8, 137)):
        assert shufflenet.macs((3, 224, 224), 1000, groups=groups) / 1e6 == pytest.approx(millions, rel=0.011)


@pytest.mark.parametrize("name", CELLS)
@settings(max_examples=40, deadline=None)
@given(width=st.floats(0.05, 2.0), more=st.floats(1.0, 2.0), side=st.integers(4, 240))
def test_a_wider_net_never_costs_less(name: str, width: float, more: float, side: int) -> None:
    pytest.importorskip("torch")
    cell = cell_of(name)
    assert cell.macs((3, side, side), 10, width * more) >= cell.macs((3, side, side), 10, width)


@settings(max_examples=100, deadline=None)
@given(channels=st.floats(0.1, 4000.0), multiple=st.integers(1, 24))
def test_rounded_channels_are_multiples_and_at_most_a_tenth_fewer(channels: float, multiple: int) -> None:
    from edgemux.compression.cells.sizes import rounded

    made = rounded(channels, multiple)
    assert made % multiple == 0
    assert 0.9 * channels <= made <= max(multiple, channels + 1.5 * multiple)


@settings(max_examples=150, deadline=None)
@given(before=st.integers(4, 600), data=st.data())
def test_the_resize_ends_at_the_wanted_map_however_it_is_rounded(before: int, data: st.DataObject) -> None:
    pytest.importorskip("torch")
    import numpy as np

    from edgemux.compression.cells.unit import factor

    after = data.draw(st.integers(1, before))
    scale = factor(before, after)
    assert int(scale * before) == after == int(np.float32(scale) * np.float32(before))


def test_the_nearest_width_meets_a_budget(torch: Any) -> None:
    from edgemux.compression.cells.sizes import nearest_width

    mobilenet = cell_of("mobilenet")
    width = nearest_width(lambda width: mobilenet.macs(IMAGE, 10, width, round_to=2), 600_000)
    assert mobilenet.macs(IMAGE, 10, width, round_to=2) == pytest.approx(600_000, rel=0.05)


def test_the_resize_is_one_node_of_the_graph(torch: Any) -> None:
    from edgemux.compression.to_onnx import exported

    graph = exported(cell_of("mobilenet").student(IMAGE, 10, 0.25, 0.5), torch.zeros(1, *IMAGE))
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Resize") == 1
    assert "Shape" not in kinds


@settings(max_examples=30, deadline=None)
@given(groups=st.sampled_from([1, 2, 3, 4, 8]), each=st.integers(1, 6), height=st.integers(1, 4))
def test_a_shuffle_is_undone_by_its_inverse_and_mixes_all_groups(groups: int, each: int, height: int) -> None:
    torch = pytest.importorskip("torch")
    from edgemux.compression.cells.shufflenet import Shuffle

    shuffle = Shuffle(groups * each, groups, (height, 3))
    x = torch.arange(2.0 * groups * each * height * 3).reshape(2, groups * each, height, 3)
    assert torch.equal(shuffle.inverse()(shuffle(x)), x)
    assert torch.equal(shuffle(x)[:, :groups], x[:, ::each])


def test_a_shuffle_exports_as_reshape_transpose_reshape(torch: Any) -> None:
    from edgemux.compression.cells.shufflenet import Shuffle
    from edgemux.compression.to_onnx import exported

    net = torch.nn.Sequential(Shuffle(6, 3, (4, 4)), torch.nn.Flatten())
    kinds = [node.op_type for node in exported(net, torch.zeros(1, 6, 4, 4)).graph.node if node.op_type != "Constant"]
    assert kinds[:3] == ["Reshape", "Transpose", "Reshape"]


def test_without_shuffles_the_shufflenet_has_the_same_weights_and_work(torch: Any) -> None:
    from edgemux.compression import profile
    from edgemux.compression.to_onnx import exported

    shufflenet = cell_of("shufflenet")
    nets = [shufflenet.student(IMAGE, 10, 0.25, shuffle=flag) for flag in (True, False)]
    graphs = [exported(net, torch.zeros(1, *IMAGE)) for net in nets]
    assert profile.macs(graphs[0]) == profile.macs(graphs[1])
    assert profile.parameters(graphs[0]) == profile.parameters(graphs[1])
    assert [any(node.op_type == "Transpose" for node in graph.graph.node) for graph in graphs] == [True, False]


@pytest.mark.parametrize("group", [4, 8])
def test_every_group_of_a_vargnet_has_the_same_number_of_channels(torch: Any, group: int) -> None:
    net = cell_of("vargnet").student(IMAGE, 10, 0.3, group=group)
    grouped = [part for part in net.modules() if isinstance(part, torch.nn.Conv2d) and max(part.kernel_size) > 1][1:]
    assert len(grouped) > 10
    assert {part.in_channels // part.groups for part in grouped} == {group}
    assert len({part.groups for part in grouped}) > 1


@pytest.mark.parametrize("name", CELLS)
def test_the_student_pass_gives_a_fresh_net_of_the_same_shape_and_leaves_the_old_one(torch: Any, name: str) -> None:
    from edgemux.compression.cells.student import Student
    from edgemux.compression.passes import Subject
    from edgemux.compression.structure import same_weights

    setting = setting_for(torch, (3, 16, 16))
    old = flat_net(torch, 3 * 16 * 16, 7)
    before = {key: value.clone() for key, value in old.state_dict().items()}
    made = Student(cell=name, width=0.25, resolution=0.75)
    subject = Subject(net=old, stores=(lambda graph: graph,))
    made.requires(subject, setting)
    state = torch.random.get_rng_state()
    first, again = made.apply(subject, setting), made.apply(subject, setting)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.net(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    assert first.stores == ()
    assert same_weights(first.net, again.net)
    assert all(torch.equal(value, before[key]) for key, value in old.state_dict().items())


@pytest.mark.parametrize(("shape", "reason"), [((12,), "images"), ((5, 8), "images"), ((1, 3, 9), "4 px")])
def test_the_student_pass_refuses_what_is_no_image(torch: Any, shape: tuple[int, ...], reason: str) -> None:
    import math

    from edgemux.compression.cells.student import Student
    from edgemux.compression.passes import Subject
    from edgemux.multiplexer.errors import PassError

    with pytest.raises(PassError, match=f"student: .*{reason}"):
        Student().requires(Subject(net=flat_net(torch, math.prod(shape), 4)), setting_for(torch, shape))
