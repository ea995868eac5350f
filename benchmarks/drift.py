"""How rarely the watch for drift is wrong, and how soon it is right: the starter bundle on Fashion-MNIST's test set.

    python benchmarks/drift.py [--bundle DIR] [--runs N] [--inputs N] [--json]

Inputs are drawn from the test set with replacement, so that they are independent; the level is the highest. Detectors,
references and threshold are the agent's. A run with a change begins with 3,000 inputs without one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.compression import data
from edgemux.compression.hardware import hardware
from edgemux.edge.config import DriftSettings
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import Chain
from edgemux.multiplexer.drift import References, Stream
from edgemux.multiplexer.gates import Gates
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.usual import look

BUNDLE = Path(__file__).parents[1] / "deploy" / "bundles" / "fashion-mnist"
HELD_OUT, SEED = 5000, 20261123
BEFORE, AT_MOST, STEP = 3000, 20_000, 10

Pixels = NDArray[np.float64]
Columns = tuple[NDArray[np.float64], ...]


def neighbours(pixels: Pixels) -> Pixels:
    """Each pixel as the mean of itself and the four beside it."""
    beside = [np.roll(pixels, by, axis) for by in (-1, 1) for axis in (1, 2)]
    return np.asarray((pixels + sum(beside)) / 5)


def changes(rng: np.random.Generator) -> dict[str, Callable[[Pixels], Pixels]]:
    return {
        "noise of 20 grey levels": lambda pixels: pixels + rng.normal(0, 20, pixels.shape),
        "noise of 60 grey levels": lambda pixels: pixels + rng.normal(0, 60, pixels.shape),
        "0.6 times as bright": lambda pixels: pixels * 0.6,
        "30 grey levels brighter": lambda pixels: pixels + 30,
        "half the contrast": lambda pixels: pixels * 0.5 + 60,
        "shifted by 3 pixels": lambda pixels: np.roll(pixels, 3, axis=2),
        "mirrored": lambda pixels: pixels[:, :, ::-1],
        "blurred": neighbours,
    }


class Watch:
    """The agent's detectors of one level, told inputs by what the gates and levels make of them."""

    def __init__(self, references: References | None, levels: int) -> None:
        settings = DriftSettings()
        usual = (
            (references.pre_gate_gain, references.brightness, references.contrast, references.levels[-1])
            if references
            else (None,) * 4
        )
        self.streams = [Stream(settings.reference_inputs, reference) for reference in usual]
        # Three of inputs, one a level, one of audits: see Vigil.
        self.limit = settings.run_length * (3 + levels + 1)

    def alarm(self, columns: Columns, chosen: NDArray[np.int64]) -> bool:
        evidence = [stream.observe(column[chosen]) for stream, column in zip(self.streams, columns, strict=True)]
        return max(evidence) >= self.limit


def until_alarm(watch: Watch, usual: Columns, changed: Columns, rng: np.random.Generator) -> int | None:
    """Inputs from the change to the alarm; None if there was none."""
    if watch.alarm(usual, rng.integers(0, len(usual[0]), BEFORE)):
        return 0
    for seen in range(STEP, AT_MOST + STEP, STEP):
        if watch.alarm(changed, rng.integers(0, len(changed[0]), STEP)):
            return seen
    return None


def measure(bundle: Bundle, runs: int, inputs: int) -> dict[str, Any]:
    manifest = bundle.manifest
    gates = Gates(bundle)
    names = [level.files[-1] for level in manifest.levels]
    chain = Chain([OnnxModel(bundle.read(name), name) for name in names], ("image",))
    rng = np.random.default_rng(0)
    test = data.load("fashion-mnist", HELD_OUT, SEED).test

    def columns(pixels: Pixels) -> Columns:
        seen = look(manifest, gates, chain, {"image": pixels.clip(0, 255).astype(np.uint8)})
        return seen.pre_gate_gain, seen.brightness, seen.contrast, seen.levels[-1]

    usual = columns(test.images.astype(np.float64))
    references = None if manifest.references is msgspec.UNSET else manifest.references
    began = time.perf_counter()
    false = {
        name: sum(Watch(given, len(names)).alarm(usual, rng.integers(0, len(usual[0]), inputs)) for _ in range(runs))
        for name, given in {"the bundle's reference": references, "the first 2,000 inputs": None}.items()
    }
    per_input_us = (time.perf_counter() - began) / (2 * runs * inputs) * 1e6
    some = test.images[:4000].astype(np.float64)
    found = {name: columns(change(some)) for name, change in changes(rng).items()}
    kept = test.labels != 9
    if all(len(column) == len(kept) for column in usual):
        found["no ankle boots any more"] = tuple(column[kept] for column in usual)
    delays = {
        name: [until_alarm(Watch(references, len(names)), usual, changed, rng) for _ in range(10)]
        for name, changed in found.items()
    }
    return {"false_alarms": false, "detectors_us_per_input": per_input_us, "inputs_to_the_alarm": delays}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(Bundle.open(options.bundle), options.runs, options.inputs)
    if options.json:
        print(json.dumps({"hardware": hardware(), **found}))
        return
    print(f"hardware: {hardware()}")
    for name, count in found["false_alarms"].items():
        print(f"false alarms against {name}: {count} in {options.runs} runs of {options.inputs} inputs")
    print(f"detectors: {found['detectors_us_per_input']:.1f} us an input, beside the request path")
    for name, delays in found["inputs_to_the_alarm"].items():
        known = sorted(delay for delay in delays if delay is not None)
        said = f"{known[0]}-{known[-1]} inputs to the alarm" if known else f"no alarm in {AT_MOST} inputs"
        print(f"{name:<28}{said}; ten runs, {len(delays) - len(known)} without")


if __name__ == "__main__":
    main()
