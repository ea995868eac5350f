"""Four ways to get one model per capacity, trained alike: joint, freeze and grow, slimmable, independent nets.

    python benchmarks/nested.py [--limit IMAGES] [--epochs N] [--work DIR]

All learn Fashion-MNIST from the same images and the same teacher, the starter bundle's cloud model, with the same
schedule in float32 on one thread. "same size" is a dense net with as many stored weights as the nested family up to
that level; a net of the level's own widths has more. Every training is a stage that is kept and, when interrupted,
resumed at its last epoch. By default a few images, which shows that everything runs; the table of the full setting is
in docs/nested.md. The exit status is 1 when a level of the joint family is more than 0.3 points below its
same-size net; at the default setting nets are hardly trained, so there it is not judged.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from edgemux.compression import data, widths
from edgemux.compression import recipe as recipes
from edgemux.compression.augment import Batch, draw
from edgemux.compression.build import default_work
from edgemux.compression.chain import answers_of
from edgemux.compression.distill.family import learning
from edgemux.compression.fit import Loss, Tick, fit_drawn, outputs_of
from edgemux.compression.grow import grow
from edgemux.compression.hardware import hardware
from edgemux.compression.nested import NestedNet
from edgemux.compression.recipe import Family
from edgemux.compression.slimmable import SlimmableNet
from edgemux.compression.workshop import Workshop
from edgemux.multiplexer.errors import EdgemuxError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.certify import interval

DEPLOY = Path(__file__).parents[1] / "deploy"
RECIPE = DEPLOY / "recipes" / "fashion-mnist.toml"
CLOUD = DEPLOY / "bundles" / "fashion-mnist" / "cloud.onnx"
HELD_OUT = 5000
TARGET_POINTS = 0.3
# Below this many images and epochs a comparison says nothing about the nets.
JUDGED_FROM = 100_000
WEIGHTS, CHECKPOINT, CHOSEN, CPU = "weights.pt", "checkpoint.pt", "chosen.npy", "cpu.json"


@dataclass(frozen=True, slots=True)
class Task:
    """What all kinds learn: train and test images, the teacher's logits [2, n, 10], the recipe, the seed."""

    train: data.Split
    test: data.Split
    teacher: Tensor
    family: Family
    seed: int

    def loss(self, family: Family) -> Loss:
        """Labels and teacher, by the loss weights of ``family``."""
        return learning(family, torch.from_numpy(self.train.labels), self.teacher)

    def drawn(self, index: Tensor, generator: torch.Generator) -> Batch:
        """A training batch, shifted at random as the recipe says."""
        return draw(torch.from_numpy(self.train.images), index, self.family.augment, generator)


class Row(msgspec.Struct, frozen=True):
    """One level of one kind. chosen: the classes it gives the test images, int64 [n]; cpu_s: all its training."""

    kind: str
    level: int
    widths: tuple[int, ...]
    params: int
    epochs: str
    cpu_s: float
    chosen: NDArray[np.int64]


class CpuTime:
    """CPU seconds of this process for a stage, kept in its folder: interrupted runs count as well."""

    def __init__(self, folder: Path, tick: Tick) -> None:
        self._path, self._tick = folder / CPU, tick
        self._before_s = read_cpu_s(folder)
        self._start_s = self._saved_s = time.process_time()

    def __call__(self, done: float) -> None:
        """To be called as the training's tick."""
        now_s = time.process_time()
        if done == 1.0 or now_s - self._saved_s > 5.0:
            self._saved_s = now_s
            self._path.write_text(json.dumps(self._before_s + now_s - self._start_s))
        self._tick(done)


def read_cpu_s(folder: Path) -> float:
    """CPU seconds of a stage so far."""
    path = folder / CPU
    return float(json.loads(path.read_text())) if path.is_file() else 0.0


