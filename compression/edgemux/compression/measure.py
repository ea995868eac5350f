"""What the packed files cost and how right they are: the figures of the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgemux.compression import profile
from edgemux.compression.chain import IMAGE, top_of
from edgemux.compression.models import CLOUD, Exported, level_file
from edgemux.compression.multiplex import (
    POST_GATE,
    PRE_GATE,
    Prices,
    Scored,
    read_answers,
    scores_after,
    scores_before,
)
from edgemux.multiplexer.bundle import Level, Model
from edgemux.multiplexer.certify import interval
from edgemux.multiplexer.gates import gain_after
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.labels import one_hot
from edgemux.multiplexer.training.report import calibration, routed

FIGURES = "figures.json"
CLOUD_NAME = "cloud"


class Figures(msgspec.Struct, frozen=True):
    """Everything that was measured, in the manifest's own structs."""

    levels: tuple[Level, ...]
    cloud: Model
    multiplexer_ms: float
    measured: dict[str, float]


def level_name(level: int) -> str:
    """The variant's name of a level."""
    return f"level{level}"


def write(
    models: Path, answers: Path, gate_files: Path, prices: Prices, exported: Exported, repeats: int, folder: Path
) -> None:
    """Measure times on one input, count weights and work, and score the test set."""
    images, right = read_answers(answers, "test")
    test = Scored(right, scores_before(gate_files, images))
    save(figures(models, gate_files, {IMAGE: images[:1]}, test, prices, exported, repeats), folder)


def figures(
    models: Path,
    gate_files: Path,
    one: Mapping[str, NDArray[Any]],
    test: Scored,
    prices: Prices,
    exported: Exported,
    repeats: int,
) -> Figures:
    """The figures of a bundle's files; ``one``: one input, by its name, [1, ...]."""
    ((name, row),) = one.items()
    levels = len(test.answers.levels)
    chain = [OnnxModel.read(models / level_file(k)) for k in range(1, levels + 1)]
    cloud = OnnxModel.read(models / CLOUD)
    runs = [top_of(chain[:k], row, name) for k in range(1, levels + 1)]
    classes = test.answers.cloud.shape[1]
    *level_ms, cloud_ms, gates_ms = profile.medians_ms(
        [*runs, lambda: cloud.run(one), _both_gates(gate_files, one, levels, classes)], repeats
    )
    right = test.answers.right()
    described = [
        _level(models, k, level_ms[k - 1], right[:, k - 1], exported.level_storage) for k in range(1, levels + 1)
    ]
    return Figures(
        levels=tuple(described),
        cloud=_cloud(models, cloud_ms, right[:, -1], exported.cloud_storage),
        multiplexer_ms=gates_ms,
        measured=_multiplexed(test, gate_files, prices),
    )


def save(made: Figures, folder: Path) -> None:
    """For ``read``."""
    (folder / FIGURES).write_bytes(msgspec.json.encode(made))


def read(folder: Path) -> Figures:
    """What ``save`` saved."""
    return msgspec.json.decode((folder / FIGURES).read_bytes(), type=Figures)


def _both_gates(folder: Path, one: Mapping[str, NDArray[Any]], levels: int, classes: int) -> Any:
    """One call = pre-gate and post-gate of one input, the way from one to the other included."""
    pre, post = OnnxModel.read(folder / PRE_GATE), OnnxModel.read(folder / POST_GATE)
    probabilities = np.full((1, classes), 1 / classes, np.float32)
    level = one_hot(levels, levels, 1)

    def run() -> None:
        scores = pre.run(one)[0]
        post.run({"probabilities": probabilities, "level": level, "scores": scores})

    return run


def _level(models: Path, level: int, ms: float, right: NDArray[Any], storage: str) -> Level:
    """A level is the sum of all deltas up to its own; heads below it are stored but not run."""
    graphs = [onnx.load(models / level_file(k)) for k in range(1, level + 1)]
    heads = sum(profile.head_macs(graph) for graph in graphs[:-1])
    return Level(
        level=level,
        name=level_name(level),
        files=tuple(level_file(k) for k in range(1, level + 1)),
        params=sum(profile.parameters(graph) for graph in graphs),
        macs=sum(profile.macs(graph) for graph in graphs) - heads,
        accuracy=float(right.mean()),
        accuracy_interval=interval(int(right.sum()), len(right)),
        median_ms=ms,
        storage=storage,
    )


def _cloud(models: Path, ms: float, right: NDArray[Any], storage: str) -> Model:
    graph = onnx.load(models / CLOUD)
    return Model(
        name=CLOUD_NAME,
        files=(CLOUD,),
        params=profile.parameters(graph),
        macs=profile.macs(graph),
        accuracy=float(right.mean()),
        accuracy_interval=interval(int(right.sum()), len(right)),
        median_ms=ms,
        storage=storage,
    )


def _multiplexed(scored: Scored, gate_files: Path, prices: Prices) -> dict[str, float]:
    """The test set routed with the bundle's prices, once per level, and how well the scores are calibrated."""
    test, before = scored.answers, scored.before
    measured: dict[str, float] = {}
    for level, price in enumerate(prices.defer, start=1):
        name = level_name(level)
        after = scores_after(gate_files, test, level, before)
        result = routed(test, level, before, after, prices.offload_first, price)
        level_error, cloud_error = calibration(test, level, after)
        measured |= {
            f"{name}_multiplexed_accuracy": result.accuracy,
            f"{name}_kept": result.kept,
            f"{name}_skipped": result.skipped,
            f"{name}_disagreement": result.disagreement,
            f"{name}_calibration_error": level_error,
            f"{name}_cloud_calibration_error": cloud_error,
            f"{name}_deferral_area": test.area(level, gain_after(after, level)),
            f"{name}_deferral_area_max_softmax": test.area(level, -test.levels[level - 1].max(1)),
        }
    return measured
