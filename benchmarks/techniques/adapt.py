"""Row 27, MobileDA: a net trained on clean pictures meets turned, noisy or pale ones, of which none has a label."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from edgemux.compression.distill.adapt import DISTANCES, Adapt
from edgemux.compression.passes import Setting, Subject
from edgemux.compression.retrain import Finetune, recalibrate
from edgemux.compression.samples import Samples, accuracy_of
from techniques import distill, reference, students
from techniques.row import Figure, Row

WIDTH = 8
TRAIN, TEST = 3000, 3000
# First from labels of the clean pictures; then as long again, adapted or from labels of the changed ones.
EPOCHS, RATE, MORE_RATE = 10, 0.1, 0.02
DEGREES, NOISE, CONTRAST = 20.0, 0.25, 0.5
WANTED_SHARE = 0.5
Shift = Callable[[Tensor, torch.Generator], Tensor]


def turned(x: Tensor, _: torch.Generator) -> Tensor:
    """Pictures [n, 1, h, w] turned by 20 degrees about their middle."""
    cos, sin = math.cos(math.radians(DEGREES)), math.sin(math.radians(DEGREES))
    matrix = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).repeat(len(x), 1, 1)
    grid = nn.functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False)


def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    """With Gaussian noise, clipped to 0..1."""
    return (x + NOISE * torch.randn(x.shape, generator=generator)).clamp(0.0, 1.0)


def pale(x: Tensor, _: torch.Generator) -> Tensor:
    """With half the contrast, about grey."""
    return CONTRAST * (x - 0.5) + 0.5


SHIFTS: dict[str, Shift] = {"rotation": turned, "noise": noisy, "contrast": pale}


def rows(quick: bool) -> list[Row]:
    """A row a shift; one source-only net for all of them."""
    teacher = distill.teacher(quick)
    train, test, epochs = (640, 500, 1) if quick else (TRAIN, TEST, EPOCHS)
    both = reference.fashion(2 * train, test)
    source = both.limited(train, test)
    fresh = students.fresh(partial(reference.PlainNet, WIDTH), seed=1)
    start = Finetune(epochs=epochs, rate=RATE).apply(Subject(net=fresh), Setting(source, teacher))
    shifts = dict(list(SHIFTS.items())[:1]) if quick else SHIFTS
    return [_row(name, shift, start, teacher, source, both, epochs) for name, shift in shifts.items()]


def _row(
    name: str, shift: Shift, start: Subject, teacher: nn.Module, source: Samples, both: Samples, epochs: int
) -> Row:
    start_s = time.monotonic()
    train, generator = len(source.train_x), torch.Generator().manual_seed(reference.SEED)
    unlabelled, test_x = shift(both.train_x[train:], generator), shift(source.test_x, generator)
    samples = replace(source, test_x=test_x, unlabelled=unlabelled)
    labelled = replace(samples, train_x=unlabelled, train_y=both.train_y[train:])
    more = max(1, epochs // 2)
    found = {"source": _accuracy(start, samples)}
    supervised = Finetune(epochs=more, rate=MORE_RATE).apply(start, Setting(labelled, teacher))
    found["supervised"] = _accuracy(supervised, samples)
    for method in DISTANCES:
        adapted = Adapt(method=method, epochs=more, rate=MORE_RATE).apply(start, Setting(samples, teacher))
        found[method] = _accuracy(adapted, samples)
    gap = found["supervised"] - found["source"]
    shares = {method: (found[method] - found["source"]) / gap for method in DISTANCES}
    default = Adapt().method
    assert start.net is not None
    size = len(students.graph_of(start.net, samples).SerializeToString())
    return Row(
        27,
        f"Domain adaptation, {name}",
        Figure(found["source"], size),
        Figure(found[default], size),
        f"≥ {100 * WANTED_SHARE:.0f} % of the gap to training on labels of the target",
        ", ".join(f"{method} {100 * share:.0f} %" for method, share in shares.items()),
        shares[default] >= WANTED_SHARE,
        f"{default} counts; supervised {students.percent(found['supervised'])}, the teacher in the target domain "
        f"{students.percent(accuracy_of(teacher, test_x, samples.test_y))}, batch statistics of the target alone "
        f"{students.percent(_with_statistics(start, samples))}; {train} images of each domain, one seed; "
        "the default weight of the distance was chosen on held-out training images",
        time.monotonic() - start_s,
    )


def _with_statistics(subject: Subject, samples: Samples) -> float:
    """Accuracy with nothing changed but the batch statistics (AdaBN, Li et al. 2016)."""
    net = copy.deepcopy(subject.net)
    assert net is not None
    assert samples.unlabelled is not None
    recalibrate(net, samples.unlabelled)
    return accuracy_of(net, samples.test_x, samples.test_y)


def _accuracy(subject: Subject, samples: Samples) -> float:
    assert subject.net is not None
    return accuracy_of(subject.net, samples.test_x, samples.test_y)
