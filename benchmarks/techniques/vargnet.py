"""Row 3, VarGNet: against the MobileNet of the same work, and with angular distillation against without."""

from __future__ import annotations

from functools import partial

from torch import nn

from edgemux.compression import profile
from edgemux.compression.cells import mobilenet, vargnet
from edgemux.compression.cells.sizes import nearest_width
from edgemux.compression.distill.angular import WEIGHT, distilled
from edgemux.compression.samples import Samples
from techniques import reference, students
from techniques.row import Row

# Four channels a group: the papers' eight would leave a net of this size one or two groups a layer.
WIDTH, GROUP = 0.15, 4
SEEDS = (1, 2)
# Fewer than for the other cells: three trainings a seed, and many small convolutions.
TRAIN = 4000
MAX_MACS, MAX_LOSS = 0.05, 0.005


def rows(quick: bool) -> list[Row]:
    """Three trainings a seed: the MobileNet, the VarGNet from labels, the VarGNet with a teacher."""
    train, test = students.counts(quick)
    samples = reference.fashion(min(train, TRAIN), test)
    epochs, seeds = (students.QUICK_EPOCHS, SEEDS[:1]) if quick else (students.EPOCHS, SEEDS)
    teacher = students.teacher("plain", reference.PlainNet, samples if quick else reference.fashion(), quick)
    make = partial(vargnet.student, students.SHAPE, students.CLASSES, WIDTH, group=GROUP)
    width = nearest_width(_mobile_macs, vargnet.macs(students.SHAPE, students.CLASSES, WIDTH, group=GROUP))
    mobile = partial(mobilenet.student, students.SHAPE, students.CLASSES, width)
    nets = [
        [students.taught(mobile, samples, epochs, seed) for seed in seeds],
        [students.taught(make, samples, epochs, seed) for seed in seeds],
        [_with_teacher(make(), teacher, samples, epochs, seed) for seed in seeds],
    ]
    shares = [students.accuracy(alike, samples) for alike in nets]
    graphs = [students.graph_of(alike[0], samples) for alike in nets]
    before, plain, taught = students.figures(graphs, shares, samples)
    macs = [profile.macs(graph) for graph in graphs]
    ratio, points = macs[1] / macs[0], 100 * (shares[1] - shares[0])
    about = f"{len(samples.train_x)} images, {epochs} epochs, mean of {len(seeds)} seeds"
    return [
        Row(
            number=3,
            technique="VarGNet student",
            before=before,
            after=plain,
            target="within 0.5 points of the MobileNet student of the same MACs",
            measured=f"{macs[1] / 1e6:.2f} M MACs, {ratio:.3f}× the MobileNet's; {points:+.2f} points; "
            f"{plain.ms / before.ms:.1f}× its time",
            met=abs(ratio - 1.0) <= MAX_MACS and shares[1] >= shares[0] - MAX_LOSS,
            note=f"MobileNet of width {width} -> VarGNet of width {WIDTH}, {GROUP} channels a group; {about}, "
            "labels only",
        ),
        Row(
            number=3,
            technique="VarGNet student, angular distillation",
            before=plain,
            after=taught,
            target="with angular distillation no worse than without",
            measured=f"{100 * (shares[2] - shares[1]):+.2f} points",
            met=shares[2] >= shares[1],
            note=f"teacher: the plain convolutional net, taught by {reference.TRAIN} images; weight {WEIGHT}; {about}",
        ),
    ]


def _with_teacher(net: nn.Module, teacher: nn.Module, samples: Samples, epochs: int, seed: int) -> nn.Module:
    return distilled(net, teacher, samples, epochs, WEIGHT, students.RATE, seed)


def _mobile_macs(width: float) -> int:
    return mobilenet.macs(students.SHAPE, students.CLASSES, width)
