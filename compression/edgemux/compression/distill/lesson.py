"""A net learns from the labels and from a teacher's softened outputs (Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from edgemux.compression.augment import Batch
from edgemux.compression.distill.family import distilled
from edgemux.compression.fit import Loss
from edgemux.compression.passes import Setting, Subject, net_of
from edgemux.compression.retrain import retrain
from edgemux.compression.samples import Samples, logits_of
from edgemux.multiplexer.errors import PassError

Answers = Callable[[Batch], Tensor]


@dataclass(frozen=True, slots=True)
class Lesson:
    """How to learn. temperature: softens both sides; share: of the loss that follows the teacher, the rest the labels.

    rate: peak of the one-cycle schedule.
    """

    temperature: float
    share: float
    epochs: int
    rate: float
    seed: int = 0


def answers_of(teacher: nn.Module, samples: Samples) -> Answers:
    """The teacher's logits for batches of ``samples.draw``, float32 [n, classes], in evaluation mode, no gradients.

    They are computed once for all inputs where training inputs stay as they are, and anew for every batch where
    ``samples.change`` makes different ones of them.
    """
    if samples.change is not None:
        return lambda batch: logits_of(teacher, batch.pixels).clone()
    # The clone leaves inference mode: what was made in it cannot take part in a backward pass.
    once = logits_of(teacher, samples.train_x).clone()
    return lambda batch: once[batch.index]


def soft_loss(logits: Tensor, teacher: Tensor, labels: Tensor, lesson: Lesson) -> Tensor:
    """(1 - share) cross-entropy + share T^2 KL(teacher || net) at T, the mean over inputs.

    logits, teacher: float [n, classes]; labels: int64 [n]. Section 2 of Hinton et al. 2015.
    """
    return distilled(logits.float()[None], teacher, labels, lesson.share, lesson.temperature)[0]


def distilling(teacher: nn.Module, samples: Samples, lesson: Lesson) -> Loss:
    """The training loss of a net that learns from this teacher."""
    answers = answers_of(teacher, samples)

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        return soft_loss(net(batch.pixels), answers(batch), samples.train_y[batch.index], lesson)

    return loss


def taught(net: nn.Module, teacher: nn.Module, samples: Samples, lesson: Lesson) -> nn.Module:
    """Train ``net`` in place from the labels and the teacher; returned in evaluation mode."""
    return retrain(net, samples, distilling(teacher, samples, lesson), lesson.epochs, lesson.rate, lesson.seed)


def teacher_of(subject: Subject, setting: Setting, label: str) -> nn.Module:
    """The net as it was given. Raises PassError without one, and when it knows other classes than the subject does."""
    net = net_of(subject, label)
    if setting.original is None:
        raise PassError(f"{label}: learns from the original torch net, and there is none")
    x = setting.samples.train_x[:2]
    mine, teachers = logits_of(net, x).shape[1], logits_of(setting.original, x).shape[1]
    if mine != teachers:
        raise PassError(f"{label}: the net answers {mine} classes, its teacher {teachers}")
    return setting.original
