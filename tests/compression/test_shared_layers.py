"""Layers that use one tensor: tied in torch, one initializer in ONNX, tied again after saving."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from edgemux.multiplexer.errors import PassError

WIDTH = 6


def small_resnet(torch: Any, seed: int = 0) -> Any:
    """Two residual stages of two and three blocks, with batch statistics that are not the initial ones."""
    from edgemux.compression.nets import ConvUnit, Residual

    torch.manual_seed(seed)
    nn = torch.nn
    net = nn.Sequential(
        ConvUnit(1, WIDTH, stride=2),
        *(Residual(WIDTH, 2) for _ in range(2)),
        ConvUnit(WIDTH, 2 * WIDTH),
        *(Residual(2 * WIDTH, 1) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * WIDTH, 3),
    )
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.uniform_(0.5, 2.0)
            part.weight.data.uniform_(0.5, 2.0)
    return net.eval()


def some_images(torch: Any, count: int = 4) -> Any:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def setting_of(torch: Any, net: Any) -> Any:
    from edgemux.compression.passes import Setting
    from edgemux.compression.samples import Samples

    x, y = some_images(torch, 48), torch.arange(48) % 3
    return Setting(Samples(x, y, x[:20], y[:20]), net)


def test_neighbours_of_equal_shape_are_found_in_the_order_of_the_data(torch: Any) -> None:
    from edgemux.compression.share.layers import automatic

    net, x = small_resnet(torch), some_images(torch)
    low = ["1.units.0.conv", "1.units.1.conv", "2.units.0.conv", "2.units.1.conv"]
    high = ["4.units.0.conv", "5.units.0.conv", "6.units.0.conv"]
    assert automatic(net, x, 2) == [low[:2], low[2:], high[:2]]
    assert automatic(net, x, 4) == [low, high]


def test_groups_can_be_named_by_blocks(torch: Any) -> None:
    from edgemux.compression.share.layers import named

    net = small_resnet(torch)
    assert named(net, "1 + 2, 4+6") == [
        ["1.units.0.conv", "2.units.0.conv"],
        ["1.units.1.conv", "2.units.1.conv"],
        ["4.units.0.conv", "6.units.0.conv"],
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1", "different modules"), ("1+1", "different modules"), ("1+4", "equal shapes"), ("1+nowhere", "no module"),
     ("7+8", "no layers"), ("1+2,2+1", "two groups")],
)  # fmt: skip
def test_groups_that_cannot_be_tied_are_refused(torch: Any, text: str, reason: str) -> None:
    from edgemux.compression.share.layers import named

    with pytest.raises(PassError, match=reason):
        named(small_resnet(torch), text)


@pytest.mark.parametrize("start", ["first", "mean"])
def test_a_tied_tensor_is_one_parameter_and_stays_one_in_a_copy(torch: Any, start: Any) -> None:
    from edgemux.compression.share.layers import automatic, tied
    from edgemux.compression.structure import ties_of

    net, x = small_resnet(torch), some_images(torch)
    before = copy.deepcopy(net.state_dict())
    result = copy.deepcopy(tied(net, automatic(net, x, 2), start))
    one, other = result[1].units[0].conv.weight, result[1].units[1].conv.weight
    assert one is other and [len(group) for group in ties_of(result)] == [2, 2, 2]
    first, second = net[1].units[0].conv.weight, net[1].units[1].conv.weight
    assert torch.equal(one, first if start == "first" else (first + second) / 2)
    assert result[1].units[0].norm.weight is not result[1].units[1].norm.weight
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    saved = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in result.parameters())
    assert saved == 2 * 9 * WIDTH**2 + 9 * (2 * WIDTH) ** 2


def test_a_tied_tensor_is_one_initializer_although_each_use_has_its_own_batch_norm(torch: Any) -> None:
    from edgemux.compression import gauge
    from edgemux.compression.share.layers import automatic, stored_weights, tied
    from edgemux.compression.to_onnx import exported

    net, x = small_resnet(torch), some_images(torch)
    result = tied(net, automatic(net, x, 4), "first")
    graph = exported(result, x)
    read = [node.input[1] for node in graph.graph.node if node.op_type == "Conv"]
    assert len(read) == 9 and len(set(read)) == 4
    assert set(read) <= {tensor.name for tensor in graph.graph.initializer}
    assert stored_weights(exported(net, x)) - stored_weights(graph) == 3 * 9 * WIDTH**2 + 2 * 9 * (2 * WIDTH) ** 2
    with torch.no_grad():
        assert np.allclose(gauge.answers(gauge.loaded(graph), x.numpy()), result(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (4, 5)])
def test_linear_layers_share_one_initializer_too(torch: Any, shape: tuple[int, ...]) -> None:
    from edgemux.compression.share.layers import automatic, stored_weights, tied
    from edgemux.compression.to_onnx import exported

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(
                *(torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.ReLU()) for _ in range(2))
            )
            self.head = torch.nn.Linear(5, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x)).flatten(1, -2).mean(1) if x.ndim > 2 else self.head(self.body(x))

    torch.manual_seed(0)
    net, x = Net().eval(), torch.rand(2, *shape)
    graph = exported(tied(net, automatic(net, x, 2), "first"), x)
    assert stored_weights(graph) == 25 + 15


def test_training_a_tied_net_keeps_the_tie_and_the_artifact_brings_it_back(torch: Any, tmp_path: Any) -> None:
    from edgemux.compression import compress
    from edgemux.compression.artifact import Artifact
    from edgemux.compression.share.layers import Share
    from edgemux.compression.structure import ties_of

    net = small_resnet(torch)
    setting = setting_of(torch, net)
    what = Share(uses=2, epochs=1, rate=0.01)
    made = compress(net, setting.samples, [f"{what.label}(uses=2, epochs=1, rate=0.01)!"], memory=False)
    again = Artifact.load(made.save(tmp_path / "shared")).net(small_resnet(torch, seed=4))
    assert [len(group) for group in ties_of(again)] == [2, 2, 2]
    assert again[1].units[0].conv.weight is again[1].units[1].conv.weight
    assert not torch.equal(again[1].units[0].conv.weight, net[1].units[0].conv.weight)
    x = setting.samples.test_x
    with torch.no_grad():
        wanted = again(x).numpy()
    model = made.model()
    assert np.allclose(model.run({model.inputs[0]: x.numpy()})[0], wanted, atol=1e-5)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in net.parameters())


def test_a_net_without_equal_neighbours_and_one_that_is_shared_already_are_refused(torch: Any) -> None:
    from edgemux.compression.passes import Subject
    from edgemux.compression.share.layers import Share, automatic, tied

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Linear(8, 3))
    with pytest.raises(PassError, match="no neighbouring layers"):
        Share().requires(Subject(net), setting_of(torch, net))
    once, x = small_resnet(torch), some_images(torch)
    once = tied(once, automatic(once, x, 4), "first")
    with pytest.raises(PassError, match="no neighbouring layers"):
        Share().requires(Subject(once), setting_of(torch, once))
