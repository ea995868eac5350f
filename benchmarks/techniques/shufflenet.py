"""Row 35, ShuffleNet: against the MobileNet of the same work, and what its shuffles cost in ONNX Runtime."""

from __future__ import annotations

from functools import partial

from torch import nn

from edgemux.compression import gauge, profile
from edgemux.compression.cells import mobilenet, shufflenet
from edgemux.compression.cells.sizes import nearest_width
from edgemux.compression.samples import Samples
from techniques import reference, students
from techniques.row import Row

MOBILE_WIDTH = 0.5
GROUPS = 4
SEEDS = (1, 2)
MAX_MACS, MAX_LOSS = 0.05, 0.005


def rows(quick: bool) -> list[Row]:
    """Both students of the same work, trained alike."""
    samples = reference.fashion(*students.counts(quick))
    epochs, seeds = (students.QUICK_EPOCHS, SEEDS[:1]) if quick else (students.EPOCHS, SEEDS)
    width = nearest_width(_macs, mobilenet.macs(students.SHAPE, students.CLASSES, MOBILE_WIDTH))
    mobile = partial(mobilenet.student, students.SHAPE, students.CLASSES, MOBILE_WIDTH)
    pairs = [
        [students.taught(make, samples, epochs, seed) for seed in seeds] for make in (mobile, partial(_net, width))
    ]
    shares = [students.accuracy(nets, samples) for nets in pairs]
    graphs = [students.graph_of(nets[0], samples) for nets in pairs]
    before, after = students.figures(graphs, shares, samples)
    macs = [profile.macs(graph) for graph in graphs]
    ratio, points = macs[1] / macs[0], 100 * (shares[1] - shares[0])
    return [
        Row(
            number=35,
            technique="ShuffleNet student",
            before=before,
            after=after,
            target="MACs ±5 % of the MobileNet student's, accuracy within 0.5 points of its",
            measured=f"{macs[1] / 1e6:.2f} M MACs, {ratio:.3f}× the MobileNet's; {points:+.2f} points; "
            f"{after.ms / before.ms:.1f}× its time; shuffles take {100 * _shuffle_share(width, samples):.0f} % of it",
            met=abs(ratio - 1.0) <= MAX_MACS and shares[1] >= shares[0] - MAX_LOSS,
            note=f"MobileNet of width {MOBILE_WIDTH} -> ShuffleNet of width {width}, {GROUPS} groups; "
            f"{len(samples.train_x)} images, {epochs} epochs, mean of {len(seeds)} seeds, labels only; "
            "equal work is not equal time: the runtime is slow at grouped convolutions",
        )
    ]


def _net(width: float, shuffle: bool = True) -> nn.Module:
    return shufflenet.student(students.SHAPE, students.CLASSES, width, groups=GROUPS, shuffle=shuffle)


def _macs(width: float) -> int:
    return shufflenet.macs(students.SHAPE, students.CLASSES, width, groups=GROUPS)


def _shuffle_share(width: float, samples: Samples) -> float:
    """Share of the net's time in ONNX Runtime that is gone when the shuffles are left out."""
    graphs = [students.graph_of(_net(width, flag), samples) for flag in (True, False)]
    whole, without = gauge.times_ms([gauge.loaded(graph) for graph in graphs], samples.test_x[:1].numpy(), 200)
    return 1.0 - without / whole
