"""Row 4, MobileNet: what the width and the resolution multiplier cost and give."""

from __future__ import annotations

from itertools import pairwise

from edgemux.compression import profile
from edgemux.compression.cells import mobilenet
from edgemux.compression.samples import Samples
from techniques import reference, students
from techniques.row import Row

WIDTHS = (0.25, 0.5, 0.75, 1.0)
MAX_FALL, MAX_ERROR = 0.003, 0.01


def rows(quick: bool) -> list[Row]:
    """The sweep over the width multiplier; the resolution multiplier is checked for its cost only."""
    samples = reference.fashion(*students.counts(quick))
    epochs = students.QUICK_EPOCHS if quick else students.EPOCHS
    widths = WIDTHS[:2] if quick else WIDTHS
    nets = [
        students.taught(lambda w=width: mobilenet.student(students.SHAPE, students.CLASSES, w), samples, epochs, 1)
        for width in widths
    ]
    graphs = [students.graph_of(net, samples) for net in nets]
    found = students.figures(graphs, [students.accuracy([net], samples) for net in nets], samples)
    macs = [profile.macs(graph) for graph in graphs]
    errors = [
        abs(mobilenet.macs(students.SHAPE, students.CLASSES, width) / count - 1)
        for width, count in zip(widths, macs, strict=True)
    ]
    errors.append(_resolution_error(samples))
    rises = all(low < high for low, high in pairwise(macs))
    falls = [low.accuracy - high.accuracy for low, high in pairwise(found)]
    sweep = ", ".join(
        f"{width}: {count / 1e6:.2f} M {students.percent(figure.accuracy)}"
        for width, count, figure in zip(widths, macs, found, strict=True)
    )
    return [
        Row(
            number=4,
            technique="MobileNet student, width multiplier",
            before=found[-1],
            after=found[0],
            target="MACs rise with the width; predicted = profiled ±1 %; accuracy falls nowhere by over 0.3 points",
            measured=f"{sweep}; largest error {100 * max(errors):.2f} %, largest fall {100 * max(falls):+.2f} points",
            met=rises and max(errors) <= MAX_ERROR and max(falls) <= MAX_FALL,
            note=f"widths {widths[-1]} -> {widths[0]}; {len(samples.train_x)} images, {epochs} epochs, one seed, "
            "labels only; the error of the prediction covers resolution 0.5 too",
        )
    ]


def _resolution_error(samples: Samples) -> float:
    """Relative error of the predicted MACs at half the resolution."""
    net = mobilenet.student(students.SHAPE, students.CLASSES, 0.5, 0.5).eval()
    count = profile.macs(students.graph_of(net, samples))
    return abs(mobilenet.macs(students.SHAPE, students.CLASSES, 0.5, 0.5) / count - 1)
