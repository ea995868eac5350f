"""Angular distillation: the student's features point where the teacher's point, however long they are.

ShrinkTeaNet (Duong et al. 2019, arXiv 1905.10620): 1 - cos on the embedding and on intermediate features, which keeps
what the teacher knows about classes that neither has seen. Rounds are VarGFaceNet's recursive distillation (Yan et al.
2019, arXiv 1910.04985): the student of a round initialises the next one's, the teacher stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import takewhile
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from edgemux.compression.augment import Batch
from edgemux.compression.distill.features import Anatomy, Features, anatomy_of, check_anatomy, positions, watched
from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.retrain import Epochs, Rate, retrain
from edgemux.compression.samples import Samples
from edgemux.multiplexer.errors import PassError

EPOCHS, RATE, WEIGHT = 10.0, 0.1, 1.0
# Larger maps are averaged down to this: every position is an angle to compute, and neighbours say much the same.
MAX_SIDE = 7


def angular_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos of the angle between vectors along the last axis, in 0..2; their lengths do not matter."""
    return (1.0 - functional.cosine_similarity(student, teacher, dim=-1)).mean()


class Pupil(nn.Module):
    """A student with what training alone needs: a linear map for each of its features as wide as the teacher's.

    Features of the same width are compared as they are. Maps are paired from the smallest up, as long as both are
    images or both sequences, and averaged down to the smaller of the two, and to 7 px at most.
    """

    def __init__(self, net: nn.Module, mine: Anatomy, teachers: Anatomy) -> None:
        super().__init__()
        self.net = net
        pairs = zip(reversed(mine.maps), reversed(teachers.maps), strict=False)
        alike = list(takewhile(lambda pair: pair[0].axes == pair[1].axes, pairs))
        self.pairs = len(alike)
        widths = [(mine.features, teachers.features), *((here.channels, there.channels) for here, there in alike)]
        self.projections = nn.ModuleList(
            nn.Identity() if here == there else nn.Linear(here, there, bias=False) for here, there in widths
        )

    def angles(self, mine: Features, teachers: Features) -> Tensor:
        """Angular loss of the embeddings plus its mean over the pairs of maps."""
        total = angular_loss(self.projections[0](mine.embedding), teachers.embedding)
        for at in range(1, 1 + self.pairs):
            here, there = mine.maps[-at], teachers.maps[-at]
            size = tuple(min(*sides, MAX_SIDE) for sides in zip(here.shape[2:], there.shape[2:], strict=True))
            projected = self.projections[at](positions(here, size))
            total = total + angular_loss(projected, positions(there, size)) / self.pairs
        return total


def distilled(
    net: nn.Module, teacher: nn.Module, samples: Samples, epochs: int, weight: float, rate: float, seed: int
) -> nn.Module:
    """Train ``net`` in place: cross-entropy + ``weight`` times the angular losses; returned in evaluation mode.

    teacher: unchanged, put into evaluation mode. Raises PassError when either has no embedding.
    """
    example = samples.train_x[:2]
    mine, teachers = anatomy_of(net, example), anatomy_of(teacher.eval(), example)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pupil = Pupil(net, mine, teachers)
    with watched(net, mine) as see_mine, watched(teacher, teachers) as see_teachers:
        retrain(pupil, samples, _loss(pupil, samples, see_mine, see_teachers, weight), epochs, rate, seed)
    return net.eval()


def _loss(
    pupil: Pupil,
    samples: Samples,
    see_mine: Callable[[Tensor], Features],
    see_teachers: Callable[[Tensor], Features],
    weight: float,
) -> Callable[[nn.Module, Batch], Tensor]:
    def loss(_: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            teachers = see_teachers(batch.pixels)
        mine = see_mine(batch.pixels)
        hard = functional.cross_entropy(mine.logits.float(), samples.train_y[batch.index])
        return hard + weight * pupil.angles(mine, teachers)

    return loss


class Angular(Pass, frozen=True):
    """``angular(epochs, weight, rate, rounds)``: learn the directions of the original net's features.

    weight: of the angular losses beside the cross-entropy. rounds: so many trainings, each from the last one's student.
    """

    label: ClassVar[str] = "angular"
    gives: ClassVar[frozenset[Gain]] = frozenset({"accuracy"})

    epochs: Epochs = EPOCHS
    weight: Annotated[float, Meta(gt=0.0, le=1000.0)] = WEIGHT
    rate: Rate = RATE
    rounds: Annotated[int, Meta(ge=1, le=10)] = 1

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net and a torch teacher that both end in a linear layer."""
        net = net_of(subject, self.label)
        if setting.original is None:
            raise PassError(f"{self.label}: needs the original torch net as its teacher, an ONNX file was given")
        for part in (net, setting.original):
            check_anatomy(self.label, part, setting.samples.train_x[:2])

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Train a copy of the net against a copy of the original."""
        net, teacher = copy.deepcopy(net_of(subject, self.label)), copy.deepcopy(setting.original)
        assert teacher is not None  # ``requires`` says so
        epochs = setting.epochs(self.epochs)
        for at in range(self.rounds):
            distilled(net, teacher, setting.samples, epochs, self.weight, self.rate, setting.seed + at)
        return subject.with_net(net)
