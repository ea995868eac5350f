"""Measures the splits of the starter bundle, or exchanges them for those that split_training.py has made.

    python benchmarks/split_starter.py [--bundle DIR] [--halves DIR --take PAIR-BITS ...]

Without ``--halves``: every split on the bundle's own test images, beside what its manifest says; nothing is written.
With it: the halves DIR/PAIR-BITS-head.onnx and -tail.onnx of each that is named are measured on all 10,000 test images
and take the place of the splits that the bundle had, each under the name of its pair; the bundle is sealed again.

    python benchmarks/split_starter.py --halves OUT --take bottleneck-2 continuation-2

A head goes on from the lowest level that leaves what it reads. Times are CPU times of one thread, taken in turns with
the cloud's own model and scaled to the time that the manifest gives for that: the planner compares like with like.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from edgemux.compression import data, profile
from edgemux.compression.chain import answers_of
from edgemux.compression.places import replacing
from edgemux.compression.split import curve
from edgemux.compression.split.pack import add_split, without_splits
from edgemux.multiplexer.bundle import BITS, Bundle, Split, Tensor, splits_of
from edgemux.multiplexer.chain import Chain
from edgemux.multiplexer.errors import ConfigError, EdgemuxError
from edgemux.multiplexer.onnx_model import Array, OnnxModel
from split_bench.halves import level_of, sent_of, through
from split_bench.study import BUNDLE, HELD_OUT, SEED

TIMED = 300


class Halves(msgspec.Struct, frozen=True):
    """A split's name and bits, its two files, and what the tail's is called."""

    name: str
    bits: int
    head: bytes
    tail: bytes
    tail_file: str


class Starter:
    """The bundle's models, as the agent and the cloud run them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = Bundle.open(folder)
        self.manifest = self.bundle.manifest
        self._input = self.manifest.inputs[0].name
        files = self.manifest.levels[-1].files
        self._levels = [OnnxModel(self.bundle.read(file), file) for file in files]
        self._chain = Chain(self._levels, [self._input])
        self.cloud = OnnxModel(self.bundle.read(self.manifest.cloud.files[0]), "cloud.onnx")

    def level_below(self, head: OnnxModel) -> int:
        """The lowest level that leaves what the head reads. Raises ConfigError where none does."""
        try:
            return level_of(head.inputs, self._levels, [self._input])
        except ValueError as error:
            raise ConfigError(f"{head.name}: reads {', '.join(head.inputs)}, which no level leaves") from error

    def given(self, level: int, images: NDArray[np.uint8]) -> dict[str, Array]:
        """What a head on that level can read of uint8 [n, 28, 28]."""
        return self._chain.known_at(level, {self._input: images})


def measure(starter: Starter, halves: Halves, test: data.Split) -> Split:
    """What the two files are and cost. Raises ConfigError for a head that reads what no level leaves."""
    head, tail = OnnxModel(halves.head, f"{halves.name}_head.onnx"), OnnxModel(halves.tail, halves.tail_file)
    level, sent_name = starter.level_below(head), head.outputs[0]
    found, sizes = through(head, tail, halves.bits, partial(starter.given, level), test.images)
    shape = (-1, *sent_of(head, starter.given(level, test.images[:1])).shape[1:])
    head_ms, tail_ms = _times(starter, head, tail, level, test.images[:1])
    return Split(
        name=halves.name,
        head=head.name,
        level=level,
        tail=tail.name,
        sent=Tensor(sent_name, "UINT8", shape),
        bits=halves.bits,
        bytes=round(curve.LENGTH_BYTES + float(np.mean(sizes)), 1),
        head_ms=round(head_ms, 4),
        tail_ms=round(tail_ms, 4),
        tail_macs=profile.macs(onnx.load_from_string(halves.tail)),
        n=len(found),
        accuracy=float((found == test.labels).mean()),
        changed=float((found != answers_of(starter.cloud, test.images).argmax(axis=1)).mean()),
    )


