"""Row 24, knowledge distillation: what the teacher's softened outputs are worth to a small net beside the labels."""

from __future__ import annotations

import statistics
import time
from functools import partial

from torch import nn

from edgemux.compression.distill.logits import Distill
from edgemux.compression.passes import Setting, Subject
from edgemux.compression.retrain import Finetune
from techniques import reference, students
from techniques.row import Figure, Row

WIDTH = 8
# Both ways of learning have the same schedule; fresh nets need more than the passes' defaults, which train nets on.
EPOCHS, RATE = 8, 0.1
SEEDS = (1, 2, 3)
WANTED_POINTS = 0.3


def teacher(quick: bool) -> nn.Module:
    """The reference net without shortcuts."""
    if quick:
        samples = reference.fashion(1500, 1000)
        return reference.trained("plain-quick", partial(reference.PlainNet, 8), samples, reference.QUICK)
    return reference.trained("plain", reference.PlainNet, reference.fashion())


def rows(quick: bool) -> list[Row]:
    """Students of three seeds, each trained twice from the same weights."""
    start_s = time.monotonic()
    large = teacher(quick)
    samples = reference.fashion(*students.counts(quick))
    epochs, seeds = (1, SEEDS[:1]) if quick else (EPOCHS, SEEDS)
    passes = Finetune(epochs=epochs, rate=RATE), Distill(epochs=epochs, rate=RATE)
    nets: list[list[nn.Module]] = [[], []]
    for seed in seeds:
        subject = Subject(net=students.fresh(partial(reference.PlainNet, WIDTH), seed))
        setting = Setting(samples, large, seed=seed)
        for made, what in zip(nets, passes, strict=True):
            net = what.apply(subject, setting).net
            assert net is not None
            made.append(net)
    alone, taught = ([students.accuracy([net], samples) for net in made] for made in nets)
    gains = [100.0 * (after - before) for before, after in zip(alone, taught, strict=True)]
    size = len(students.graph_of(nets[1][0], samples).SerializeToString())
    return [
        Row(
            24,
            "Logits distillation",
            Figure(statistics.fmean(alone), size),
            Figure(statistics.fmean(taught), size),
            f"+{WANTED_POINTS} points over no distillation",
            f"{statistics.fmean(gains):+.2f} points ({', '.join(f'{gain:+.2f}' for gain in gains)})",
            statistics.fmean(gains) >= WANTED_POINTS,
            f"PlainNet({WIDTH}) from a PlainNet of {students.percent(students.accuracy([large], samples))}, T 4, "
            f"share 0.7; {len(samples.train_x)} images, {epochs} epochs, {len(seeds)} seeds; target as on MNIST-1D",
            time.monotonic() - start_s,
        )
    ]
