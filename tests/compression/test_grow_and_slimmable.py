"""Two other ways to nest models: growing with everything older frozen, and slices of a dense net."""

from __future__ import annotations

from typing import Any

import pytest

from edgemux.multiplexer.errors import ConfigError

WIDTHS = {"conv1": (2, 3, 5), "conv2": (2, 4, 6), "conv3": (3, 5, 7), "conv4": (4, 6, 8)}


def tiny(levels: int = 3) -> Any:
    """A family of narrow levels, with enough momentum and decay to move whatever is not held."""
    from edgemux.compression.recipe import Augment, Family, Schedule

    return Family(
        **{name: widths[:levels] for name, widths in WIDTHS.items()},
        loss_weights=(1.0,) * levels,
        distill=0.5,
        temperature_t=2.0,
        quantise_last=0.0,
        schedule=Schedule(epochs=2, batch=8, peak_rate=0.1, momentum=0.9, weight_decay=0.1, bf16=False),
        augment=Augment(flip=False, shift_px=0),
    )


@pytest.fixture
def lesson(torch: Any) -> Any:
    """24 random pictures of a drawing function, and a loss that has gradients everywhere."""
    from edgemux.compression.augment import Batch

    x = torch.rand(24, 1, 16, 16, generator=torch.Generator().manual_seed(2))

    def drawn(index: Any, generator: Any) -> Any:
        return Batch(x[index], index, torch.zeros(len(index), dtype=torch.bool))

    def loss(model: Any, batch: Any) -> Any:
        logits = model(batch.pixels)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), (batch.index % 3).repeat(len(logits)))

    return x, drawn, loss


def grown(net: Any, level: int, lesson: Any, **more: Any) -> None:
    from edgemux.compression.grow import grow

    _, drawn, loss = lesson
    grow(net, level, 24, drawn, loss, tiny().schedule, seed=level, **more)


