"""Makes the starter bundle's bottlenecks and measures them: bytes on the way against accuracy, beside pictures.

    python benchmarks/split_training.py [--limit IMAGES] [--epochs N N N] [--work DIR] [--out DIR] [--bits 8|4|2]

"continuation": the encoder reads what device level 3 leaves behind, so nothing is computed twice; the cloud goes on
with the last residual block of its model. "bottleneck": the encoder reads the picture itself, and sends the same kind
of values to the same tail. Three trainings, on one thread, each kept in the work folder and resumed at its last epoch:

1. encoder and decoder of the continuation, so that the decoder gives the tensor that the cloud's model has there;
2. all of it, the tail included, so that it answers as the cloud's model does, on the images that
   would be deferred first;
3. the encoder of the bottleneck alone, with the decoder and the tail of 2.

By default a few images, which shows that everything runs; figures of the full setting are in docs/split.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from edgemux.compression import data, profile
from edgemux.compression.chain import answers_of, answers_of_levels
from edgemux.compression.hardware import hardware
from edgemux.compression.recipe import Augment, Schedule
from edgemux.compression.split import curve
from edgemux.compression.split.bottleneck import BITS, Decoder, Encoder, Pair, Source
from edgemux.compression.split.costs import Whole
from edgemux.compression.split.graph_net import GraphNet
from edgemux.compression.split.pair_files import SENT, PairFiles, pair_files
from edgemux.compression.split.teach import Teacher, Weights, teach
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import EdgemuxError
from edgemux.multiplexer.gates import gain_after
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.labels import one_hot
from edgemux.wire.bits import packed

DEPLOY = Path(__file__).parents[1] / "deploy"
BUNDLE = DEPLOY / "bundles" / "fashion-mnist"
# Of the recipe that made the bundle: the same images are held out.
HELD_OUT, SEED = 5000, 20261123
# The cloud's model is cut before its last convolutions at 7x7, and this many channels of that size are sent.
CUT, CHANNELS, SIZE = (96, 7, 7), 12, (7, 7)
LEVEL = 3
LEFT_BEHIND = (Source("a3", (20, 14, 14)), Source("b3", (32, 14, 14)), Source("c3", (56, 7, 7)))
PICTURE = (Source("image", (1, 28, 28), pixels=True),)
AUGMENT = Augment(flip=True, shift_px=1, erase=0.0)
# Of the training images: so many of those that would be deferred first, and so many of the others.
HARD, EASY = 16_000, 4_000
FULL_EPOCHS = (3, 4, 2)
LEAST_SAVED, MOST_LOST_POINTS, MOST_OF_JPEG = 0.30, 0.2, 0.5

Probabilities = NDArray[np.float32]


class Study:
    """The bundle's models, the images, and what the device's last level would defer."""

    def __init__(self, limit: int | None) -> None:
        files = Bundle.open(BUNDLE)
        self.manifest = files.manifest
        held_out = HELD_OUT if limit is None else limit // 5
        self.sets = data.load("fashion-mnist", held_out, SEED, limit=limit)
        self.whole = Whole(files.read("cloud.onnx"), "cloud.onnx")
        cut = next(each for each in self.whole.cuts if self._shape(each.tensors) == CUT)
        self.halves = self.whole.halves(cut)
        self.teacher = Teacher(
            *(OnnxModel(h.SerializeToString(), "half") for h in (self.halves.head, self.halves.tail))
        )
        self.levels = [OnnxModel(files.read(level.files[-1]), level.name) for level in self.manifest.levels]
        names = self.manifest.multiplexer
        self.pre = OnnxModel(files.read(names.pre_gate), names.pre_gate)
        self.post = OnnxModel(files.read(names.post_gate), names.post_gate)

    def _shape(self, tensors: tuple[str, ...]) -> tuple[int, ...]:
        return self.whole.measured[tensors[0]].shape[1:] if len(tensors) == 1 else ()

    def left_behind(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """What levels 1 to LEVEL leave behind of uint8 [n, 28, 28], as far as the encoder reads it."""
        pool: dict[str, NDArray[Any]] = {"image": pixels}
        for level in self.levels[:LEVEL]:
            names = [name for name in level.outputs if name != "probabilities"]
            pool.update(zip(names, level.run({name: pool[name] for name in level.inputs}, names), strict=True))
        return {source.name: pool[source.name] for source in LEFT_BEHIND}

    def gains(self, images: NDArray[np.uint8]) -> tuple[Probabilities, NDArray[np.float64]]:
        """The last level's answers, and what the post-gate then expects of the cloud."""
        answers, top = answers_of_levels(self.levels, images)[-1], len(self.levels)
        feeds = {
            "probabilities": answers,
            "level": one_hot(top, top, len(answers)),
            "scores": answers_of(self.pre, images),
        }
        return answers, gain_after(self.post.run({name: feeds[name] for name in self.post.inputs})[0], top)

    def hard(self) -> Tensor:
        """Numbers of the training images for the second training."""
        count = len(self.sets.train.images)
        hard, easy = min(HARD, 3 * count // 10), min(EASY, count // 10)
        order = np.argsort(-self.gains(self.sets.train.images)[1], kind="stable")
        others = np.random.default_rng(0).choice(order[hard:], easy, replace=False)
        return torch.from_numpy(np.sort(np.concatenate([order[:hard], others])))


def picture(pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What the bottleneck's encoder reads."""
    return {"image": pixels}


class Trainings:
    """The three, each done once: its weights are kept in ``work``."""

    def __init__(self, study: Study, work: Path, epochs: tuple[int, int, int], say: Callable[[str], None]) -> None:
        self._study, self._work, self._epochs, self._say = study, work, epochs, say
        work.mkdir(parents=True, exist_ok=True)

    def continuation(self) -> Pair:
        """After the first two trainings."""
        torch.manual_seed(SEED)
        pair = Pair(Encoder(LEFT_BEHIND, CHANNELS, SIZE), Decoder(CHANNELS, CUT[0]), GraphNet(self._study.halves.tail))
        pair.tail.requires_grad_(False)
        self._train("1-tensor", pair, self._study.left_behind, Weights(target=1.0), self._schedule(0, 0.1), None)
        pair.tail.requires_grad_(True)
        weights = Weights(target=0.1, answers=1.0, labels=0.2)
        self._train("2-answers", pair, self._study.left_behind, weights, self._schedule(1, 0.02), self._hard())
        return pair

    def bottleneck(self, done: Pair) -> Pair:
        """After the third, with the cloud's part of ``done``."""
        torch.manual_seed(SEED)
        pair = Pair(Encoder(PICTURE, CHANNELS, SIZE), done.decoder, done.tail)
        pair.fix_cloud()
        weights = Weights(target=1.0)
        self._train("3-picture", pair, picture, weights, self._schedule(2, 0.1), None)
        return pair

    def _hard(self) -> Tensor:
        """Chosen once: a training that goes on must go on with the same images."""
        chosen = self._work / "2-answers.images.pt"
        if not chosen.is_file():
            torch.save(self._study.hard(), chosen)
        numbers: Tensor = torch.load(chosen, weights_only=True)
        return numbers

    def _schedule(self, number: int, rate: float) -> Schedule:
        return Schedule(epochs=self._epochs[number], batch=128, peak_rate=rate, weight_decay=1e-4, bf16=False)

    def _kept(self, name: str) -> Path:
        return self._work / f"{name}.weights.pt"

    def _train(
        self, name: str, pair: Pair, sources: Any, weights: Weights, schedule: Schedule, pick: Tensor | None
    ) -> None:
        kept = self._kept(name)
        if not kept.is_file():
            train = self._study.sets.train
            images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
            if pick is not None:
                images, labels = images[pick], labels[pick]
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


class Deferred(msgspec.Struct, frozen=True):
    """Of n inputs those that the last level would defer, answered by the cloud's model and by a tail in its place.

    lost: points of accuracy on these, with its interval (95 %, of paired answers); system_lost: of device and cloud
    together, on all inputs. bytes: mean of the deferred inputs.
    """

    of: str
    n: int
    deferred: int
    level_accuracy: float
    cloud_accuracy: float
    accuracy: float
    lost: float
    lost_interval: tuple[float, float]
    system_lost: float
    bytes: float


class Half(msgspec.Struct, frozen=True):
    """A pair's files for so many bits: their bytes, work and time on one thread of this machine."""

    pair: str
    bits: int
    head_bytes: int
    tail_bytes: int
    head_macs: int
    tail_macs: int
    head_ms: float
    tail_ms: float
    whole_ms: float


class Result(msgspec.Struct, frozen=True):
    """All that was measured."""

    hardware: str
    epochs: tuple[int, int, int]
    whole_macs: int
    files: tuple[Half, ...]
    deferred: tuple[Deferred, ...]
    points: tuple[curve.Point, ...]


class Seen(msgspec.Struct, frozen=True):
    """Inputs with what the bundle answers."""

    of: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    whole: NDArray[np.int64]
    level: NDArray[np.int64]
    deferred: NDArray[np.bool_]


def seen(study: Study, of: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Seen:
    """What the cloud's model and the last level say, and which inputs it defers."""
    answers, gains = study.gains(images)
    whole = answers_of(study.whole.model, images).argmax(axis=1)
    return Seen(of, images, labels, whole, answers.argmax(axis=1), gains > study.manifest.multiplexer.defer[-1])


class Sender:
    """A pair's files, run as device and cloud would run them."""

    def __init__(self, files: PairFiles, sources: Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]) -> None:
        self.files, self._sources = files, sources
        self.head = OnnxModel(files.head.SerializeToString(), "head.onnx")
        self.tail = OnnxModel(files.tail.SerializeToString(), "tail.onnx")

    def send(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], list[int]]:
        """The labels that come back, and the bytes of each input."""
        labels, sizes = [], []
        for part in np.array_split(images, max(1, len(images) // 250)):
            sent = self.head.run(self._sources(part), [SENT])[0]
            sizes += [len(element) for element in packed(sent, self.files.bits)]
            labels.append(self.tail.run({SENT: sent})[0].argmax(axis=1))
        return np.concatenate(labels).astype(np.int64), sizes

    def half(self, pair: str, study: Study) -> Half:
        """What the files cost."""
        image = study.sets.test.images[:1]
        given = self._sources(image)
        sent = {SENT: self.head.run(given, [SENT])[0]}
        whole = study.whole.model
        runs = (lambda: self.head.run(given), lambda: self.tail.run(sent), lambda: whole.run({"image": image}))
        head_ms, tail_ms, whole_ms = profile.medians_ms(runs, 100, time.thread_time)
        head, tail = self.files.head, self.files.tail
        sizes = head.ByteSize(), tail.ByteSize(), profile.macs(head), profile.macs(tail)
        return Half(pair, self.files.bits, *sizes, head_ms, tail_ms, whole_ms)


def of_deferred(found: Seen, labels: NDArray[np.int64], sizes: list[int]) -> Deferred:
    """labels: the tail's, of all inputs."""
    at, count = found.deferred, int(found.deferred.sum())
    right, cloud = labels[at] == found.labels[at], found.whole[at] == found.labels[at]
    worse, better = int((cloud & ~right).sum()), int((right & ~cloud).sum())
    lost = (worse - better) / count
    spread = 1.96 * float(np.sqrt(worse + better - (worse - better) ** 2 / count)) / count
    return Deferred(
        of=found.of,
        n=len(at),
        deferred=count,
        level_accuracy=float((found.level[at] == found.labels[at]).mean()),
        cloud_accuracy=float(cloud.mean()),
        accuracy=float(right.mean()),
        lost=100 * lost,
        lost_interval=(100 * (lost - spread), 100 * (lost + spread)),
        system_lost=100 * (worse - better) / len(at),
        bytes=curve.LENGTH_BYTES + float(np.asarray(sizes)[at].mean()),
    )


def pictures(found: Seen, study: Study, say: Callable[[str], None]) -> list[curve.Point]:
    """The input itself, and as a picture of every form."""
    raw = found.images[0].size
    points = [curve.point("raw", "raw", [raw] * len(found.labels), found.whole, found.labels, found.whole)]
    for form in curve.PICTURES:
        say(form)
        written, read = curve.pictured(found.images, form)
        same = np.array_equal(read, found.images)
        labels = found.whole if same else answers_of(study.whole.model, read).argmax(axis=1)
        sizes, bare = [len(file) for file in written], [curve.bare_bytes(file) for file in written]
        points.append(curve.point(form.split("-")[0], form, sizes, labels, found.labels, found.whole, bare))
    return points


def measure(
    study: Study,
    pairs: dict[str, tuple[Pair, Any]],
    epochs: tuple[int, int, int],
    out: Path,
    say: Callable[[str], None],
) -> Result:
    """Every pair with every number of bits; the files, the table and the plot go into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    gate, certify = study.sets.gate, study.sets.certify
    images = np.concatenate([gate.images, certify.images])
    held = seen(study, "held out", images, np.concatenate([gate.labels, certify.labels]))
    sets = [held, seen(study, "test", study.sets.test.images, study.sets.test.labels)]
    files, deferred, points = [], [], []
    for name, (pair, sources) in pairs.items():
        for bits in BITS:
            say(f"{name}, {bits} bits")
            sender = Sender(pair_files(pair, bits, study.whole.digest), sources)
            (out / f"{name}-{bits}-head.onnx").write_bytes(sender.files.head.SerializeToString())
            (out / f"{name}-{bits}-tail.onnx").write_bytes(sender.files.tail.SerializeToString())
            files.append(sender.half(name, study))
            for found in sets:
                labels, sizes = sender.send(found.images)
                one = of_deferred(found, labels, sizes)
                deferred.append(msgspec.structs.replace(one, of=f"{name}, {bits} bits, {found.of}"))
            points.append(curve.point(name, f"{bits} bits", sizes, labels, found.labels, found.whole))
    points += pictures(sets[-1], study, say)
    macs = profile.macs(onnx.load_from_string((BUNDLE / "cloud.onnx").read_bytes()))
    result = Result(hardware(), epochs, macs, tuple(files), tuple(deferred), tuple(points))
    (out / "split_training.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    (out / "split.svg").write_text(curve.svg(points, "Fashion-MNIST test set: accuracy against bytes on the way"))
    return result


def report(result: Result) -> str:
    """Markdown."""
    lines = [f"Measured on: {result.hardware}; epochs {result.epochs}", "", curve.table(result.points), ""]
    lines += ["| pair | bits | head KB | tail KB | head M MACs | tail M MACs | share | head ms | tail ms | whole ms |"]
    lines += ["|---" * 10 + "|"]
    for f in result.files:
        lines.append(
            f"| {f.pair} | {f.bits} | {f.head_bytes / 1e3:.0f} | {f.tail_bytes / 1e3:.0f} | {f.head_macs / 1e6:.2f} "
            f"| {f.tail_macs / 1e6:.1f} | {100 * f.tail_macs / result.whole_macs:.0f} % "
            f"| {f.head_ms:.3f} | {f.tail_ms:.3f} | {f.whole_ms:.3f} |"
        )
    lines += ["", "| deferred inputs of | n | level 4 | cloud | tail | points lost (95 %) | of all inputs | bytes |"]
    lines += ["|---" * 8 + "|"]
    for d in result.deferred:
        low, high = d.lost_interval
        lines.append(
            f"| {d.of} | {d.deferred} of {d.n} | {100 * d.level_accuracy:.2f} % | {100 * d.cloud_accuracy:.2f} % "
            f"| {100 * d.accuracy:.2f} % | {d.lost:.2f} ({low:.2f} to {high:.2f}) | {d.system_lost:.3f} "
            f"| {d.bytes:.0f} |"
        )
    lines += [
        "",
        "| split | bytes | smallest JPEG as accurate | share | of it without headers | smallest WebP | share |",
    ]
    lines += ["|---" * 7 + "|"]
    webp = dict(curve.shares(result.points, "webp"))
    for own, jpeg in curve.shares(result.points):
        bare = "" if jpeg is None else f"{100 * own.bytes / jpeg.bare:.0f} %"
        beside = f"{_named(webp[own])} | {_share(own, webp[own])}"
        name = f"{own.group}, {own.name} ({100 * own.accuracy:.2f} %)"
        lines.append(f"| {name} | {own.bytes:.0f} | {_named(jpeg)} | {_share(own, jpeg)} | {bare} | {beside} |")
    return "\n".join(lines)


def _named(found: curve.Point | None) -> str:
    return "none" if found is None else f"{found.name} ({found.bytes:.0f}, {100 * found.accuracy:.2f} %)"


def _share(own: curve.Point, found: curve.Point | None) -> str:
    return "" if found is None else f"{100 * own.bytes / found.bytes:.0f} %"


def main() -> int:
    """Train what is not trained yet, measure, and judge."""
    options = _options()
    torch.set_num_threads(1)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False)

    with tempfile.TemporaryDirectory() as place:
        limit = None if options.full else options.limit
        epochs = tuple(options.epochs or (FULL_EPOCHS if options.full else (1, 1, 1)))
        try:
            study = Study(limit)
            trainings = Trainings(study, options.work or Path(place), epochs, say)
            continuation = trainings.continuation()
            bottleneck = trainings.bottleneck(continuation)
            pairs = {"continuation": (continuation, study.left_behind), "bottleneck": (bottleneck, picture)}
            result = measure(study, pairs, epochs, options.out or Path(place) / "out", say)
        except EdgemuxError as error:
            console.print(f"split_training: {error}", style="red")
            return 2
    print(report(result))
    return 0 if not options.full or judged(result, say) else 1


def judged(result: Result, say: Callable[[str], None]) -> bool:
    """The issue's figures, each said with its verdict."""
    least = min(f.tail_macs for f in result.files if f.pair == "continuation")
    saved = 1 - least / result.whole_macs
    lost = {d.of: round(d.lost, 2) for d in result.deferred if d.of.startswith(("continuation, 8", "continuation, 4"))}
    of_jpeg = [own.bytes / jpeg.bytes for own, jpeg in curve.shares(result.points) if jpeg is not None]
    verdicts = {
        f"continuation saves {100 * saved:.0f} % of the cloud's work": saved >= LEAST_SAVED,
        f"points lost on deferred inputs: {lost}": all(value <= MOST_LOST_POINTS for value in lost.values()),
        "bytes of a split as a share of the JPEG's": min(of_jpeg, default=1.0) <= MOST_OF_JPEG,
    }
    for what, met in verdicts.items():
        say(f"{'met' if met else 'MISSED'}: {what}")
    return all(verdicts.values())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and measure the starter bundle's bottlenecks.")
    parser.add_argument("--full", action="store_true", help="the setting of docs/split.md: hours on two busy cores")
    parser.add_argument("--limit", type=int, default=2000, help="training images and test images, unless --full")
    parser.add_argument("--epochs", type=int, nargs=3, help="of the three trainings")
    parser.add_argument("--work", type=Path, help="where trainings are kept; without: nowhere")
    parser.add_argument("--out", type=Path, help="where head, tail, figures and plot go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
