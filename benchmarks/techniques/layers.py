"""Row 12, layer pruning: a third of a residual net's blocks go, and what distillation is worth to the rest."""

from __future__ import annotations

import copy
import time
from functools import partial

from torch import nn

from edgemux.compression.distill.lesson import Lesson, taught
from edgemux.compression.distill.logits import SHARE, TEMPERATURE
from edgemux.compression.prune.blocks import identity_blocks
from edgemux.compression.prune.layers import Layers, without_blocks
from edgemux.compression.retrain import label_loss, retrain
from edgemux.compression.samples import Samples, accuracy_of
from techniques import reference, students
from techniques.row import Row

TRAIN = 6000
SEEDS = (1, 2)
WANTED_SPEED, WANTED_DROP = 25.0, 1.0


def rows(quick: bool) -> list[Row]:
    """The reference net with and without the blocks that ``layers()`` takes out."""
    start_s = time.monotonic()
    whole = reference.fashion(1500, 500) if quick else reference.fashion()
    make = partial(reference.ResNet, 6, 2) if quick else reference.ResNet
    schedule = reference.QUICK if quick else reference.SCHEDULE
    net = reference.trained("resnet-quick" if quick else "resnet", make, whole, schedule)
    samples = whole.limited(640 if quick else TRAIN, len(whole.test_x))
    what = Layers()
    blocks = identity_blocks(net, samples.train_x)
    thin, gone = without_blocks(net, round(what.ratio * len(blocks)), samples.train_x, samples.train_y, what.probe)
    epochs, seeds = (1, SEEDS[:1]) if quick else (round(what.epochs), SEEDS)
    by_teacher = [_taught(thin, net, samples, Lesson(TEMPERATURE, SHARE, epochs, what.rate, seed)) for seed in seeds]
    by_labels = [retrain(copy.deepcopy(thin), samples, label_loss(samples), epochs, what.rate, seed) for seed in seeds]
    base, raw, soft, hard = (students.accuracy(nets, samples) for nets in ([net], [thin], by_teacher, by_labels))
    figures = students.figures(
        [students.graph_of(each, samples) for each in (net, by_teacher[0])], [base, soft], samples
    )
    fit = accuracy_of(net, samples.train_x, samples.train_y)
    before_ms, after_ms = (figure.ms or 0.0 for figure in figures)
    faster, drop = 100.0 * (1.0 - after_ms / before_ms), 100.0 * (base - soft)
    return [
        Row(
            12,
            "Layer pruning",
            *figures,
            f"latency -{WANTED_SPEED:.0f} %, drop ≤ {WANTED_DROP} points, with distillation more than without",
            f"-{faster:.0f} %, drop {drop:+.2f}, distillation {100.0 * (soft - hard):+.2f} points",
            faster >= WANTED_SPEED and drop <= WANTED_DROP and soft > hard,
            f"{len(gone)} of {len(blocks)} blocks ({', '.join(gone)}) by linear probes: {students.percent(raw)}, "
            f"then {students.percent(hard)} from labels; {len(samples.train_x)} images, {epochs} epochs, "
            f"{len(seeds)} seeds; the teacher fits {students.percent(fit)} of these images: it says little but labels",
            time.monotonic() - start_s,
        )
    ]


def _taught(thin: nn.Module, teacher: nn.Module, samples: Samples, lesson: Lesson) -> nn.Module:
    return taught(copy.deepcopy(thin), teacher, samples, lesson)