def bits(net: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_growing_a_level_leaves_every_bit_of_the_other_levels(torch: Any, lesson: Any) -> None:
    from edgemux.compression.grow import layers
    from edgemux.compression.nested import NestedNet

    torch.manual_seed(1)
    net = NestedNet(tiny(), (1, 16, 16), 3)  # its weights get other storage when the training starts
    before = bits(net)
    grown(net, 2, lesson)
    after = bits(net)
    for name, layer in layers(net):
        rows = layer.rows(2)
        for part in ("conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
            old, new = before[f"{name}.{part}"], after[f"{name}.{part}"]
            assert torch.equal(old[: rows.start], new[: rows.start])
            assert torch.equal(old[rows.stop :], new[rows.stop :])
            assert not torch.equal(old[rows], new[rows])
    for head in (0, 2):
        assert torch.equal(before[f"heads.{head}.weight"], after[f"heads.{head}.weight"])
    assert not torch.equal(before["heads.1.weight"], after["heads.1.weight"])


def test_without_putting_them_back_weight_decay_moves_weights_that_get_no_gradient(
    torch: Any, lesson: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgemux.compression.grow import Frozen
    from edgemux.compression.nested import NestedNet

    torch.manual_seed(1)
    net = NestedNet(tiny(), (1, 16, 16), 3)
    before = net.conv3.conv.weight[:3].clone()
    monkeypatch.setattr(Frozen, "restore", lambda self: None)
    grown(net, 2, lesson)
    assert net.conv3.conv.weight[:3].norm() < 0.99 * before.norm()


def test_a_level_answers_the_same_bits_before_and_after_the_next_is_added(torch: Any, lesson: Any) -> None:
    from edgemux.compression.export import level_graph
    from edgemux.compression.grow import extended, level_logits
    from edgemux.compression.nested import NestedNet

    torch.manual_seed(1)
    small = NestedNet(tiny(2), (1, 16, 16), 3)
    grown(small, 1, lesson)
    grown(small, 2, lesson)
    small.eval()
    x = lesson[0]
    with torch.inference_mode():
        before = [level_logits(small, x, level, learning=False) for level in (1, 2)]
    large = extended(small, tiny(3))
    grown(large, 3, lesson)
    large.eval()
    with torch.inference_mode():
        for level, answer in enumerate(before, start=1):
            assert torch.equal(level_logits(large, x, level, learning=False), answer)
            assert torch.allclose(large(x)[level - 1], answer, atol=1e-5)
    old, new = (level_graph(net, 1, 1.0, int8=False).SerializeToString() for net in (small, large))
    assert old == new


def test_growing_can_be_interrupted(torch: Any, lesson: Any, tmp_path: Any) -> None:
    from edgemux.compression.nested import NestedNet

    def run(**more: Any) -> dict[str, Any]:
        torch.manual_seed(1)
        net = NestedNet(tiny(), (1, 16, 16), 3)
        grown(net, 2, lesson, **more)
        return bits(net)

    def stop(done: float) -> None:
        if done >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "c.pt", tick=stop)
    resumed, whole = run(checkpoint=tmp_path / "c.pt"), run()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_a_family_is_extended_only_by_one_that_begins_like_it(torch: Any) -> None:
    import msgspec

    from edgemux.compression.grow import extended
    from edgemux.compression.nested import NestedNet

    other = msgspec.structs.replace(tiny(3), conv3=(3, 6, 7))
    with pytest.raises(ConfigError, match="conv3"):
        extended(NestedNet(tiny(2), (1, 16, 16), 3), other)


def test_a_slimmable_level_reads_only_the_first_slice_of_each_layer(torch: Any) -> None:
    from edgemux.compression.slimmable import SlimmableNet

    net = SlimmableNet(tiny(), (1, 16, 16), 3).eval()
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = net(x)
        for layer in (net.conv1, net.conv2, net.conv3, net.conv4):
            layer.weight[layer.c_out[0] :].normal_()
            if layer is not net.conv1:  # an image's channels belong to every level
                layer.weight[:, layer.c_in[0] :].normal_()
        net.head.weight[:, net.conv4.c_out[0] :].normal_()
        after = net(x)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_slimmable_levels_keep_statistics_of_their_own(torch: Any) -> None:
    from edgemux.compression.slimmable import SlimmableNet

    net = SlimmableNet(tiny(), (1, 16, 16), 3).train()
    x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    first, second = net.conv2.norms[0], net.conv2.norms[1]
    still = second.running_mean.clone()
    net.at(x, 1)
    assert first.running_mean.abs().sum() > 0
    assert torch.equal(second.running_mean, still)
    net.at(x, 2)
    assert not torch.equal(second.running_mean[: len(first.running_mean)], first.running_mean)


def test_a_step_on_all_slimmable_levels_gives_every_one_of_them_a_gradient(torch: Any) -> None:
    from edgemux.compression.slimmable import SlimmableNet

    net = SlimmableNet(tiny(), (1, 16, 16), 3).train()
    logits = net(torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (3, 8, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters() if p.ndim > 1)


def test_same_size_nets_have_the_weights_of_the_nested_family_up_to_their_level(recipe_path: Any) -> None:
    from edgemux.compression import recipe, widths

    family = recipe.load(recipe_path).family
    for level in range(1, family.levels + 1):
        target = widths.nested_parameters(family, level)
        assert widths.dense_parameters(widths.same_size(family, level)) == pytest.approx(target, rel=0.03)
        assert widths.dense_parameters(widths.at_level(family, level)) >= target


def test_counted_weights_are_those_of_the_exported_files(family: Any, recipe_path: Any) -> None:
    from edgemux.compression import profile, recipe, widths
    from edgemux.compression.export import level_graph

    plan = recipe.load(recipe_path).family
    stored = 0
    for level in range(1, plan.levels + 1):
        stored += profile.parameters(level_graph(family, level, 1.0, int8=False))
        assert widths.nested_parameters(plan, level) == stored