def finish(model: nn.Module, task: Task, folder: Path) -> None:
    """Keep the weights, and what the net makes of the test images: int64 [levels, n]."""
    torch.save(model.state_dict(), folder / WEIGHTS)
    np.save(folder / CHOSEN, outputs_of(model, torch.from_numpy(task.test.images)).argmax(-1).numpy())


def jointly(make: Callable[[Family], nn.Module], family: Family, task: Task) -> Callable[[Path, Tick], None]:
    """The stage that trains all levels of a net at once."""

    def stage(folder: Path, tick: Tick) -> None:
        torch.manual_seed(task.seed)
        model, clock = make(family), CpuTime(folder, tick)
        count, loss = len(task.train.labels), task.loss(family)
        fit_drawn(model, count, task.drawn, loss, family.schedule, task.seed, folder / CHECKPOINT, clock)
        finish(model, task, folder)

    return stage


def growing(level: int, below: Path | None, task: Task) -> Callable[[Path, Tick], None]:
    """The stage that adds a level to the net in ``below``."""

    def stage(folder: Path, tick: Tick) -> None:
        torch.manual_seed(task.seed)
        model, clock = NestedNet(task.family), CpuTime(folder, tick)
        if below is not None:
            model.load_state_dict(torch.load(below / WEIGHTS, weights_only=True))
        loss = task.loss(msgspec.structs.replace(task.family, loss_weights=(1.0,)))
        count, schedule = len(task.train.labels), task.family.schedule
        grow(model, level, count, task.drawn, loss, schedule, task.seed, folder / CHECKPOINT, clock)
        finish(model, task, folder)

    return stage


def measure(workshop: Workshop, task: Task, key: tuple[object, ...]) -> list[Row]:
    """Train whatever is not there yet; the cheapest of what the comparison needs comes first."""
    family, levels = task.family, range(1, task.family.levels + 1)
    full = {k: widths.at_level(family, k) for k in levels}
    small = {k: widths.same_size(family, k) for k in levels}
    epochs = family.schedule.epochs
    rows = []

    def add(kind: str, level: int, used: tuple[int, ...], params: int, cpu_s: float, folder: Path, at: int) -> None:
        rows.append(Row(kind, level, used, params, str(epochs), cpu_s, np.load(folder / CHOSEN)[at]))

    joint = workshop.stage("nested-joint", jointly(NestedNet, family, task), key, family)
    for k in levels:
        add("joint", k, full[k], widths.nested_parameters(family, k), read_cpu_s(joint), joint, k - 1)
    for k in levels:
        single = widths.alone(family, small[k])
        folder = workshop.stage(f"nested-same-size-{k}", jointly(NestedNet, single, task), key, single)
        add("same size", k, small[k], widths.dense_parameters(small[k]), read_cpu_s(folder), folder, 0)
    below, cpu_s = None, 0.0
    for k in levels:
        depends = (below.name if below is not None else "", family)
        below = workshop.stage(f"nested-grow-{k}", growing(k, below, task), key, depends)
        cpu_s += read_cpu_s(below)
        add("freeze and grow", k, full[k], widths.nested_parameters(family, k), cpu_s, below, k - 1)
    equal = msgspec.structs.replace(family, loss_weights=(1.0,) * family.levels)
    slim = workshop.stage("nested-slimmable", jointly(SlimmableNet, equal, task), key, equal)
    for k in levels:
        # Each level brings its own scale and shift for every channel, which one set of weights cannot absorb.
        params = widths.dense_parameters(full[k]) + sum(sum(full[j]) for j in levels if j <= k)
        add("slimmable", k, full[k], params, read_cpu_s(slim), slim, k - 1)
    for k in levels:
        single = widths.alone(family, full[k])
        folder = workshop.stage(f"nested-same-width-{k}", jointly(NestedNet, single, task), key, single)
        add("same widths", k, full[k], widths.dense_parameters(full[k]), read_cpu_s(folder), folder, 0)
    return rows


