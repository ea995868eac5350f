"""What every pass must do, as tests that a pass from another package can inherit.

    class TestMine(PassContract):
        def make(self) -> Pass:
            return Mine(ratio=0.5)

Override ``net`` and ``samples`` where the pass needs another kind of model.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from edgemux.compression import gauge
from edgemux.compression.pass_recipe import PassRecipe, Step
from edgemux.compression.passes import Pass, Setting, Subject
from edgemux.compression.samples import Samples, logits_of
from edgemux.compression.structure import same_weights
from edgemux.compression.to_onnx import shipped

CLASSES = 3


class PassContract:
    """Inherit, and say how the pass is made."""

    def make(self) -> Pass:
        """The pass under test."""
        raise NotImplementedError

    def net(self) -> nn.Module:
        """A small net that the pass can be applied to."""
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 16),
            nn.ReLU(),
            nn.Linear(16, CLASSES),
        ).eval()

    def samples(self) -> Samples:
        """A few inputs that the net takes."""
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(72, 1, 8, 8, generator=generator)
        y = torch.arange(72) % CLASSES
        return Samples(x[:48], y[:48], x[48:], y[48:], unlabelled=x[:24] * 0.5)

    def setting(self, net: nn.Module) -> Setting:
        """Little training: contracts are not about accuracy. A named target: ``auto`` chooses by time."""
        return Setting(self.samples(), copy.deepcopy(net).eval(), target="x86-avx2", effort=0.01)

    def subject(self, net: nn.Module) -> Subject:
        """The net as a recipe begins with it."""
        return Subject(net=net)

    def test_the_net_passed_in_is_never_changed(self) -> None:
        """Weights, statistics and mode."""
        net = self.net()
        before = copy.deepcopy(net)
        setting, subject = self.setting(net), self.subject(net)
        what = self.make()
        what.requires(subject, setting)
        what.apply(subject, setting)
        assert same_weights(before, net)
        assert not net.training
        assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]

    def test_the_result_answers_in_onnx_what_it_answers_in_torch(self) -> None:
        """For as many inputs as come, with outputs of the same shape as before."""
        net = self.net()
        setting, subject = self.setting(net), self.subject(net)
        what = self.make()
        after = what.apply(subject, setting)
        what.ensures(subject, after, setting)
        answers = gauge.answers(gauge.loaded(shipped(after, setting.samples)), setting.samples.test_x.numpy())
        assert answers.shape == (len(setting.samples.test_x), CLASSES)
        assert np.isfinite(answers).all()
        if after.graph is None and after.net is not None:
            self.compare(answers, logits_of(after.net, setting.samples.test_x).numpy())

    def compare(self, answers: np.ndarray, wanted: np.ndarray) -> None:
        """Largest difference of logits; a pass that rounds activations may override it and say why."""
        assert np.abs(answers - wanted).max() < 1e-3

    def test_it_does_the_same_for_the_same_seed(self) -> None:
        """A recipe is a value: for a named target its result may be kept."""
        files = []
        for _ in range(2):
            net = self.net()
            torch.manual_seed(5)
            after = self.make().apply(self.subject(net), self.setting(net))
            files.append(shipped(after, self.samples()).SerializeToString(deterministic=True))
        assert files[0] == files[1]

    def test_it_reads_back_from_its_own_text(self) -> None:
        """So that a report can be run again."""
        recipe = PassRecipe((Step(self.make()),))
        assert PassRecipe.of(str(recipe)) == recipe
        assert hash(PassRecipe.of(str(recipe))) == hash(recipe)

    def test_it_promises_only_what_can_be_measured(self) -> None:
        """Speed, storage or accuracy; a stage that there is."""
        what = self.make()
        assert what.gives <= {"speed", "storage", "accuracy"}
        assert what.stage in ("torch", "onnx")
