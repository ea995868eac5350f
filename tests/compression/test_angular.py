"""Angular distillation: the loss, what it finds in a net, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def setting_for(torch: Any, original: Any, shape: tuple[int, ...] = (1, 12, 12)) -> Any:
    from edgemux.compression.passes import Setting
    from edgemux.compression.samples import Samples

    x = torch.rand(48, *shape, generator=torch.Generator().manual_seed(1))
    y = torch.arange(48) % 3
    return Setting(Samples.of((x, y, x, y)), original)


def conv_net(torch: Any, width: int, features: int, seed: int) -> Any:
    """A net for [n, 1, 12, 12]: maps at 12x12 and 6x6, then an embedding."""
    nn = torch.nn
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(2 * width, features, 1), nn.Flatten(), nn.Tanh(), nn.Linear(features, 3),
    ).eval()  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100.0))
def test_the_loss_knows_directions_only(seed: int, scale: float) -> None:
    torch = pytest.importorskip("torch")
    from edgemux.compression.distill.angular import angular_loss

    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 7, generator=generator)
    loss = angular_loss(student, teacher)
    assert 0.0 <= float(loss) <= 2.0
    assert float(angular_loss(scale * student, teacher)) == pytest.approx(float(loss), abs=1e-5)
    assert float(angular_loss(scale * teacher, teacher)) == pytest.approx(0.0, abs=1e-5)
    assert float(angular_loss(-scale * teacher, teacher)) == pytest.approx(2.0, abs=1e-5)


def test_the_embedding_and_the_maps_are_found_by_running_the_net(torch: Any) -> None:
    from edgemux.compression.distill.features import anatomy_of, embeddings_of

    net = conv_net(torch, 4, 10, seed=0)
    x = torch.rand(5, 1, 12, 12)
    anatomy = anatomy_of(net, x)
    assert (anatomy.head, anatomy.features) == ("9", 10)
    assert anatomy.maps == (("1", 4, 2), ("3", 8, 2))
    with torch.no_grad():
        assert torch.equal(embeddings_of(net, x), net[:9](x))
    assert all(not part._forward_hooks for part in net.modules())


def test_a_net_that_does_not_end_in_a_linear_layer_has_no_embedding(torch: Any) -> None:
    from edgemux.compression.distill.angular import Angular
    from edgemux.compression.passes import Subject
    from edgemux.multiplexer.errors import PassError

    nn = torch.nn
    without = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    whole = conv_net(torch, 4, 10, seed=0)
    with pytest.raises(PassError, match=r"angular: Sequential does not end in a linear layer"):
        Angular().requires(Subject(net=without), setting_for(torch, whole))
    with pytest.raises(PassError, match=r"angular: .*linear layer"):
        Angular().requires(Subject(net=whole), setting_for(torch, without))
    with pytest.raises(PassError, match=r"angular: needs the original torch net"):
        Angular().requires(Subject(net=whole), setting_for(torch, None))


def test_features_as_wide_as_the_teachers_are_not_projected(torch: Any) -> None:
    from edgemux.compression.distill.angular import Pupil
    from edgemux.compression.distill.features import anatomy_of

    x = torch.rand(2, 1, 12, 12)
    small, large = conv_net(torch, 4, 6, seed=0), conv_net(torch, 8, 6, seed=1)
    pupil = Pupil(small, anatomy_of(small, x), anatomy_of(large, x))
    assert [type(part).__name__ for part in pupil.projections] == ["Identity", "Linear", "Linear"]
    assert [tuple(part.weight.shape) for part in pupil.projections[1:]] == [(16, 8), (8, 4)]


def test_images_and_sequences_are_not_compared(torch: Any) -> None:
    from edgemux.compression.distill.angular import Pupil
    from edgemux.compression.distill.features import anatomy_of

    nn = torch.nn
    x = torch.rand(2, 1, 12, 12)
    flat = nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 4, 5), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    assert [at.axes for at in anatomy_of(flat, x).maps] == [1]
    assert Pupil(flat, anatomy_of(flat, x), anatomy_of(conv_net(torch, 4, 6, seed=0), x)).pairs == 0


def test_a_net_agrees_with_itself_in_every_angle(torch: Any) -> None:
    from edgemux.compression.distill.angular import Pupil
    from edgemux.compression.distill.features import anatomy_of, watched

    net, x = conv_net(torch, 4, 6, seed=0), torch.rand(3, 1, 12, 12)
    anatomy = anatomy_of(net, x)
    with watched(net, anatomy) as run:
        features = run(x)
    loss = Pupil(net, anatomy, anatomy).angles(features, features).detach()
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


def test_a_sequence_net_is_taught_by_its_embedding_alone(torch: Any) -> None:
    from edgemux.compression.distill.features import anatomy_of

    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = torch.nn.GRU(4, 6, batch_first=True), torch.nn.Linear(6, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.gru(x)[0][:, -1])

    assert anatomy_of(Recurrent(), torch.rand(2, 5, 4)) == anatomy_of(Recurrent(), torch.rand(3, 9, 4))
    assert anatomy_of(Recurrent(), torch.rand(2, 5, 4)).maps == ()


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_pass_turns_the_students_features_and_leaves_all_else_alone(torch: Any, rounds: int) -> None:
    from edgemux.compression import gauge
    from edgemux.compression.distill.angular import Angular
    from edgemux.compression.distill.features import embeddings_of
    from edgemux.compression.passes import Subject
    from edgemux.compression.samples import logits_of
    from edgemux.compression.to_onnx import exported

    teacher, student = conv_net(torch, 8, 6, seed=1), conv_net(torch, 4, 6, seed=2)
    setting = setting_for(torch, teacher)
    x = setting.samples.test_x
    kept = [{key: value.clone() for key, value in net.state_dict().items()} for net in (teacher, student)]
    made = Angular(epochs=6, weight=20.0, rate=0.1, rounds=rounds)
    made.requires(Subject(net=student), setting)
    after = made.apply(Subject(net=student), setting).net

    def angle(net: Any) -> float:
        cosines = torch.nn.functional.cosine_similarity(embeddings_of(net, x), embeddings_of(teacher, x), dim=1)
        return float(1.0 - cosines.mean())

    assert angle(after) < 0.5 * angle(student)
    assert after.state_dict().keys() == student.state_dict().keys()
    assert all(not part._forward_hooks for part in after.modules())
    for net, state in zip((teacher, student), kept, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    graph = gauge.loaded(exported(after, x))
    assert torch.tensor(gauge.answers(graph, x.numpy())).allclose(logits_of(after, x), atol=1e-4)


def test_a_student_learns_from_the_original_in_one_recipe(torch: Any) -> None:
    from edgemux.compression.pass_recipe import PassRecipe
    from edgemux.compression.pipeline import compress

    recipe = PassRecipe.of("student(shufflenet, 0.25)! > angular(1, weight=2.0, rounds=2)")
    assert PassRecipe.of(str(recipe)) == recipe
    teacher = conv_net(torch, 8, 6, seed=1)
    artifact = compress(teacher, setting_for(torch, teacher).samples, recipe, memory=False)
    first, _ = artifact.about.passes
    assert first.verdict.kept
    assert first.after.macs != artifact.about.original.macs
