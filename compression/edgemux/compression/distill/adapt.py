"""``adapt(method)``: a net for inputs that look other than the labelled ones (MobileDA, Yang et al. 2020).

Learns at once from the labels of the source domain, from the teacher's soft labels, and from the distance between the
features of both domains, which it makes small. Of the target domain, soft labels count where net and teacher name the
same class: a teacher that is lost there is often wrong, but seldom in the same way. Without that, a
net for pictures turned by 30 degrees fell from 53 % to 43 %, as its teacher knew 41 % (Fashion-MNIST, measured).

Batch statistics: each domain is normalised by its own while training, since a mixture fits neither. What is deployed
meets the target domain only, so at the end they are measured on the unlabelled inputs (Li et al. 2016, AdaBN). So are
the teacher's, in a copy, before it is asked about the target domain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from edgemux.compression.augment import Batch
from edgemux.compression.distill.domains import coral, mmd
from edgemux.compression.distill.features import Features, anatomy_of, check_anatomy, watched
from edgemux.compression.distill.lesson import Lesson, answers_of, soft_loss, teacher_of
from edgemux.compression.distill.logits import SHARE, TEMPERATURE, SoftShare, Temperature
from edgemux.compression.fit import Loss
from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.retrain import Epochs, Rate, recalibrate, retrain
from edgemux.compression.samples import Samples
from edgemux.multiplexer.errors import PassError

Method = Literal["coral", "mmd"]
Distance = Callable[[Tensor, Tensor], Tensor]
DISTANCES: dict[Method, Distance] = {"coral": coral, "mmd": mmd}
# The 4 d^2 makes CORAL small; with this factor a weight means about the same for both.
SCALES: dict[Method, float] = {"coral": 10.0, "mmd": 1.0}
EPOCHS, RATE = 5.0, 0.02
# The T^2 of soft labels is 16: of 0, 1, 5 and 20 this was best on held-out training images for each of three shifts.
WEIGHT = 20.0


def adapted(
    net: nn.Module, teacher: nn.Module, samples: Samples, target: Tensor, lesson: Lesson, method: Method, weight: float
) -> nn.Module:
    """Train ``net`` in place for the domain of ``target``, float32 [n, ...]; returned in evaluation mode.

    weight: of the distance of features, which are what the last linear layer reads. The teacher stays as it is. Raises
    PassError when the net does not end in a linear layer.
    """
    anatomy = replace(anatomy_of(net, samples.train_x[:2]), maps=())
    with watched(net, anatomy) as see:
        loss = _loss(see, teacher, samples, target, lesson, DISTANCES[method], SCALES[method] * weight)
        retrain(net, samples, loss, lesson.epochs, lesson.rate, lesson.seed)
    recalibrate(net, target)
    return net


def _loss(
    see: Callable[[Tensor], Features],
    teacher: nn.Module,
    samples: Samples,
    target: Tensor,
    lesson: Lesson,
    distance: Distance,
    weight: float,
) -> Loss:
    generator = torch.Generator().manual_seed(lesson.seed)
    theirs = replace(samples, train_x=target, train_y=torch.zeros(len(target), dtype=torch.int64))
    at_home = copy.deepcopy(teacher)
    recalibrate(at_home, target)
    source_answers, target_answers = answers_of(teacher, samples), answers_of(at_home, theirs)
    soft = replace(lesson, share=1.0)

    def loss(_: nn.Module, batch: Batch) -> Tensor:
        index = torch.randint(len(target), (len(batch.index),), generator=generator)
        other = theirs.draw(index, generator)
        here, there = see(batch.pixels), see(other.pixels)
        labels = samples.train_y[batch.index]
        learnt = soft_loss(here.logits, source_answers(batch), labels, lesson)
        said = target_answers(other)
        agreed = said.argmax(1) == there.logits.argmax(1)
        scale = here.embedding.detach().square().mean().sqrt().clamp_min(1e-6)
        apart = distance(here.embedding / scale, there.embedding / scale)
        value = learnt + weight * apart
        if agreed.any():
            followed = soft_loss(there.logits[agreed], said[agreed], theirs.train_y[index][agreed], soft)
            value = value + lesson.share * agreed.float().mean() * followed
        return value

    return loss


class Adapt(Pass, frozen=True):
    """``adapt(method, epochs, rate, weight, T, share)``: move to the domain of ``samples.unlabelled``.

    method: the distance of features, mmd, or coral, which is blind to their means; weight: of it. T, share: of
    distillation, as in ``distill``. The test inputs should be of the target domain: they judge the result.
    """

    label: ClassVar[str] = "adapt"
    gives: ClassVar[frozenset[Gain]] = frozenset({"accuracy"})

    method: Method = "mmd"
    epochs: Epochs = EPOCHS
    rate: Rate = RATE
    weight: Annotated[float, Meta(ge=0.0, le=1000.0)] = WEIGHT
    T: Temperature = TEMPERATURE
    share: SoftShare = SHARE

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net that ends in a linear layer, a torch teacher, and unlabelled inputs of the target domain."""
        net = net_of(subject, self.label)
        teacher_of(subject, setting, self.label)
        target = _target(setting)
        if target.shape[1:] != setting.samples.train_x.shape[1:] or len(target) < 2:
            raise PassError(f"{self.label}: samples.unlabelled must be float32 {['n > 1', *setting.samples.shape]}")
        check_anatomy(self.label, net, setting.samples.train_x[:2])

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Train a copy of the net."""
        net, teacher = copy.deepcopy(net_of(subject, self.label)), teacher_of(subject, setting, self.label)
        lesson = Lesson(self.T, self.share, setting.epochs(self.epochs), self.rate, setting.seed)
        adapted(net, teacher, setting.samples, _target(setting), lesson, self.method, self.weight)
        return subject.with_net(net)


def _target(setting: Setting) -> Tensor:
    if setting.samples.unlabelled is None:
        raise PassError("adapt: needs samples.unlabelled, inputs of the domain to adapt to")
    return setting.samples.unlabelled
