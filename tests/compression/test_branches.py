"""Branches on a frozen backbone: what was there stays to the bit, in torch and in ONNX Runtime."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from edgemux.multiplexer.errors import ConfigError


def backbone_of(torch: Any) -> Any:
    from edgemux.compression.nets import ConvUnit

    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        ConvUnit(1, 8, stride=2), ConvUnit(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return net


def branch_of(torch: Any, classes: int = 3) -> Any:
    from edgemux.compression.nets import ConvUnit

    nn = torch.nn
    return nn.Sequential(ConvUnit(8, 4, size=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def samples_of(torch: Any, change: Any = None) -> Any:
    from edgemux.compression.samples import Samples

    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = (x.mean((1, 2, 3)) > 0.5).long()
    return Samples(x, y, x[:16], y[:16], change=change)


def shipped_answers(net: Any, x: Any) -> list[Any]:
    from edgemux.compression import gauge
    from edgemux.compression.share.branches import whole

    return gauge.loaded(whole(net, x)).run({"input": x.numpy()})


@pytest.mark.parametrize("changed", [False, True])
def test_adding_and_training_a_branch_leaves_every_earlier_answer_to_the_bit(torch: Any, changed: bool) -> None:
    from edgemux.compression.share.branches import MultiBranch, train_branch

    samples = samples_of(torch, (lambda x, generator: x.flip(3)) if changed else None)
    net = MultiBranch(backbone_of(torch), "1").add("first", branch_of(torch))
    train_branch(net, "first", samples, epochs=1)
    state = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        before = net(samples.test_x)
    before_onnx = shipped_answers(net, samples.test_x)
    net.add("second", branch_of(torch, 2))
    fresh = copy.deepcopy(net.branches["second"].state_dict())
    train_branch(net, "second", samples, epochs=2)
    with torch.no_grad():
        after = net(samples.test_x)
    after_onnx = shipped_answers(net, samples.test_x)
    assert len(after) == len(after_onnx) == 3 and net.outputs == ("logits", "first", "second")
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=False))
    assert all(np.array_equal(one, other) for one, other in zip(before_onnx, after_onnx, strict=False))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())
    assert not torch.equal(fresh["3.weight"], net.branches["second"].state_dict()["3.weight"])
    assert np.allclose(after_onnx[2], after[2].numpy(), atol=1e-5)


def test_the_backbone_neither_trains_nor_moves_its_batch_statistics(torch: Any) -> None:
    from edgemux.compression.share.branches import MultiBranch

    net = MultiBranch(backbone_of(torch), "1").add("task", branch_of(torch))
    before = copy.deepcopy(net.backbone.state_dict())
    net.train()
    assert net.branches["task"].training and not any(part.training for part in net.backbone.modules())
    answers = net(samples_of(torch).train_x)
    answers[1].sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in net.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert all(parameter.grad is not None for parameter in net.branches.parameters())


def test_features_are_what_branches_read_and_the_rest_of_the_backbone_is_not_run(torch: Any) -> None:
    from edgemux.compression.share.branches import MultiBranch

    backbone, x = backbone_of(torch), samples_of(torch).test_x
    net = MultiBranch(backbone, "1")
    calls: list[int] = []
    backbone[4].register_forward_hook(lambda *_: calls.append(1))
    features = net.features(x)
    assert not calls
    with torch.no_grad():
        assert torch.equal(features, backbone[1](backbone[0](x))) and torch.equal(features, net.answer(x)[1])
    assert not backbone[1]._forward_hooks


def test_the_parts_answer_what_the_whole_does_and_a_new_task_changes_no_file_that_was_there(torch: Any) -> None:
    from edgemux.compression import gauge
    from edgemux.compression.share.branches import MultiBranch, in_parts

    x = samples_of(torch).test_x
    net = MultiBranch(backbone_of(torch), "1").add("one", branch_of(torch))
    before = in_parts(net, x)
    after = in_parts(net.add("two", branch_of(torch)), x)
    assert list(after) == ["backbone", "one", "two"]
    for name, graph in before.items():
        assert graph.SerializeToString() == after[name].SerializeToString()
    logits, features = gauge.loaded(after["backbone"]).run({"input": x.numpy()})
    with torch.no_grad():
        wanted = [answer.numpy() for answer in net(x)]
    assert np.allclose(logits, wanted[0], atol=1e-5)
    for at, name in enumerate(("one", "two"), start=1):
        assert np.allclose(gauge.loaded(after[name]).run({"input": features})[0], wanted[at], atol=1e-5)


def test_places_and_names_that_cannot_be_are_refused(torch: Any) -> None:
    from edgemux.compression.share.branches import MultiBranch, train_branch

    for at in ("", "nowhere"):
        with pytest.raises(ConfigError, match="no module"):
            MultiBranch(backbone_of(torch), at)
    net = MultiBranch(backbone_of(torch), "1").add("task", branch_of(torch))
    for name in ("task", "logits", "features", "a b", "keys"):
        with pytest.raises(ConfigError, match="taken"):
            net.add(name, branch_of(torch))
    with pytest.raises(ConfigError, match="no branch"):
        train_branch(net, "other", samples_of(torch), 1)
