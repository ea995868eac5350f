"""How good the router is: the figures of docs/routing.md, on the starter bundle's models and the Fashion-MNIST splits.

    python benchmarks/routing.py [--bundle DIR] [--part NAME ...] [--json]

Parts: pair (deferral areas beside max-softmax), blind (a cloud with blind spots, and noisy labels: gates fitted anew),
corrupted (the gates as they are on corrupted images), claims (beside the neural multiplexer's), certificate (redraws),
time, lab (`edgemux lab` on 10,000 x 1,000 logits). All are compared on the same test images; errors are paired.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from drift import STEP, Watch
from edgemux.compression import data, profile
from edgemux.compression import recipe as recipes
from edgemux.compression.chain import answers_of, answers_of_levels, top_of
from edgemux.compression.hardware import hardware
from edgemux.compression.multiplex import glances, post_gate_fit, pre_gate_fit
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.certify import certify, grid_of
from edgemux.multiplexer.chain import Chain
from edgemux.multiplexer.gates import Gates, gain_after
from edgemux.multiplexer.lab.certificate import naive_threshold
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.curves import areas, interval, paired_error, rank
from edgemux.multiplexer.training.fit import fit_post, fit_pre, post_scores, pre_scores, targets_of
from edgemux.multiplexer.training.labels import Answers, one_hot
from edgemux.multiplexer.training.report import routed
from edgemux.multiplexer.usual import look

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "deploy" / "bundles" / "fashion-mnist"
RECIPE = ROOT / "deploy" / "recipes" / "fashion-mnist.toml"
# Pullover, sandal and shirt: one easy class and two that are easily taken for others.
BLIND = (2, 5, 6)
DRAWS = 200
REDRAWS = 400
ALARM_WITHIN = 2000
Images = NDArray[np.uint8]
Gains = dict[int, NDArray[np.float64]]


class Row(msgspec.Struct, frozen=True):
    """One figure; ``meets``: None where there is no target."""

    part: str
    what: str
    measured: str
    target: str
    meets: bool | None


@dataclass(frozen=True)
class Starter:
    """The bundle's files, ready to run."""

    chain: list[OnnxModel]
    cloud: OnnxModel
    pre: OnnxModel
    post: OnnxModel
    bundle: Bundle

    @classmethod
    def open(cls, folder: Path) -> Starter:
        """Load every graph."""
        bundle = Bundle.open(folder)
        manifest = bundle.manifest
        chain = [OnnxModel(bundle.read(level.files[-1]), level.name) for level in manifest.levels]
        gates = manifest.multiplexer
        pre, post = (OnnxModel(bundle.read(name), name) for name in (gates.pre_gate, gates.post_gate))
        return cls(chain, OnnxModel(bundle.read(manifest.cloud.files[0]), "cloud"), pre, post, bundle)

    def answers(self, split: data.Split) -> Answers:
        """What every model says to a split."""
        return Answers(answers_of_levels(self.chain, split.images), answers_of(self.cloud, split.images), split.labels)

    def scores(self, images: Images, answers: Answers, level: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The pre-gate's scores, and the post-gate's after a level's answer."""
        before = answers_of(self.pre, images)
        level_at_hand = one_hot(level, len(self.chain), answers.count)
        feeds = {"probabilities": answers.levels[level - 1], "level": level_at_hand, "scores": before}
        return before, self.post.run({name: feeds[name] for name in self.post.inputs})[0]

    def gains(self, images: Images, answers: Answers) -> Gains:
        """The post-gate's gain per level."""
        return {k: gain_after(self.scores(images, answers, k)[1], k) for k in range(1, len(self.chain) + 1)}


class Bench:
    """Splits and answers, each made once, when a part first asks for it."""

    def __init__(self, folder: Path) -> None:
        self.starter = Starter.open(folder)
        recipe = recipes.load(RECIPE)
        self.how: recipes.Gates = recipe.gates
        self.seed = recipe.seed
        self.images = data.load(recipe.data.set, recipe.data.held_out, recipe.seed, None)
        self.test = self.starter.answers(self.images.test)
        self._fit: Answers | None = None

    def fit(self) -> Answers:
        """The rows that gates are fitted and calibrated on: training images, then the gate split."""
        if self._fit is None:
            self._fit = self.starter.answers(self.images.train).followed_by(self.starter.answers(self.images.gate))
        return self._fit


def pair(bench: Bench) -> list[Row]:
    """The bundle's own gates on the test images."""
    gains = bench.starter.gains(bench.images.test.images, bench.test)
    return [_beside(bench.test, level, gain, "pair", "clean", 1.0) for level, gain in gains.items()]


def _beside(answers: Answers, level: int, gain: NDArray[np.float64], part: str, what: str, least_z: float) -> Row:
    """Area and difference to max-softmax; the target is in paired standard errors."""
    right = answers.right()
    device, cloud = right[:, level - 1], right[:, -1]
    plain = -answers.levels[level - 1].max(axis=1).astype(np.float64)
    rankings = {"ours": rank(gain, device, cloud), "plain": rank(plain, device, cloud)}
    area = {name: ranking.curve().area for name, ranking in rankings.items()}
    drawn = areas(rankings, DRAWS, 0)
    low, high = interval(drawn["ours"] - drawn["plain"])
    difference = area["ours"] - area["plain"]
    error = paired_error(gain, plain, device, cloud)
    z = difference / error if error > 0 else 0.0
    measured = (
        f"{100 * area['ours']:.3f} against {100 * area['plain']:.3f}: {100 * difference:+.3f} "
        f"({100 * low:+.3f} to {100 * high:+.3f}), {z:+.1f} SE"
    )
    return Row(part, f"{what}, level {level}: deferral area, %", measured, f"≥ {least_z:+g} SE", z >= least_z)


def blind(bench: Bench) -> list[Row]:
    """Gates fitted anew to a cloud that never answers three classes, and to labels of which a fifth is wrong."""
    rows = []
    seeing, test = bench.fit(), bench.test
    unseeing = Answers(seeing.levels, _blinded(seeing.cloud), seeing.labels)
    dark = Answers(test.levels, _blinded(test.cloud), test.labels)
    for level, gain in _refitted(bench, unseeing, dark).items():
        rows.append(_points(dark, level, gain))
    generator = np.random.default_rng(bench.seed)
    noisy = seeing.labels.copy()
    wrong = generator.random(seeing.count) < 0.2
    noisy[wrong] = generator.integers(0, seeing.cloud.shape[1], int(wrong.sum()))
    for level, gain in _refitted(bench, Answers(seeing.levels, seeing.cloud, noisy), test).items():
        rows.append(_beside(test, level, gain, "blind", "20 % of the labels at random", -1.0))
    return rows


def _points(answers: Answers, level: int, gain: NDArray[np.float64]) -> Row:
    row = _beside(answers, level, gain, "blind", f"cloud blind to {len(BLIND)} classes", 0.0)
    points = 100 * (answers.area(level, gain) - answers.area(level, -answers.levels[level - 1].max(axis=1)))
    return Row("blind", row.what, row.measured, "≥ +5 points", points >= 5.0)


def _blinded(cloud: NDArray[np.float32]) -> NDArray[np.float32]:
    dark = cloud.copy()
    dark[:, list(BLIND)] *= 1e-4
    scaled: NDArray[np.float32] = dark / dark.sum(axis=1, keepdims=True)
    return scaled


def _refitted(bench: Bench, fit: Answers, test: Answers) -> Gains:
    """Gains on the test images by gates fitted as a build fits them."""
    images = np.concatenate([bench.images.train.images, bench.images.gate.images])
    back = np.arange(fit.count) >= len(bench.images.train.labels)
    seen, targets = glances(images), targets_of(fit)
    pre = fit_pre(seen, fit, targets, back, pre_gate_fit(bench.how), bench.seed)
    before = pre_scores(pre, seen)
    post, _ = fit_post(fit, targets, before, back, post_gate_fit(bench.how), bench.seed)
    now = pre_scores(pre, glances(bench.images.test.images))
    levels = len(test.levels)
    return {
        k: gain_after(post_scores(post, test.levels[k - 1], one_hot(k, levels, test.count), now), k)
        for k in range(1, levels + 1)
    }


CORRUPTIONS: dict[str, Callable[[NDArray[np.float64], np.random.Generator], NDArray[np.float64]]] = {
    "noise of 20 grey levels": lambda x, rng: x + rng.normal(0, 20, x.shape),
    "noise of 60 grey levels": lambda x, rng: x + rng.normal(0, 60, x.shape),
    "darker by half": lambda x, rng: 0.5 * x,
    "brighter by 60 grey levels": lambda x, rng: x + 60,
    "half the contrast": lambda x, rng: 0.5 * x + 64,
    "shifted by 3 pixels": lambda x, rng: np.roll(x, 3, axis=2),
    "blurred, 3 x 3": lambda x, rng: sum(np.roll(x, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9,
    "mirrored": lambda x, rng: x[:, :, ::-1],
}


def corrupted(bench: Bench) -> list[Row]:
    """The bundle's gates on images unlike those that they were fitted to, and when the agent would give them up.

    The agent's detectors see the same images in turn; from their alarm on, calibrated confidence decides, which orders
    as max-softmax does.
    """
    rows = []
    top = len(bench.starter.chain)
    for name, change in CORRUPTIONS.items():
        pixels = change(bench.images.test.images.astype(np.float64), np.random.default_rng(0))
        split = data.Split(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), bench.images.test.labels)
        answers = bench.starter.answers(split)
        gain = gain_after(bench.starter.scores(split.images, answers, top)[1], top)
        row = _beside(answers, top, gain, "corrupted", name, -1.0)
        after = _inputs_to_the_alarm(bench.starter, split.images)
        given_up = f"given up after {after} inputs" if after is not None else "no alarm"
        measured = f"{row.measured}; {given_up}"
        rows.append(Row(row.part, row.what, measured, "≥ -1 SE, or an alarm", row.meets or after is not None))
    return rows


def _inputs_to_the_alarm(starter: Starter, images: Images) -> int | None:
    manifest = starter.bundle.manifest
    seen = look(manifest, Gates(starter.bundle), Chain(starter.chain, ["image"]), {"image": images[:ALARM_WITHIN]})
    columns = (seen.pre_gate_gain, seen.brightness, seen.contrast, seen.levels[-1])
    watch = Watch(manifest.references, len(manifest.levels))
    for end in range(STEP, ALARM_WITHIN + 1, STEP):
        if watch.alarm(columns, np.arange(end - STEP, end)):
            return end
    return None


def claims(bench: Bench) -> list[Row]:
    """Beside Eshratifar and Pedram 2020: device accuracy +8.52 %, cloud compute 2.85 times less."""
    prices = bench.starter.bundle.manifest.multiplexer
    rows = []
    for level in range(1, len(bench.starter.chain) + 1):
        before, after = bench.starter.scores(bench.images.test.images, bench.test, level)
        result = routed(bench.test, level, before, after, prices.offload_first, prices.defer[level - 1])
        more = 100 * (result.accuracy - result.level_accuracy)
        relative = 100 * (result.accuracy / result.level_accuracy - 1)
        measured = (
            f"{100 * result.level_accuracy:.2f} → {100 * result.accuracy:.2f} % ({more:+.2f} points, "
            f"{relative:+.2f} %); cloud {100 * result.cloud_accuracy:.2f} %; "
            f"cloud compute {1 / (1 - result.kept):.1f}× less"
        )
        rows.append(Row("claims", f"level {level}, certified prices", measured, "theirs: +8.52 %, 2.85×", None))
    return rows


def certificate(bench: Bench) -> list[Row]:
    """Certificates from 500 inputs drawn again and again, each judged on all the others."""
    alpha, delta, n = 0.05, 0.1, 500
    rows = []
    gains = bench.starter.gains(bench.images.test.images, bench.test)
    gate_gains = bench.starter.gains(bench.images.gate.images, bench.starter.answers(bench.images.gate))
    for level in (1, 2):
        gain, grid = gains[level], grid_of(gate_gains[level], 200)
        differs = bench.test.differs(level)
        generator = np.random.default_rng(level)
        broken, naive_broken, extra = 0, 0, []
        for _ in range(REDRAWS):
            chosen = np.zeros(len(gain), bool)
            chosen[generator.permutation(len(gain))[:n]] = True
            price = certify(gain[chosen], differs[chosen], grid, alpha, delta).price
            naive = naive_threshold(gain[chosen], differs[chosen], alpha)
            kept, naive_kept = gain[~chosen] <= price, gain[~chosen] <= naive
            broken += bool((differs[~chosen] & kept).mean() > alpha)
            naive_broken += bool((differs[~chosen] & naive_kept).mean() > alpha)
            extra.append(float(naive_kept.mean() - kept.mean()))
        share, points = broken / REDRAWS, 100 * float(np.mean(extra))
        measured = (
            f"broken in {100 * share:.1f} % of {REDRAWS} redraws (naive {100 * naive_broken / REDRAWS:.1f} %), "
            f"{points:+.1f} points of offload over naive"
        )
        what = f"level {level}, alpha {alpha}, delta {delta}, n {n}"
        rows.append(Row("certificate", what, measured, "≤ 10 %, ≤ +6 points", share <= delta and points <= 6.0))
    return rows


def time_of_gates(bench: Bench) -> list[Row]:
    """Both gates against the level-4 model: one input, one thread, in turns."""
    starter, one = bench.starter, bench.images.test.images[:1]
    top = len(starter.chain)
    level = one_hot(top, top, 1)
    probabilities = bench.test.levels[-1][:1]

    def gates() -> None:
        scores = starter.pre.run({"image": one})[0]
        starter.post.run({"probabilities": probabilities, "level": level, "scores": scores})

    model_ms, gates_ms = profile.medians_ms([top_of(starter.chain, one), gates], 1000)
    share = 100 * gates_ms / model_ms
    measured = f"{share:.1f} % ({1e3 * gates_ms:.1f} of {1e3 * model_ms:.1f} µs)"
    return [Row("time", "both gates against level 4", measured, "≤ 10 %", share <= 10.0)]


def lab(bench: Bench) -> list[Row]:
    """The command on made-up logits, as a process of its own."""
    generator = np.random.default_rng(0)
    count, classes = 10_000, 1_000
    labels = generator.integers(0, classes, count)
    truth = generator.normal(size=(count, classes)).astype(np.float32)
    truth[np.arange(count), labels] += 4.0
    noise = generator.normal(size=(count, classes)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logits.npz"
        np.savez(path, edge_logits=1.5 * truth + noise, cloud_logits=2.0 * truth, labels=labels)
        began = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "edgemux.cli.main",
                "lab",
                "--data",
                str(path),
                "--json",
                "--out",
                f"{folder}/l.html",
            ],
            check=True,
            capture_output=True,
        )
        taken = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    fits = taken <= 60.0 and peak <= 2.0
    return [Row("lab", f"{count:,} x {classes:,} logits", f"{taken:.1f} s, {peak:.2f} GiB", "≤ 60 s, ≤ 2 GB", fits)]


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "pair": pair,
    "blind": blind,
    "corrupted": corrupted,
    "claims": claims,
    "certificate": certificate,
    "time": time_of_gates,
    "lab": lab,
}


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Figures of the router.")
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--part", action="append", choices=list(PARTS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.bundle)
    rows = [row for name in options.part or PARTS for row in PARTS[name](bench)]
    if options.json:
        print(msgspec.json.encode(rows).decode())
        return 0
    table = Table("part", "what", "measured", "target", "")
    for row in rows:
        verdict = "" if row.meets is None else "met" if row.meets else "MISSED"
        table.add_row(row.part, row.what, row.measured, row.target, verdict)
    console = Console(width=max(Console().width, 160))
    console.print(table)
    console.print(f"measured on: {hardware()}; bundle {bench.starter.bundle.manifest.digest[:12]}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
