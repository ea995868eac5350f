"""Rows 1 and 5: LASSO channel pruning with least-squares reconstruction, and ThiNet.

Criteria are told apart before any training: after it they can hardly be, on data as easy as this.
"""

from __future__ import annotations

from edgemux.compression.artifact import Artifact
from edgemux.compression.pipeline import Prefixes, compress
from edgemux.compression.prune.channels import Criterion, pruned
from edgemux.compression.samples import Samples, accuracy_of
from techniques import reference
from techniques.row import Row, figure

CRITERIA: tuple[Criterion, ...] = ("lasso", "thinet", "l1", "random")
TRAIN = "distill(T=4, epochs={})"


def rows(quick: bool) -> list[Row]:
    """Half of the channels, before and after fine-tuning."""
    samples = reference.fashion(1500, 1000) if quick else reference.fashion()
    name = "plain-quick" if quick else "plain"
    schedule = reference.QUICK if quick else reference.SCHEDULE
    net = reference.trained(name, lambda: reference.PlainNet(8 if quick else 32), samples, schedule)
    base = accuracy_of(net, samples.test_x, samples.test_y)
    raw = _accuracies(net, samples, refit=False)
    fitted = _accuracies(net, samples, refit=True)
    prefixes = Prefixes()
    epochs = 1 if quick else 8
    lasso = compress(net, samples, f"prune(lasso) > {TRAIN.format(epochs)}", memory=False, prefixes=prefixes)
    thinet = compress(net, samples, f"prune(thinet) > {TRAIN.format(epochs)}", memory=False, prefixes=prefixes)
    shown = {name: f"{100 * value:.1f}" for name, value in fitted.items()}
    bare = {name: f"{100 * value:.1f}" for name, value in raw.items()}
    share = fitted["lasso"] / base
    return [
        Row(
            1,
            "LASSO + least squares, before training",
            figure(lasso.about.original),
            figure(lasso.about.passes[0].after, _speed(lasso, 1), lasso.about.original.ms),
            "≥ 95 % of the accuracy at 50 % channels",
            f"{100 * share:.1f} %",
            share >= 0.95,
            f"refitted: {shown}; raw: {bare}. every criterion gains from the reconstruction",
        ),
        _after("LASSO + least squares, fine-tuned", 1, lasso),
        Row(
            5,
            "ThiNet, before training and refit",
            figure(thinet.about.original),
            figure(thinet.about.passes[0].after, _speed(thinet, 1), thinet.about.original.ms),
            "raw beats L1 and random",
            f"{bare['thinet']} against {bare['l1']} and {bare['random']} %",
            raw["thinet"] > max(raw["l1"], raw["random"]),
            "accuracy and bytes in the row are with the refit; the comparison is without",
        ),
        _after("ThiNet, fine-tuned", 5, thinet),
    ]


def _accuracies(net: reference.nn.Module, samples: Samples, refit: bool) -> dict[Criterion, float]:
    return {
        criterion: accuracy_of(
            pruned(net, samples.train_x, criterion, 0.5, refit=refit), samples.test_x, samples.test_y
        )
        for criterion in CRITERIA
    }


def _speed(made: Artifact, passes: int) -> float:
    """How many times faster after so many passes."""
    result = 1.0
    for item in made.about.passes[:passes]:
        result *= item.before.ms / item.after.ms
    return result


def _after(technique: str, number: int, made: Artifact) -> Row:
    drop = 100.0 * (made.about.original.accuracy - made.figures.accuracy)
    speed = made.speed
    smaller = made.about.original.params / made.figures.params
    return Row(
        number,
        technique,
        figure(made.about.original),
        figure(made.figures, speed, made.about.original.ms),
        "≤ 0.5 points, ≥ 2× fewer weights, ≥ 2× faster",
        f"{drop:+.2f} points lost, {smaller:.1f}× fewer weights, {speed:.2f}× faster",
        drop <= 0.5 and smaller >= 2.0 and speed >= 2.0,
        f"{made.about.recipe}, {made.about.versions['onnxruntime']} of ONNX Runtime",
    )
