"""Head on the device, tail in the cloud: when does it pay? Every way to answer, over links of all kinds.

    python benchmarks/split.py [--full] [--pairs DIR] [--imagenet DIR [--pictures DIR]] [--out DIR] [--json]

Device only, the whole input as it is and as a picture, the best cut of the cloud's own model (Neurosurgeon's way),
trained bottlenecks, the continuation of what the device has computed, and the planner's choice, over 0.5 to 100 Mbit/s
and 5 to 200 ms. Times of heads, tails and wholes are measured here, on one thread; the device is so many times as slow
(``--slower``), the link is the planner's sum. Some points are run for real, between processes of agent and cloud.

Splits are the bundle's own, or NAME-BITS-head.onnx and NAME-BITS-tail.onnx of a folder, as split_training.py writes
them. The ImageNet models come from packages that are there already, see split_bench/imagenet.py; so do photographs.
By default a few inputs and one real point, which shows that everything runs; figures of ``--full`` are in
docs/split-benchmark.md. ``--again`` takes the measurements of an earlier run, for another device or radio. The exit
status is 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import msgspec
import numpy as np
from rich.console import Console

from edgemux.compression import data
from edgemux.compression.hardware import hardware
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import ConfigError, EdgemuxError
from split_bench import live, plots
from split_bench.grid import KINDS, LTE, NEUROSURGEON, RAW, SPLITS, Energy, Setting, cells, scenes, winners
from split_bench.published import beside
from split_bench.tables import Part, Result, report, verdicts
from split_bench.traces import planning
from split_bench.ways import Half, Images, Labels, Say, Seen, bundle_setting, halves_of

BUNDLE = Path(__file__).resolve().parents[1] / "deploy" / "bundles" / "fashion-mnist"
LINES_AT_MS = 20.0


def measured(options: argparse.Namespace, say: Say) -> Result:
    """All of it."""
    bundle = Bundle.open(options.bundle)
    bundle.verify()
    seen = Seen(bundle, *_inputs(bundle, options))
    halves = halves_of(bundle, options.pairs, seen)
    settings = [bundle_setting(bundle, seen, halves, say)]
    if options.imagenet is not None:
        settings += _imagenet(options, say)
    runs, failed = ([], "") if options.no_live else _live(bundle, halves, settings[0], seen, options)
    return summed(settings, hardware(), datetime.date.today().isoformat(), runs, failed, options)


def _imagenet(options: argparse.Namespace, say: Say) -> list[Setting]:
    """Measured, or of an earlier run. Raises ConfigError."""
    if options.imagenet.is_file():
        return [part.setting for part in _earlier(options.imagenet).parts[1:]]
    from split_bench import imagenet  # torch

    return [imagenet.setting(options.imagenet, options.pictures, say)]


def _earlier(path: Path) -> Result:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path.name}: no split.json of an earlier run ({type(error).__name__})") from error


def summed(
    settings: Sequence[Setting],
    machine: str,
    date: str,
    runs: Sequence[live.Run],
    failed: str,
    options: argparse.Namespace,
) -> Result:
    """What was measured, over the grid."""
    energy = LTE if options.radio == "lte" else Energy()
    parts = tuple(_part(setting, energy, options) for setting in settings)
    return Result(machine, date, options.slower, energy, options.max_loss / 100, parts, tuple(runs), failed)


def again(options: argparse.Namespace) -> Result:
    """The sums of an earlier run's measurements. Raises ConfigError when the file is none of a run."""
    found = _earlier(options.again)
    settings = [part.setting for part in found.parts]
    return summed(settings, found.hardware, found.date, found.live, found.live_failed, options)


def _inputs(bundle: Bundle, options: argparse.Namespace) -> tuple[Images, Labels]:
    """The whole test set with --full, else some of the bundle's samples."""
    if options.full:
        images = data.parse_idx(data.fetch("test-images"))
        return images, data.parse_idx(data.fetch("test-labels")).astype(np.int64)
    samples = bundle.arrays("samples.npz")
    return samples["images"][: options.limit], samples["labels"][: options.limit].astype(np.int64)


