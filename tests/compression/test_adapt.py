"""Adaptation to another domain: distances of features, and what adapt() asks for and does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemux.multiplexer.errors import PassError

pytest.importorskip("torch")


def net_of(torch: Any, seed: int) -> Any:
    nn = torch.nn
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


@pytest.fixture
def samples(torch: Any) -> Any:
    """48 inputs [1, 6, 6] of three classes, and 40 of the same kind that are brighter and lower in contrast."""
    from edgemux.compression.samples import Samples

    generator = torch.Generator().manual_seed(1)
    x = torch.rand(100, 1, 6, 6, generator=generator)
    y = torch.arange(100) % 3
    return Samples(x[:48], y[:48], 0.3 * x[88:] + 1.0, y[88:], unlabelled=0.3 * x[48:88] + 1.0)


def features(seed: int, n: int, d: int) -> Any:
    import torch

    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (n, d)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 20), st.integers(1, 6))
def test_coral_is_zero_for_the_same_covariance_and_the_formula_otherwise(seed: int, n: int, d: int) -> None:
    from edgemux.compression.distill.domains import coral

    a, b = features(seed, n, d), features(seed + 1, n + 2, d)
    assert float(coral(a, a + 5.0)) == pytest.approx(0.0, abs=1e-12)
    assert float(coral(a, -a)) == pytest.approx(0.0, abs=1e-12)
    gap = np.cov(a.numpy().T) - np.cov(b.numpy().T)
    assert float(coral(a, b)) == pytest.approx(np.square(gap).sum() / (4 * d * d))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 20), st.integers(1, 6))
def test_mmd_is_zero_for_the_same_samples_symmetric_and_grows_with_a_shift(seed: int, n: int, d: int) -> None:
    from edgemux.compression.distill.domains import mmd

    a, b = features(seed, n, d), features(seed + 1, n, d)
    order = np.random.default_rng(seed).permutation(n)
    assert float(mmd(a, a[order])) == pytest.approx(0.0, abs=1e-9)
    assert float(mmd(a, b)) == pytest.approx(float(mmd(b, a)))
    assert float(mmd(a, b)) >= -1e-12
    assert float(mmd(a, a + 100.0)) > float(mmd(a, a + 1.0))


@pytest.mark.parametrize("distance", ["coral", "mmd"])
def test_gradients_of_distances_are_finite_for_equal_points(torch: Any, distance: Any) -> None:
    from edgemux.compression.distill.adapt import DISTANCES

    a = torch.zeros(4, 3, requires_grad=True)
    DISTANCES[distance](a, a).backward()
    assert bool(torch.isfinite(a.grad).all())


@pytest.mark.parametrize("method", ["coral", "mmd"])
def test_adapt_trains_a_copy_that_exports_with_the_targets_statistics(torch: Any, samples: Any, method: Any) -> None:
    from edgemux.compression.distill.adapt import Adapt
    from edgemux.compression.gauge import answers, loaded
    from edgemux.compression.passes import Setting, Subject
    from edgemux.compression.samples import logits_of
    from edgemux.compression.structure import same_weights
    from edgemux.compression.to_onnx import exported

    teacher, net = net_of(torch, 2), net_of(torch, 3)
    before = copy.deepcopy(teacher), copy.deepcopy(net)
    what, subject, setting = Adapt(method=method, epochs=1), Subject(net=net), Setting(samples, teacher)
    what.requires(subject, setting)
    made = what.apply(subject, setting).net
    assert made is not None
    assert same_weights(teacher, before[0])
    assert same_weights(net, before[1])
    assert not same_weights(made, net)
    with torch.no_grad():
        wanted = made[0](samples.unlabelled).mean(dim=(0, 2, 3))
    assert torch.allclose(made[1].running_mean, wanted, atol=1e-4)
    assert all(not module._forward_hooks for module in made.modules())
    x = samples.test_x
    assert np.allclose(answers(loaded(exported(made, x)), x.numpy()), logits_of(made, x).numpy(), atol=1e-5)


@pytest.mark.parametrize("method", ["coral", "mmd"])
def test_alignment_brings_the_features_of_the_domains_together(torch: Any, samples: Any, method: Any) -> None:
    from dataclasses import replace

    from edgemux.compression.distill.adapt import DISTANCES, adapted
    from edgemux.compression.distill.features import embeddings_of
    from edgemux.compression.distill.lesson import Lesson

    torch.manual_seed(5)
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.Linear(8, 3)).eval()
    far = replace(samples, unlabelled=samples.unlabelled * torch.linspace(0.0, 6.0, 6))
    lesson = Lesson(temperature=1.0, share=0.0, epochs=10, rate=0.01)

    def apart(weight: float) -> float:
        net = adapted(copy.deepcopy(plain), plain, far, far.unlabelled, lesson, method, weight)
        here, there = embeddings_of(net, far.train_x), embeddings_of(net, far.unlabelled)
        return float(DISTANCES[method](here / here.std(), there / here.std()))

    assert apart(1.0) < apart(0.0)


def test_a_teacher_that_always_disagrees_changes_nothing(torch: Any, samples: Any) -> None:
    from dataclasses import replace

    from edgemux.compression.distill.adapt import adapted
    from edgemux.compression.distill.lesson import Lesson
    from edgemux.compression.structure import same_weights

    class Says(torch.nn.Module):
        """One class for dark inputs, one for bright ones, which are the target domain's."""

        def __init__(self, here: int, there: int) -> None:
            super().__init__()
            self.register_buffer("here", 50.0 * torch.eye(3)[here])
            self.register_buffer("there", 50.0 * torch.eye(3)[there])

        def forward(self, x: Any) -> Any:
            bright = x.flatten(1).mean(dim=1, keepdim=True) > 0.9
            return torch.where(bright, self.there, self.here)

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)).eval()
    with torch.no_grad():
        net[1].bias += 20.0 * torch.eye(3)[0]
    lesson = Lesson(temperature=4.0, share=0.01, epochs=1, rate=1e-3)
    far = replace(samples, unlabelled=torch.ones(40, 1, 6, 6))

    def after(there: int) -> Any:
        return adapted(copy.deepcopy(net), Says(0, there), far, far.unlabelled, lesson, "mmd", 0.0)

    assert same_weights(after(1), after(2))
    assert not same_weights(after(0), after(1))


def test_adapt_says_what_it_lacks(torch: Any, samples: Any) -> None:
    from dataclasses import replace

    from edgemux.compression.distill.adapt import Adapt
    from edgemux.compression.passes import Setting, Subject

    teacher = net_of(torch, 2)
    subject = Subject(net=net_of(torch, 3))
    for unlabelled, reason in (
        (None, "needs samples.unlabelled"),
        (samples.unlabelled[:, :, 1:], "must be float32"),
        (samples.unlabelled[:1], "must be float32"),
    ):
        with pytest.raises(PassError, match=f"adapt: .*{reason}"):
            Adapt().requires(subject, Setting(replace(samples, unlabelled=unlabelled), teacher))
    with pytest.raises(PassError, match="adapt: learns from the original"):
        Adapt().requires(subject, Setting(samples, None))
    headless = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 6), torch.nn.Flatten())
    with pytest.raises(PassError, match=r"adapt: .*linear layer"):
        Adapt().requires(Subject(net=headless), Setting(samples, teacher))
