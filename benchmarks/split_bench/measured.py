"""A pair's files as device and cloud would run them: bytes, accuracy, time, and what is lost on deferred inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgemux.compression import profile
from edgemux.compression.chain import answers_of
from edgemux.compression.hardware import hardware
from edgemux.compression.split import curve
from edgemux.compression.split.pair_files import SENT, PairFiles
from edgemux.multiplexer.onnx_model import OnnxModel
from split_bench.halves import through
from split_bench.study import BUNDLE, Study

# With more bits these pairs would send more than a lossless picture has.
MEASURED_BITS = (2,)


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
    epochs: tuple[int, ...]
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
        return through(self.head, self.tail, self.files.bits, self._sources, images)

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


def of_deferred(of: str, found: Seen, sender: Sender) -> Deferred:
    """What the tail makes of the deferred inputs."""
    at, count = found.deferred, int(found.deferred.sum())
    labels, sizes = sender.send(found.images[at])
    right, cloud = labels == found.labels[at], found.whole[at] == found.labels[at]
    worse, better = int((cloud & ~right).sum()), int((right & ~cloud).sum())
    lost = (worse - better) / count
    spread = 1.96 * float(np.sqrt(worse + better - (worse - better) ** 2 / count)) / count
    return Deferred(
        of=f"{of}, {found.of}",
        n=len(at),
        deferred=count,
        level_accuracy=float((found.level[at] == found.labels[at]).mean()),
        cloud_accuracy=float(cloud.mean()),
        accuracy=float(right.mean()),
        lost=100 * lost,
        lost_interval=(100 * (lost - spread), 100 * (lost + spread)),
        system_lost=100 * (worse - better) / len(at),
        bytes=curve.LENGTH_BYTES + float(np.mean(sizes)),
    )


def pictures(found: Seen, study: Study, kept: Path, say: Callable[[str], None]) -> list[curve.Point]:
    """The input itself, and as a picture of every form; measured once, then read from ``kept``."""
    if kept.is_file():
        return msgspec.json.decode(kept.read_bytes(), type=list[curve.Point])
    raw = found.images[0].size
    points = [curve.point("raw", "raw", [raw] * len(found.labels), found.whole, found.labels, found.whole)]
    for form in curve.PICTURES:
        say(form)
        written, read = curve.pictured(found.images, form)
        same = np.array_equal(read, found.images)
        labels = found.whole if same else answers_of(study.whole.model, read).argmax(axis=1)
        sizes, bare = [len(file) for file in written], [curve.bare_bytes(file) for file in written]
        points.append(curve.point(form.split("-")[0], form, sizes, labels, found.labels, found.whole, bare))
    kept.write_bytes(msgspec.json.encode(points))
    return points


def measure(
    study: Study,
    pairs: dict[str, tuple[Callable[[int], PairFiles], Any]],
    epochs: tuple[int, ...],
    out: Path,
    kept: Path,
    say: Callable[[str], None],
) -> Result:
    """Every pair, its files as they are made for each number of bits; files, figures and plot go into ``out``.

    kept: where the figures of pictures are, or go.
    """
    out.mkdir(parents=True, exist_ok=True)
    # Not the other half of what is held out: the gates were fitted on it, and defer there what the cloud knew.
    held = seen(study, "held out", study.sets.certify.images, study.sets.certify.labels)
    test = seen(study, "test", study.sets.test.images, study.sets.test.labels)
    files, deferred, points = [], [], []
    for name, (files_for, sources) in pairs.items():
        for bits in MEASURED_BITS:
            say(f"{name}, {bits} bits")
            sender = Sender(files_for(bits), sources)
            (out / f"{name}-{bits}-head.onnx").write_bytes(sender.files.head.SerializeToString())
            (out / f"{name}-{bits}-tail.onnx").write_bytes(sender.files.tail.SerializeToString())
            files.append(sender.half(name, study))
            deferred += [
                of_deferred(f"{name}, {bits} bits", found, sender) for found in (held, test) if found.deferred.any()
            ]
            labels, sizes = sender.send(test.images)
            points.append(curve.point(name, f"{bits} bits", sizes, labels, test.labels, test.whole))
    points += pictures(test, study, kept, say)
    macs = profile.macs(onnx.load_from_string((BUNDLE / "cloud.onnx").read_bytes()))
    result = Result(hardware(), epochs, macs, tuple(files), tuple(deferred), tuple(points))
    (out / "split_training.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    (out / "split.svg").write_text(curve.svg(points, "Fashion-MNIST test set: accuracy against bytes on the way"))
    return result
