"""Distillation: the loss is the formula, the teacher is not touched, assistants stand halfway."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.errors import PassError

pytest.importorskip("torch")


def conv_net(torch: Any, width: int, classes: int = 3) -> Any:
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


@pytest.fixture
def samples(torch: Any) -> Any:
    """48 inputs [1, 8, 8] of three classes to learn from and 12 to judge by."""
    from edgemux.compression.samples import Samples

    generator = torch.Generator().manual_seed(1)
    x = torch.rand(60, 1, 8, 8, generator=generator)
    y = torch.arange(60) % 3
    return Samples(x[:48], y[:48], x[48:], y[48:])


@pytest.fixture
def teacher(torch: Any) -> Any:
    """A convolutional net eight channels wide, with random weights."""
    torch.manual_seed(2)
    return conv_net(torch, 8).eval()


@pytest.fixture
def student(torch: Any) -> Any:
    """The same net, two channels wide."""
    torch.manual_seed(3)
    return conv_net(torch, 2).eval()


def lesson(**changes: Any) -> Any:
    from edgemux.compression.distill.lesson import Lesson

    return Lesson(**{"temperature": 4.0, "share": 0.7, "epochs": 1, "rate": 0.05, **changes})


def softmax(x: Any) -> Any:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 20.0), st.floats(0.0, 1.0))
def test_the_loss_is_cross_entropy_and_squared_temperature_times_divergence(seed: int, t: float, share: float) -> None:
    import torch

    from edgemux.compression.distill.lesson import soft_loss

    random = np.random.default_rng(seed)
    mine, theirs, labels = random.normal(0, 3, (7, 5)), random.normal(0, 3, (7, 5)), random.integers(0, 5, 7)
    p, q = softmax(theirs / t), softmax(mine / t)
    hard = -np.log(softmax(mine)[np.arange(7), labels]).mean()
    wanted = (1 - share) * hard + share * t**2 * (p * np.log(p / q)).sum(axis=1).mean()
    made = soft_loss(
        torch.tensor(mine), torch.tensor(theirs).float(), torch.tensor(labels), lesson(temperature=t, share=share)
    )
    assert float(made) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_equal_logits_leave_nothing_to_learn(torch: Any) -> None:
    from edgemux.compression.distill.lesson import soft_loss

    logits = torch.randn(6, 4, requires_grad=True)
    loss = soft_loss(logits, logits.detach().clone(), torch.zeros(6, dtype=torch.int64), lesson(share=1.0))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(logits.grad.abs().max()) < 1e-6


def test_gradients_reach_the_student_and_not_the_teacher(torch: Any, samples: Any, teacher: Any, student: Any) -> None:
    from edgemux.compression.distill.lesson import distilling
    from edgemux.compression.structure import same_weights

    before = copy.deepcopy(teacher)
    loss = distilling(teacher, samples, lesson())
    loss(student.train(), samples.draw(torch.arange(16), torch.Generator())).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert same_weights(before, teacher)


def test_the_teacher_is_asked_once_unless_inputs_change(torch: Any, samples: Any, teacher: Any) -> None:
    import dataclasses

    from edgemux.compression.distill.lesson import answers_of
    from edgemux.compression.samples import logits_of

    runs = []
    teacher.register_forward_hook(lambda *_: runs.append(1))
    index = torch.tensor([5, 3, 40])
    answers = answers_of(teacher, samples)
    batch = samples.draw(index, torch.Generator())
    assert torch.allclose(answers(batch), logits_of(teacher, samples.train_x[index]), atol=1e-6)
    asked = len(runs)
    answers(batch)
    assert len(runs) == asked

    changing = dataclasses.replace(samples, change=lambda x, generator: x + torch.rand(x.shape, generator=generator))
    answers = answers_of(teacher, changing)
    batch = changing.draw(index, torch.Generator().manual_seed(4))
    assert torch.equal(answers(batch), logits_of(teacher, batch.pixels))
    assert not torch.allclose(answers(batch), logits_of(teacher, samples.train_x[index]))


@pytest.mark.parametrize("assistant", [False, True])
def test_distill_trains_a_copy_that_exports_and_comes_closer(
    torch: Any, samples: Any, teacher: Any, student: Any, assistant: bool
) -> None:
    from edgemux.compression.distill.logits import Distill
    from edgemux.compression.gauge import answers, loaded
    from edgemux.compression.passes import Setting, Subject
    from edgemux.compression.samples import logits_of
    from edgemux.compression.structure import same_weights
    from edgemux.compression.to_onnx import exported

    originals = copy.deepcopy(teacher), copy.deepcopy(student)
    what = Distill(share=1.0, epochs=20, rate=0.05, assistant=assistant)
    subject, setting = Subject(net=student), Setting(samples, teacher)
    what.requires(subject, setting)
    net = what.apply(subject, setting).net
    assert net is not None
    assert same_weights(teacher, originals[0])
    assert same_weights(student, originals[1])
    x = samples.test_x
    goal = logits_of(teacher, samples.train_x)
    apart = [float((logits_of(one, samples.train_x) - goal).square().mean()) for one in (student, net)]
    assert apart[1] < apart[0]
    assert np.allclose(answers(loaded(exported(net, x)), x.numpy()), logits_of(net, x).numpy(), atol=1e-5)


def test_distill_says_what_it_lacks(torch: Any, samples: Any, teacher: Any, student: Any) -> None:
    from edgemux.compression.distill.logits import Distill
    from edgemux.compression.passes import Setting, Subject

    with pytest.raises(PassError, match="distill: learns from the original"):
        Distill().requires(Subject(net=student), Setting(samples, None))
    with pytest.raises(PassError, match="distill: works on a torch net"):
        Distill().requires(Subject(), Setting(samples, None))
    with pytest.raises(PassError, match="distill: the net answers 5 classes"):
        Distill().requires(Subject(net=conv_net(torch, 2, 5)), Setting(samples, teacher))
    with pytest.raises(PassError, match="smaller than the original"):
        Distill(assistant=True).requires(Subject(net=teacher), Setting(samples, teacher))


def test_an_assistant_that_cannot_be_made_is_an_error_of_distill(torch: Any, samples: Any) -> None:
    from edgemux.compression.distill.assistant import between

    class Recurrent(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.cell, self.head = torch.nn.GRU(8, width, batch_first=True), torch.nn.Linear(width, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.cell(x.squeeze(1))[0][:, -1])

    with pytest.raises(PassError, match="distill: no assistant"):
        between(Recurrent(16), Recurrent(4), samples.train_x)


@given(st.integers(2, 10**9), st.floats(1e-6, 0.999))
def test_an_assistant_is_as_many_times_smaller_as_the_student_is_than_it(teacher: int, part: float) -> None:
    from edgemux.compression.distill.assistant import removed_share

    student = max(1, int(teacher * part))
    share = removed_share(teacher, student)
    assert 0.0 < share < 1.0
    assert teacher * (1.0 - share) ** 2 == pytest.approx(math.sqrt(teacher * student))


def test_every_assistant_learns_from_the_one_before_it(
    torch: Any, samples: Any, teacher: Any, student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgemux.compression.distill import assistant

    pairs = []

    def taught(net: Any, by: Any, *_: Any) -> Any:
        pairs.append((net, by))
        return net

    monkeypatch.setattr(assistant, "taught", taught)
    first, second = conv_net(torch, 5), conv_net(torch, 3)
    assert assistant.through_assistants(teacher, [first, second], student, samples, lesson()) is student
    assert pairs == [(first, teacher), (second, first), (student, second)]


def test_the_assistants_size_lies_between(torch: Any, samples: Any, teacher: Any, student: Any) -> None:
    from edgemux.compression.distill.assistant import between, parameters

    asked: list[float] = []

    def thin(net: Any, x: Any, share: float) -> Any:
        asked.append(share)
        return net

    made = between(teacher, student, samples.train_x)
    assert parameters(student) < parameters(made) < parameters(teacher)
    assert between(teacher, student, samples.train_x, thin) is teacher
    assert asked[0] == pytest.approx(1.0 - (parameters(student) / parameters(teacher)) ** 0.25)


def test_recipes_spell_distill_with_a_capital_t() -> None:
    from edgemux.compression.pass_recipe import PassRecipe

    recipe = PassRecipe.of("distill(T=2, share=0.5) > adapt(coral) > layers(0.5, cka, distill=false)")
    assert (
        str(recipe) == "distill(T=2.0, share=0.5) > adapt(method=coral) > layers(ratio=0.5, probe=cka, distill=false)"
    )
