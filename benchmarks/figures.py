"""The model figures of a bundle, measured on all 10,000 Fashion-MNIST test images on this machine.

    python benchmarks/figures.py [--bundle DIR] [--json]

Each row has what must be reached and what is aimed at; the exit status is 1 when a "must" is missed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edgemux.compression import data, profile
from edgemux.compression.chain import answers_of, answers_of_levels, run_top, top_of
from edgemux.compression.hardware import hardware
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.certify import interval
from edgemux.multiplexer.errors import EdgemuxError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.labels import Answers, one_hot
from edgemux.multiplexer.training.report import Routed, routed

BUNDLE = Path(__file__).parents[1] / "deploy" / "bundles" / "fashion-mnist"
REPEATS = 500
KB = 1000


class Row(msgspec.Struct, frozen=True):
    """One figure: what was measured and whether that meets the must and the goal."""

    what: str
    measured: str
    must: str
    goal: str
    meets_must: bool
    meets_goal: bool

    @property
    def verdict(self) -> str:
        """In a word."""
        return "goal" if self.meets_goal else "must" if self.meets_must else "MISSED"


class Figures(msgspec.Struct, frozen=True):
    """All rows, the numbers behind them, and what they were measured on."""

    bundle: str
    digest: str
    images: int
    hardware: str
    rows: tuple[Row, ...]
    numbers: dict[str, float]


def measure(folder: Path) -> Figures:
    """Run every model of the bundle over the test set."""
    bundle = Bundle.open(folder)
    bundle.verify()
    manifest = bundle.manifest
    test = _test_set()
    chain = [OnnxModel(bundle.read(level.files[-1]), level.name) for level in manifest.levels]
    cloud = OnnxModel(bundle.read(manifest.cloud.files[0]), manifest.cloud.name)
    pre = OnnxModel(bundle.read(manifest.multiplexer.pre_gate), "pre-gate")
    post = OnnxModel(bundle.read(manifest.multiplexer.post_gate), "post-gate")
    answers = Answers(answers_of_levels(chain, test.images), answers_of(cloud, test.images), test.labels)
    top = len(chain)
    before = answers_of(pre, test.images)
    feeds = {"probabilities": answers.levels[-1], "level": one_hot(top, top, answers.count), "scores": before}
    after = post.run({name: feeds[name] for name in post.inputs})[0]
    prices = manifest.multiplexer
    result = routed(answers, top, before, after, prices.offload_first, prices.defer[-1])
    top_ms, cloud_ms, gates_ms = _times(chain, cloud, pre, post, test.images[:1])
    right = answers.right()
    rows = (
        _cloud_row(right[:, -1]),
        _level_row(top, right[:, top - 1], bundle.size(manifest.levels[-1].files), (91.5, 150), (92.5, 100)),
        _level_row(1, right[:, 0], bundle.size(manifest.levels[0].files), (86.0, 12), (88.5, 6)),
        _multiplexed_row(result),
        _time_row(gates_ms, top_ms),
    )
    numbers = {f"level{k}_accuracy": float(right[:, k - 1].mean()) for k in range(1, top + 1)}
    numbers |= {f"level{k}_bytes": bundle.size(level.files) for k, level in enumerate(manifest.levels, start=1)}
    numbers |= {
        "cloud_accuracy": result.cloud_accuracy,
        "cloud_ms": cloud_ms,
        f"level{top}_ms": top_ms,
        "multiplexer_ms": gates_ms,
        "multiplexed_accuracy": result.accuracy,
        "kept": result.kept,
        "skipped": result.skipped,
        "disagreement": result.disagreement,
    }
    return Figures(manifest.name, manifest.digest, answers.count, hardware(), rows, numbers)


def _test_set() -> data.Split:
    images = data.parse_idx(data.fetch("test-images"))
    labels = data.parse_idx(data.fetch("test-labels"))
    return data.Split(images, labels.astype(np.int64))


def _times(
    chain: list[OnnxModel], cloud: OnnxModel, pre: OnnxModel, post: OnnxModel, one: NDArray[np.uint8]
) -> list[float]:
    """Median ms of the whole chain, the cloud model, and both gates: one input, one thread."""
    top = len(chain)
    feeds = {"probabilities": run_top(chain, one), "level": one_hot(top, top, 1)}

    def gates() -> None:
        scores = pre.run({"image": one})[0]
        post.run({**feeds, "scores": scores})

    return profile.medians_ms([top_of(chain, one), lambda: cloud.run({"image": one}), gates], REPEATS)


def _percent(right: NDArray[np.float32]) -> str:
    low, high = interval(int(right.sum()), len(right))
    return f"{100 * right.mean():.2f} % ({100 * low:.2f}–{100 * high:.2f})"


def _cloud_row(right: NDArray[np.float32]) -> Row:
    share = 100 * float(right.mean())
    return Row("cloud model accuracy", _percent(right), "≥ 93.5 %", "≥ 95 %", share >= 93.5, share >= 95.0)


def _level_row(
    level: int, right: NDArray[np.float32], size: int, must: tuple[float, int], goal: tuple[float, int]
) -> Row:
    share = 100 * float(right.mean())

    def reached(bounds: tuple[float, int]) -> bool:
        return share >= bounds[0] and size <= bounds[1] * KB

    return Row(
        f"level {level}: accuracy, bytes of all its files",
        f"{_percent(right)} at {size / KB:.1f} KB",
        f"≥ {must[0]} % at ≤ {must[1]} KB",
        f"≥ {goal[0]} % at ≤ {goal[1]} KB",
        reached(must),
        reached(goal),
    )


def _multiplexed_row(result: Routed) -> Row:
    kept = 100 * result.kept
    return Row(
        "multiplexed, cloud up: distance to cloud-only, share kept on the device",
        f"{result.distance:.2f} points ({100 * result.accuracy:.2f} %) at {kept:.1f} %",
        "≤ 0.5 points at ≥ 60 %",
        "≤ 0.3 at ≥ 75 %",
        result.distance <= 0.5 and kept >= 60,
        result.distance <= 0.3 and kept >= 75,
    )


def _time_row(gates_ms: float, top_ms: float) -> Row:
    share = 100 * gates_ms / top_ms
    return Row(
        "multiplexer time against the level-4 model's",
        f"{share:.1f} % ({1000 * gates_ms:.1f} of {1000 * top_ms:.1f} µs)",
        "≤ 30 %",
        "≤ 10 %",
        share <= 30,
        share <= 10,
    )


def show(figures: Figures) -> None:
    """Print the table."""
    table = Table(
        "what", "measured", "must", "goal", "verdict", title=f"{figures.bundle}, {figures.images} test images"
    )
    for row in figures.rows:
        table.add_row(row.what, row.measured, row.must, row.goal, row.verdict)
    console = Console()
    console.print(table)
    console.print(f"measured on: {figures.hardware}; bundle {figures.digest[:12]}", highlight=False)


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Model figures of a bundle on the whole test set.")
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    try:
        figures = measure(options.bundle)
    except EdgemuxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(msgspec.json.encode(figures).decode())
    else:
        show(figures)
    return 0 if all(row.meets_must for row in figures.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
