"""Makes the starter bundle's bottlenecks and measures them: bytes on the way against accuracy, beside pictures.

    python benchmarks/split_training.py [--limit IMAGES] [--epochs N N N N] [--work DIR] [--out DIR] [--full]

"continuation": the encoder reads the picture and what device level 3 leaves behind, so nothing is computed twice; the
cloud goes on with the last residual block of its model. "bottleneck": the device runs the first layers of the cloud's
model, and the encoder narrows what comes out. Four trainings, on one thread, each kept in the work folder and resumed
at its last epoch; all values are sent in 2 bits:

1. encoder and decoder of the continuation, so that the decoder gives the tensor that the cloud's model has there;
2. the same and the tail, which is then no longer a part of the cloud's model, so that they answer as that does, also
   of mixtures of two images;
3. and 4. the first and the second for the bottleneck.

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

import onnx
import torch
from rich.console import Console

from edgemux.compression.recipe import Augment, Schedule
from edgemux.compression.split.bottleneck import Decoder, Encoder, Pair
from edgemux.compression.split.graph_net import trainable
from edgemux.compression.split.pair_files import PairFiles, behind, pair_files
from edgemux.compression.split.shapes import example
from edgemux.compression.split.teach import Course, Weights, teach
from edgemux.multiplexer.errors import EdgemuxError
from split_bench.measured import measure
from split_bench.report import judged, report
from split_bench.study import CHANNELS, CUT, LEFT_BEHIND, SEED, SIZE, Study, picture

# Of the four trainings.
FULL_EPOCHS = (2, 2, 1, 1)
AUGMENT = Augment(flip=True, shift_px=1, erase=0.0)
# 24 channels of 2 bits are as many bytes as 12 of 4.
TRAINED_BITS = (2,)


class Trainings:
    """The four, each done once: its weights are kept in ``work``."""

    def __init__(self, study: Study, work: Path, epochs: tuple[int, ...], say: Callable[[str], None]) -> None:
        self._study, self._work, self._epochs, self._say = study, work, epochs, say
        work.mkdir(parents=True, exist_ok=True)

    def continuation(self) -> Pair:
        """After the first two."""
        torch.manual_seed(SEED)
        pair = self._pair(Encoder(LEFT_BEHIND, CHANNELS, SIZE, joins=2))
        self._tensor_first(0, "1-tensor", pair, self._study.left_behind)
        answers = self._course(1, Weights(answers=1.0, features=1.0), 0.002, batch=64, mixed=0.4, tail_share=0.3)
        self._train("2-answers", pair, self._study.left_behind, answers)
        return pair

    def bottleneck(self) -> Pair:
        """After the last two. The pair's encoder reads the cut's tensor: the layers before it are not changed."""
        torch.manual_seed(SEED)
        pair = self._pair(Encoder(self._study.at_cut, CHANNELS, SIZE, width=64))
        self._tensor_first(2, "3-narrow", pair, self._study.cut)
        # The tail is near to where it has to be: it moves less, and what it reads stays what it was.
        weights = Weights(target=0.3, answers=1.0, features=1.0)
        answers = self._course(3, weights, 0.002, batch=64, mixed=0.3, tail_share=0.15)
        self._train("4-narrow-answers", pair, self._study.cut, answers)
        return pair

    def _pair(self, encoder: Encoder) -> Pair:
        tail = trainable(self._study.tail, example(self._study.tail))
        return Pair(encoder, Decoder(CHANNELS, CUT[0]), tail, self._study.features)

    def _tensor_first(self, number: int, name: str, pair: Pair, sources: Any) -> None:
        pair.tail.requires_grad_(False)
        self._train(name, pair, sources, self._course(number, Weights(target=1.0), 0.1))
        pair.tail.requires_grad_(True)

    def _course(self, number: int, weights: Weights, rate: float, batch: int = 128, **more: Any) -> Course | None:
        epochs = self._epochs[number]
        if epochs == 0:
            return None
        schedule = Schedule(epochs=epochs, batch=batch, peak_rate=rate, weight_decay=1e-4, bf16=False)
        return Course(weights, schedule, AUGMENT, SEED, TRAINED_BITS, **more)

    def _train(self, name: str, pair: Pair, sources: Any, course: Course | None) -> None:
        if course is None:
            return
        kept = self._work / f"{name}.weights.pt"
        if not kept.is_file():
            self._taught(name, pair, sources, course)
            torch.save(pair.state_dict(), kept)
        pair.load_state_dict(torch.load(kept, weights_only=True))
        pair.eval()

    def _taught(self, name: str, pair: Pair, sources: Any, course: Course) -> None:
        train, often = self._study.sets.train, self._study.often_hard()
        images, labels = torch.from_numpy(train.images[often]), torch.from_numpy(train.labels[often])
        shown = -1.0

        def tick(done: float) -> None:
            nonlocal shown
            if done >= shown + 0.02:
                shown = done
                self._say(f"{name}: {100 * done:.0f} %")

        checkpoint = self._work / f"{name}.checkpoint.pt"
        teach(pair, images, labels, self._study.teacher, sources, course, checkpoint, tick)


def main() -> int:
    """Train what is not trained yet, measure, and judge."""
    options = _options()
    torch.set_num_threads(1)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False)

    epochs = tuple(options.epochs or (FULL_EPOCHS if options.full else (1, 1, 1, 1)))
    with tempfile.TemporaryDirectory() as place:
        work, out = options.work or Path(place), options.out or Path(place) / "out"
        try:
            study = Study(None if options.full else options.limit)
            trainings = Trainings(study, work, epochs, say)
            pairs = {
                "continuation": (_written(trainings.continuation(), study), study.left_behind),
                "bottleneck": (_written(trainings.bottleneck(), study, study.first), picture),
            }
            result = measure(study, pairs, epochs, out, work / "pictures.json", say)
        except EdgemuxError as error:
            console.print(f"split_training: {error}", style="red")
            return 2
    print(report(result))
    return 0 if not options.full or judged(result, say) else 1


def _written(pair: Pair, study: Study, first: onnx.ModelProto | None = None) -> Callable[[int], PairFiles]:
    """The files for a number of bits. first: what the device runs before the encoder."""

    def made(bits: int) -> PairFiles:
        files = pair_files(pair, bits, study.whole.digest)
        return files if first is None else behind(first, files)

    return made


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