def _part(setting: Setting, energy: Energy, options: argparse.Namespace) -> Part:
    found = cells(setting, options.slower, energy, options.max_loss / 100)
    traces, steps = (20, 3000) if options.full else (4, 1500)
    large = setting.of(RAW)[0].sent_bytes
    among = {"every cut, form and split": KINDS[1:], "the cuts, all here, all there": NEUROSURGEON}
    planned = tuple(
        planning(choice, [option.way(options.slower) for option in setting.of(*kinds)], large, traces, steps)
        for choice, kinds in among.items()
    )
    return Part(setting, tuple(found), tuple(beside(setting, found, options.slower)), planned)


def _live(
    bundle: Bundle, halves: Sequence[Half], setting: Setting, seen: Seen, options: argparse.Namespace
) -> tuple[list[live.Run], str]:
    """The raw input, and every pair of halves with the fewest bits, each as the only split of a bundle."""
    points, requests = (live.POINTS, 25) if options.full else (live.POINTS[:1], 5)
    chosen = {half.name: half for half in halves if half.bits == min(each.bits for each in halves)}
    found: list[live.Run] = []
    failed = []
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        for option in setting.of(RAW, *SPLITS):
            folder = bundle.folder
            if option.name in chosen:
                folder = live.with_one(folder, work / option.name, chosen[option.name], option, seen)
            elif option.kind != RAW:
                continue
            runs, wrong = live.runs(folder, work / f"{option.name}.toml", option, points, requests)
            found += runs
            failed += [wrong] if wrong else []
    return found, "; ".join(failed)


def _plots(result: Result, out: Path) -> None:
    for part in result.parts:
        setting, slower = part.setting, f"device {result.factor:g} times as slow"
        name = "split-" + re.sub(r"[^a-z0-9]+", "-", setting.name.lower())
        panels = [
            (scene.name, winners(setting, scene, result.factor, result.energy))
            for scene in scenes(setting, result.max_loss)
        ]
        title = f"{setting.name}: the quickest way over each link, and its ms ({slower})"
        (out / f"{name}-map.svg").write_text(plots.grid_map(title, panels))
        title = f"{setting.name}: latency over bandwidth, round trip {LINES_AT_MS:g} ms ({slower})"
        (out / f"{name}-latency.svg").write_text(plots.latency_lines(title, part.cells, LINES_AT_MS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, judge."""
    options = _options(arguments)
    console = Console(stderr=True)

    def say(text: str) -> None:
        if console.is_terminal:
            console.print(text, highlight=False)

    try:
        result = measured(options, say) if options.again is None else again(options)
    except EdgemuxError as error:
        console.print(f"split: {error}", style="red")
        return 2
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        _plots(result, options.out)
        (options.out / "split.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    print(msgspec.json.encode(result).decode() if options.json else report(result))
    judged = verdicts(result)
    for what, met in judged.items():
        print(f"{'met' if met else 'MISSED'}: {what}", file=sys.stderr)
    if result.live_failed:
        print(f"real points: {result.live_failed}", file=sys.stderr)
    return 0 if all(judged.values()) and not result.live_failed else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Every way to split a model, over links of all kinds.")
    parser.add_argument("--full", action="store_true", help="the setting of docs/split-benchmark.md: some ten minutes")
    parser.add_argument("--limit", type=int, default=100, help="inputs, unless --full")
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--pairs", type=Path, help="heads and tails in place of the bundle's splits")
    parser.add_argument(
        "--imagenet", type=Path, help="where the packages of EfficientNet-Lite0 and Lite2 are, or an earlier split.json"
    )
    parser.add_argument("--pictures", type=Path, help="photographs for their bytes; without: made-up ones")
    parser.add_argument("--slower", type=float, default=8.0, help="the device takes so many times as long")
    parser.add_argument("--max-loss", type=float, default=1.0, help="points of accuracy that a way may lose")
    parser.add_argument("--radio", choices=("wifi", "lte"), default="wifi", help="for the energy proxy")
    parser.add_argument("--again", type=Path, help="split.json of an earlier run, whose measurements are taken")
    parser.add_argument("--no-live", action="store_true", help="no processes are started")
    parser.add_argument("--out", type=Path, help="where plots and split.json go")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
