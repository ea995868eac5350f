"""Makes the starter bundle's bottlenecks and measures them: bytes on the way against accuracy, beside pictures.

    python benchmarks/split_training.py [--limit IMAGES] [--epochs N N N N] [--work DIR] [--out DIR] [--full]

"continuation": the encoder reads what device level 3 leaves behind, so nothing is computed twice; the cloud goes on
with the last residual block of its model. "bottleneck": the encoder reads the picture itself, and sends the same kind
of values to the same tail. Four trainings, on one thread, each kept in the work folder and resumed at its last epoch:

1. encoder and decoder of the continuation, so that the decoder gives the tensor that the cloud's model has there;
2. the same, so that the tail behind it, as it is in the cloud's model, answers as that does;
3. the same with the tail, which is then no longer a part of the cloud's model;
4. the encoder of the bottleneck alone, with the decoder and the tail that are there then.

One of no epochs is left out.

By default a few images, which shows that everything runs; figures of the full setting are in docs/split.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console

from edgemux.compression.recipe import Augment, Schedule
from edgemux.compression.split.bottleneck import Decoder, Encoder, Pair
from edgemux.compression.split.graph_net import trainable
from edgemux.compression.split.shapes import example
from edgemux.compression.split.teach import Weights, teach
from edgemux.multiplexer.errors import EdgemuxError
from split_bench.measured import measure
from split_bench.report import judged, report
from split_bench.study import CHANNELS, CUT, LEFT_BEHIND, PICTURE, SEED, SIZE, Study, picture

# Of the four trainings.
FULL_EPOCHS = (5, 0, 0, 2)
AUGMENT = Augment(flip=True, shift_px=1, erase=0.0)


class Trainings:
    """The four, each done once: its weights are kept in ``work``."""

    def __init__(self, study: Study, work: Path, epochs: tuple[int, ...], say: Callable[[str], None]) -> None:
        self._study, self._work, self._epochs, self._say = study, work, epochs, say
        work.mkdir(parents=True, exist_ok=True)

    def continuation(self) -> Pair:
        """After the first three."""
        torch.manual_seed(SEED)
        tail = trainable(self._study.halves.tail, example(self._study.halves.tail))
        pair = Pair(Encoder(LEFT_BEHIND, CHANNELS, SIZE), Decoder(CHANNELS, CUT[0]), tail)
        pair.tail.requires_grad_(False)
        self._train("1-tensor", pair, self._study.left_behind, Weights(target=1.0), self._schedule(0, 0.1))
        weights = Weights(target=0.3, answers=1.0, labels=0.1)
        self._train("2-answers", pair, self._study.left_behind, weights, self._schedule(1, 0.01))
        pair.tail.requires_grad_(True)
        self._train("3-tail", pair, self._study.left_behind, weights, self._schedule(2, 0.01))
        return pair

    def bottleneck(self, done: Pair) -> Pair:
        """After the last, with the cloud's part of ``done``."""
        torch.manual_seed(SEED)
        pair = Pair(Encoder(PICTURE, CHANNELS, SIZE), done.decoder, done.tail)
        pair.fix_cloud()
        weights = Weights(target=1.0)
        self._train("4-picture", pair, picture, weights, self._schedule(3, 0.1))
        return pair

    def _schedule(self, number: int, rate: float) -> Schedule | None:
        epochs = self._epochs[number]
        return (
            None if epochs == 0 else Schedule(epochs=epochs, batch=128, peak_rate=rate, weight_decay=1e-4, bf16=False)
        )

    def _kept(self, name: str) -> Path:
        return self._work / f"{name}.weights.pt"

    def _train(self, name: str, pair: Pair, sources: Any, weights: Weights, schedule: Schedule | None) -> None:
        kept = self._kept(name)
        if schedule is None:
            return
        if not kept.is_file():
            train = self._study.sets.train
            images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
            shown = -1.0

            def tick(done: float) -> None:
                nonlocal shown
                if done >= shown + 0.02:
                    shown = done
                    self._say(f"{name}: {100 * done:.0f} %")

            checkpoint = self._work / f"{name}.checkpoint.pt"
            teacher = self._study.teacher
            teach(pair, images, labels, teacher, sources, weights, schedule, AUGMENT, SEED, checkpoint, tick)
            torch.save(pair.state_dict(), kept)
        pair.load_state_dict(torch.load(kept, weights_only=True))
        pair.eval()


def main() -> int:
    """Train what is not trained yet, measure, and judge."""
    options = _options()
    torch.set_num_threads(1)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False)

    epochs = tuple(options.epochs or (FULL_EPOCHS if options.full else (1, 1, 0, 1)))
    with tempfile.TemporaryDirectory() as place:
        work, out = options.work or Path(place), options.out or Path(place) / "out"
        try:
            study = Study(None if options.full else options.limit)
            trainings = Trainings(study, work, epochs, say)
            continuation = trainings.continuation()
            bottleneck = trainings.bottleneck(continuation)
            pairs = {"continuation": (continuation, study.left_behind), "bottleneck": (bottleneck, picture)}
            result = measure(study, pairs, epochs, out, work / "pictures.json", say)
        except EdgemuxError as error:
            console.print(f"split_training: {error}", style="red")
            return 2
    print(report(result))
    return 0 if not options.full or judged(result, say) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and measure the starter bundle's bottlenecks.")
    parser.add_argument("--full", action="store_true", help="the setting of docs/split.md: hours on two busy cores")
    parser.add_argument("--limit", type=int, default=2000, help="training images and test images, unless --full")
    parser.add_argument("--epochs", type=int, nargs=4, help="of the four trainings")
    parser.add_argument("--work", type=Path, help="where trainings are kept; without: nowhere")
    parser.add_argument("--out", type=Path, help="where head, tail, figures and plot go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
