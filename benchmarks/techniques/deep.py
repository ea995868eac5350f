"""Row 7, Deep Compression (Han et al. 2016), on the LeNet of the paper; and its storage forms without training."""

from __future__ import annotations

import time

import numpy as np
import onnx
from torch import nn

from edgemux.compression import gauge
from edgemux.compression.deep import container
from edgemux.compression.deep.passes import Deep, same_model
from edgemux.compression.deep.post import Codebook, Fp16, Int8Weights
from edgemux.compression.passes import Pass, Setting, Subject
from edgemux.compression.recipe import Schedule
from edgemux.compression.samples import Samples
from edgemux.compression.to_onnx import exported, shipped
from techniques import reference
from techniques.row import Figure, Row

SEEDS = (0, 1, 2)
SMALLER, MAX_DROP = 20.0, 0.5
# How much the medians of two equal graphs may differ on a shared machine.
SAME_SPEED = 0.10
QUICK_TRAIN, QUICK_TEST = 1000, 500
QUICK = Schedule(epochs=2, batch=128, peak_rate=0.1, bf16=False)
# What fact 6 and the table of TECHNIQUES.md found for these forms, a little below.
AFTER_TRAINING: tuple[tuple[Pass, float], ...] = ((Codebook(4), 7.0), (Int8Weights(), 3.8), (Fp16(), 1.9))


def rows(quick: bool) -> list[Row]:
    """The container, the ONNX form of the same net, and three passes on a trained graph."""
    samples = reference.fashion(QUICK_TRAIN, QUICK_TEST) if quick else reference.fashion()
    net = reference.trained("lenet", reference.LeNet, samples, QUICK if quick else reference.SCHEDULE)
    plain = exported(net, samples.test_x)
    found = [_deep(net, plain, samples, seed, 0.1 if quick else 1.0) for seed in (SEEDS[:1] if quick else SEEDS)]
    return [_contained(found), _as_onnx(found[0]), *(_stored(plain, samples, *case) for case in AFTER_TRAINING)]


class _Outcome:
    """One run: figures before and after, both forms, and whether they are the clustered net bit for bit."""

    def __init__(self, plain: onnx.ModelProto, small: onnx.ModelProto, samples: Samples) -> None:
        self.before, self.after = _figures([plain, small], samples)
        self.contained, self.exact, self.alike, self.seconds = 0, False, False, 0.0

    @property
    def drop(self) -> float:
        """Points of accuracy lost."""
        return 100 * (self.before.accuracy - self.after.accuracy)


def _deep(net: nn.Module, plain: onnx.ModelProto, samples: Samples, seed: int, effort: float) -> _Outcome:
    start_s = time.monotonic()
    what, setting = Deep(), Setting(samples, net, seed=seed, effort=effort)
    before = Subject(net=net)
    after = what.apply(before, setting)
    what.ensures(before, after, setting)
    assert after.net is not None
    small, clustered = shipped(after, samples), exported(after.net, samples.test_x)
    outcome = _Outcome(plain, small, samples)
    outcome.contained = len(after.files[container.FILE])
    outcome.exact = same_model(container.decode(after.files[container.FILE]), clustered)
    x = samples.test_x.numpy()
    outcome.alike = bool(np.array_equal(*(gauge.answers(gauge.loaded(form), x) for form in (small, clustered))))
    outcome.seconds = time.monotonic() - start_s
    return outcome


def _contained(found: list[_Outcome]) -> Row:
    """The acceptance figure: mean over the seeds."""
    drops = [outcome.drop for outcome in found]
    ratio = min(outcome.before.bytes / outcome.contained for outcome in found)
    exact = all(outcome.exact for outcome in found)
    first = found[0]
    return Row(
        number=7,
        technique="Deep Compression, .dcz container",
        before=first.before,
        after=Figure(float(np.mean([outcome.after.accuracy for outcome in found])), first.contained),
        target=f"≥ {SMALLER:.0f}× smaller, mean drop ≤ {MAX_DROP} points, decoded bit for bit",
        measured=f"{ratio:.1f}× smaller, drop {np.mean(drops):.2f} points ({', '.join(f'{d:+.2f}' for d in drops)}), "
        f"{'every bit' if exact else 'bits differ'}",
        met=ratio >= SMALLER and float(np.mean(drops)) <= MAX_DROP and exact,
        note=f"90 % removed, 16 values a layer, {len(found)} seed(s); storage only: the decoded graph runs dense. "
        "The paper's LeNet-5 on MNIST, 39×, is an easier task",
        seconds=sum(outcome.seconds for outcome in found),
    )


def _as_onnx(outcome: _Outcome) -> Row:
    """Codes and codebooks in the graph, which the runtime folds."""
    ratio, speed = outcome.before.bytes / outcome.after.bytes, _speed(outcome.before, outcome.after)
    return Row(
        number=7,
        technique="Deep Compression, codebooks in ONNX",
        before=outcome.before,
        after=outcome.after,
        target=f"≥ 7× smaller at the same speed ±{SAME_SPEED:.0%}, answers of the plain clustered weights bit for bit",
        measured=f"{ratio:.1f}× smaller at {speed:.2f}× the speed, {'same' if outcome.alike else 'other'} answers",
        met=ratio >= 7.0 and abs(speed - 1.0) <= SAME_SPEED and outcome.alike,
        note="4-bit codes packed in bytes, unfolded by Gather at load: operator set 17; 4-bit integers need 21",
    )


def _stored(plain: onnx.ModelProto, samples: Samples, what: Pass, smaller: float) -> Row:
    start_s = time.monotonic()
    small = shipped(what.apply(Subject(graph=plain), Setting(samples, None)), samples)
    before, after = _figures([plain, small], samples)
    ratio, speed, drop = before.bytes / after.bytes, _speed(before, after), before.accuracy - after.accuracy
    return Row(
        number=7,
        technique=f"{what.label}, without training",
        before=before,
        after=after,
        target=f"≥ {smaller}× smaller, drop ≤ {MAX_DROP} points, same speed ±{SAME_SPEED:.0%}",
        measured=f"{ratio:.1f}× smaller, drop {100 * drop:.2f} points, {speed:.2f}× the speed",
        met=ratio >= smaller and 100 * drop <= MAX_DROP and abs(speed - 1.0) <= SAME_SPEED,
        note="storage only",
        seconds=time.monotonic() - start_s,
    )


def _speed(before: Figure, after: Figure) -> float:
    assert before.ms is not None
    assert after.ms is not None
    return before.ms / after.ms


def _figures(graphs: list[onnx.ModelProto], samples: Samples) -> list[Figure]:
    """Accuracy, bytes and ms, timed in turns."""
    models = [gauge.loaded(graph) for graph in graphs]
    times = gauge.times_ms(models, samples.test_x[:1].numpy())
    right = [gauge.answers(model, samples.test_x.numpy()).argmax(1) == samples.test_y.numpy() for model in models]
    return [
        Figure(float(hits.mean()), graph.ByteSize(), ms) for hits, graph, ms in zip(right, graphs, times, strict=True)
    ]
