"""Row 26, ShrinkTeaNet: do embeddings tell apart classes that neither the teacher nor the student has seen?"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemux.compression.cells import mobilenet
from edgemux.compression.distill.angular import WEIGHT, distilled
from edgemux.compression.distill.features import embeddings_of
from edgemux.compression.distill.lesson import Lesson, taught
from edgemux.compression.distill.logits import SHARE, TEMPERATURE
from edgemux.compression.samples import Samples
from techniques import reference, students
from techniques.row import Figure, Row

# The last two classes are held out.
KNOWN = 8
WIDTH = 0.25
SEEDS = (1, 2, 3)
# Images of held-out classes that are paired, all with all.
PAIRED = 1000


def rows(quick: bool) -> list[Row]:
    """Logits and angular students of one teacher, and students without, a few seeds each."""
    train, test = students.counts(quick)
    known = only(reference.fashion(train if quick else reference.TRAIN, test), lambda y: y < KNOWN)
    unseen = only(reference.fashion(1, test), lambda y: y >= KNOWN, both=False)
    teacher = students.teacher("lenet-open-set", partial(_lenet, KNOWN), known, quick)
    epochs, seeds = (students.QUICK_EPOCHS, SEEDS[:1]) if quick else (students.EPOCHS, SEEDS)
    samples = known.limited(train, test)
    make = partial(mobilenet.student, students.SHAPE, KNOWN, WIDTH)
    soft = [_by_logits(students.fresh(make, seed), teacher, samples, epochs, seed) for seed in seeds]
    angular = [
        distilled(students.fresh(make, seed), teacher, samples, epochs, WEIGHT, students.RATE, seed) for seed in seeds
    ]
    alone = [students.taught(make, samples, epochs, seed) for seed in seeds]
    areas = [[_area(net, unseen) for net in nets] for nets in (soft, angular, alone)]
    means = [statistics.fmean(found) for found in areas]
    figures = students.figures(
        [students.graph_of(nets[0], samples) for nets in (soft, angular)],
        [students.accuracy(nets, samples) for nets in (soft, angular)],
        samples,
    )
    return [
        Row(
            number=26,
            technique="Angular distillation, open set",
            before=Figure(figures[0].accuracy, figures[0].bytes),
            after=Figure(figures[1].accuracy, figures[1].bytes),
            target="verification AUC on held-out classes at least the logits student's",
            measured=f"AUC {means[1]:.4f} ({_listed(areas[1])}) against {means[0]:.4f} ({_listed(areas[0])}); "
            f"teacher {_area(teacher, unseen):.4f}, without one {means[2]:.4f}",
            met=means[1] >= means[0],
            note=f"{KNOWN} classes known, 2 held out; accuracy on the known; logits (T {TEMPERATURE}) -> angular, "
            f"LeNet to MobileNet {WIDTH}; {len(samples.train_x)} images, {epochs} epochs, mean of {len(seeds)} seeds; "
            "an angular student is held to its teacher's directions, and so to its AUC; a logits student finds its own",
        )
    ]


def only(samples: Samples, wanted: Callable[[Tensor], Tensor], both: bool = True) -> Samples:
    """The samples whose label is wanted; ``both``: of the training images too."""
    train, test = wanted(samples.train_y), wanted(samples.test_y)
    if not both:
        train = torch.ones_like(train)
    return Samples(samples.train_x[train], samples.train_y[train], samples.test_x[test], samples.test_y[test])


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: P(a positive scores above a negative), ties half; the Mann-Whitney statistic.

    scores: float [n]; positive: bool [n].
    """
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    after = counts.cumsum(0).double()
    ranks = (after - (counts.double() - 1) / 2)[place]
    yes = int(positive.sum())
    no = len(positive) - yes
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def _area(net: nn.Module, unseen: Samples) -> float:
    """AUC of the cosine of two embeddings, over all pairs of held-out images: same class or not?"""
    x, y = unseen.test_x[:PAIRED], unseen.test_y[:PAIRED]
    directions = functional.normalize(embeddings_of(net, x), dim=1)
    first, second = torch.triu_indices(len(x), len(x), offset=1)
    return auc((directions @ directions.T)[first, second], y[first] == y[second])


def _by_logits(net: nn.Module, teacher: nn.Module, samples: Samples, epochs: int, seed: int) -> nn.Module:
    return taught(net, teacher, samples, Lesson(TEMPERATURE, SHARE, epochs, students.RATE, seed))


def _lenet(classes: int) -> nn.Module:
    net = reference.LeNet()
    net.fc2 = nn.Linear(net.fc2.in_features, classes)
    return net


def _listed(areas: list[float]) -> str:
    return ", ".join(f"{area:.3f}" for area in areas)
