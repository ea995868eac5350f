"""Row 14: integer quantisation after training and with it, and what the target's types are worth here."""

from __future__ import annotations

from edgemux.compression.artifact import Artifact
from edgemux.compression.pipeline import compress
from edgemux.compression.quantize.targets import TARGETS
from edgemux.compression.samples import Samples
from techniques import reference
from techniques.row import Row, figure

SMALLER, PTQ_DROP, QAT_DROP = 3.5, 0.5, 0.2


def rows(quick: bool) -> list[Row]:
    """int8 on a net of 9 M multiply-accumulates; the types of every target beside the choice."""
    samples = reference.fashion(1500, 1000) if quick else reference.fashion()
    schedule = reference.QUICK if quick else reference.SCHEDULE
    width = 8 if quick else 32
    net = reference.trained("plain-quick" if quick else "plain", lambda: reference.PlainNet(width), samples, schedule)
    ptq = compress(net, samples, "int8!", memory=False)
    qat = compress(net, samples, f"qat({1 if quick else 2}) > int8!", memory=False)
    beside = ", ".join(f"{target} {_beside(net, samples, target)}" for target in TARGETS)
    return [
        _row("int8 after training", ptq, PTQ_DROP, f"chosen here among the types of all targets; each alone: {beside}"),
        _row(
            "int8 with training (QAT)",
            qat,
            QAT_DROP,
            "torchao's pt2e trains, ONNX Runtime's quantiser writes the graph",
        ),
    ]


def _beside(net: reference.nn.Module, samples: Samples, target: str) -> str:
    made = compress(net, samples, "int8!", target, memory=False)
    return f"{100 * made.figures.accuracy:.2f} % {made.speed:.2f}×"


def _row(technique: str, made: Artifact, allowed: float, note: str) -> Row:
    first = made.about.original
    drop = 100.0 * (first.accuracy - made.figures.accuracy)
    smaller = first.stored_bytes / made.figures.stored_bytes
    return Row(
        14,
        technique,
        figure(first),
        figure(made.figures, made.speed, first.ms),
        f"≥ {SMALLER}× smaller, ≤ {allowed} points",
        f"{smaller:.2f}× smaller, {drop:+.2f} points lost, {made.speed:.2f}× the speed",
        smaller >= SMALLER and drop <= allowed,
        note,
    )