def _times(
    starter: Starter, head: OnnxModel, tail: OnnxModel, level: int, image: NDArray[np.uint8]
) -> tuple[float, float]:
    pool = starter.given(level, image)
    given = {name: pool[name] for name in head.inputs}
    sent = {head.outputs[0]: head.run(given)[0]}
    whole = dict.fromkeys(starter.cloud.inputs, image)
    runs = (lambda: head.run(given), lambda: tail.run(sent), lambda: starter.cloud.run(whole))
    head_ms, tail_ms, whole_ms = profile.medians_ms(runs, TIMED, time.thread_time)
    scale = starter.manifest.cloud.median_ms / whole_ms
    return head_ms * scale, tail_ms * scale


def taken(folder: Path, names: Sequence[str]) -> list[Halves]:
    """The halves of each PAIR-BITS; a tail that several have is one file. Raises ConfigError."""
    found: dict[str, Halves] = {}
    for name in names:
        pair, _, bits = name.rpartition("-")
        if not pair or bits not in map(str, BITS) or pair in found:
            raise ConfigError(f"{name}: must be a pair and its bits (8, 4 or 2), each pair once")
        try:
            head, tail = ((folder / f"{name}-{half}.onnx").read_bytes() for half in ("head", "tail"))
        except OSError as error:
            raise ConfigError(f"{name}: no halves in {folder} ({error.strerror})") from error
        same = next((each.tail_file for each in found.values() if each.tail == tail), f"{pair}_tail.onnx")
        found[pair] = Halves(pair, int(bits), head, tail, same)
    return list(found.values())


def exchange(starter: Starter, made: Sequence[tuple[Split, Halves]]) -> None:
    """Put these splits in the place of those that the bundle has; whatever fails, the bundle stays as it was."""
    with TemporaryDirectory() as place, replacing(starter.folder) as part:
        built = Path(place) / "bundle"
        without_splits(starter.bundle, built)
        for split, halves in made:
            add_split(built, built, split, halves.head, halves.tail)
        for path in built.iterdir():
            (part / path.name).write_bytes(path.read_bytes())


def held(starter: Starter) -> list[Halves]:
    """The splits that the bundle has."""
    read = starter.bundle.read
    return [
        Halves(each.name, each.bits, read(each.head), read(each.tail), each.tail)
        for each in splits_of(starter.manifest)
    ]


def samples_of(starter: Starter) -> data.Split:
    """The bundle's own test images."""
    arrays = starter.bundle.arrays(str(starter.manifest.samples))
    return data.Split(arrays["images"], arrays["labels"].astype(np.int64))


def table(found: Sequence[tuple[str, Split]]) -> str:
    """Markdown: of whom it is said, and what."""
    lines = ["| split | | level | bits | bytes | head ms | tail ms | tail M MACs | n | accuracy | label changed |"]
    lines += ["|---" * 11 + "|"]
    for of, s in found:
        lines.append(
            f"| {s.name} | {of} | {s.level} | {s.bits} | {s.bytes:.1f} | {s.head_ms:.3f} | {s.tail_ms:.3f} "
            f"| {s.tail_macs / 1e6:.1f} | {s.n} | {100 * s.accuracy:.2f} % | {100 * s.changed:.2f} % |"
        )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> str:
    """Measure, and exchange where that is asked for; returns the table."""
    starter = Starter(options.bundle)
    exchanging = options.halves is not None
    test = data.load("fashion-mnist", HELD_OUT, SEED).test if exchanging else samples_of(starter)
    halves = taken(options.halves, options.take) if exchanging else held(starter)
    made = [(measure(starter, each, test), each) for each in halves]
    found: list[tuple[str, Any]] = [("measured", split) for split, _ in made]
    if exchanging:
        exchange(starter, made)
    else:
        found += [("manifest", split) for split in splits_of(starter.manifest)]
    return table(found)


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(description="Measure or exchange the splits of the starter bundle.")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the starter bundle, or a copy")
    parser.add_argument("--halves", type=Path, help="folder of halves, as split_training.py leaves it in --out")
    parser.add_argument("--take", nargs="+", default=[], metavar="PAIR-BITS", help="which of them, as continuation-2")
    options = parser.parse_args()
    if bool(options.halves) != bool(options.take):
        parser.error("--halves and --take go together")
    try:
        print(run(options))
    except EdgemuxError as error:
        Console(stderr=True).print(f"split_starter: {error}", style="red")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