def difference(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float]:
    """Points by which ``one`` is right more often, and half the width of its 95 % interval.

    Both answered the same images, so only those on which they differ count (normal interval for paired shares,
    Newcombe 1998, method 1 with the paired variance).
    """
    gap = one.astype(np.float64) - other
    return 100 * float(gap.mean()), 196 * float(gap.std()) / math.sqrt(len(gap))


def show(rows: list[Row], labels: NDArray[np.int64], title: str) -> list[float]:
    """Print the table; returns the joint family's distances to the same-size nets, in points."""
    table = Table(
        "kind", "level", "widths", "weights", "epochs", "CPU s", "accuracy (95 %)", "to the same-size net", title=title
    )
    right = {(row.kind, row.level): row.chosen == labels for row in rows}
    gaps = []
    for row in rows:
        hits = right[row.kind, row.level]
        low, high = interval(int(hits.sum()), len(hits))
        gap, half = difference(hits, right["same size", row.level])
        if row.kind == "joint":
            gaps.append(gap)
        table.add_row(
            row.kind,
            str(row.level),
            "/".join(map(str, row.widths)),
            f"{row.params:,}",
            row.epochs,
            f"{row.cpu_s:.0f}",
            f"{100 * hits.mean():.2f} % ({100 * low:.2f}–{100 * high:.2f})",
            "" if row.kind == "same size" else f"{gap:+.2f} ± {half:.2f}",
            end_section=row.level == max(r.level for r in rows),
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return gaps


def prepared(workshop: Workshop, limit: int, epochs: int, batch: int) -> tuple[Task, tuple[object, ...]]:
    """Images, teacher and recipe; and what every stage's key has to hold of them."""
    plan = recipes.load(RECIPE)
    images = data.load(plan.data.set, HELD_OUT, plan.seed)
    train, test = images.train, images.test
    if limit < len(train.labels):
        train = train.take(data.stratified(train.labels, limit, np.random.default_rng(plan.seed))[0])
        test = test.take(np.arange(min(len(test.labels), max(limit, 1000))))
    change = msgspec.structs.replace
    schedule = change(plan.family.schedule, epochs=epochs, batch=batch, bf16=False)
    family = change(plan.family, schedule=schedule, quantise_last=0.0)

    def ask(folder: Path, tick: Tick) -> None:
        cloud = OnnxModel.read(CLOUD)
        said = [answers_of(cloud, train.images)]
        tick(0.5)
        said.append(answers_of(cloud, np.ascontiguousarray(train.images[:, :, ::-1])))
        np.save(folder / "logits.npy", np.log(np.maximum(np.stack(said), 1e-8)))

    key = (plan.seed, limit, "fashion-mnist")
    folder = workshop.stage("nested-teacher", ask, key)
    teacher = torch.from_numpy(np.load(folder / "logits.npy"))
    return Task(train, test, teacher, family, plan.seed), key


def main() -> int:
    """Parse the command line, train, print."""
    parser = argparse.ArgumentParser(description="The nested family against its alternatives.")
    parser.add_argument("--limit", type=int, default=1500, help="training images; 55000 are all")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of every training")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--work", type=Path, default=default_work(), help="where finished trainings are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        with Progress(disable=not sys.stdout.isatty()) as progress:
            workshop = Workshop(options.work, progress)
            task, key = prepared(workshop, options.limit, options.epochs, options.batch)
            rows = measure(workshop, task, key)
    except EdgemuxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = len(task.train.labels)
    gaps = show(rows, task.test.labels, f"{count} images, {options.epochs} epochs, {len(task.test.labels)} test images")
    print(f"measured on: {hardware()}; torch {torch.__version__}, 1 thread, float32")
    met = min(gaps) >= -TARGET_POINTS
    if count * options.epochs < JUDGED_FROM:
        print("too few images and epochs to judge the target; the full setting's table is in docs/nested.md")
        return 0
    print(f"joint within {TARGET_POINTS} points of the same-size net at every level: {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
