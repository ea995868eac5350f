"""Puts everything into a bundle directory and seals it."""

from __future__ import annotations

import datetime
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from edgemux.compression.chain import IMAGE, answers_of, answers_of_levels
from edgemux.compression.data import CLASSES, DataSet, stratified
from edgemux.compression.hardware import hardware
from edgemux.compression.measure import Figures
from edgemux.compression.models import CLOUD, Exported, level_file
from edgemux.compression.multiplex import POST_GATE, PRE_GATE, Prices
from edgemux.compression.places import check_place, replacing
from edgemux.compression.recipe import Recipe
from edgemux.multiplexer import bundle
from edgemux.multiplexer.bundle import (
    MANIFEST,
    Bundle,
    File,
    Manifest,
    MultiplexerFiles,
    Preprocessing,
    Provenance,
    Tensor,
)
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.labels import one_hot
from edgemux.multiplexer.usual import add_references

GOLDEN = "golden.npz"
SAMPLES = "samples.npz"


class Parts(msgspec.Struct, frozen=True):
    """What the stages left: their folders and what they found."""

    models: Path
    gates: Path
    exported: Exported
    prices: Prices
    figures: Figures


def check_target(out: Path) -> None:
    """Raises ConfigError for a place that holds anything but an older bundle."""
    check_place(out, MANIFEST, "not a bundle")


def write(
    plan: Recipe, recipe: str, recipe_sha256: str, images: DataSet, parts: Parts, seconds: float, out: Path
) -> Path:
    """Write the bundle beside ``out``, check it, and put it in the place of an older one."""
    check_target(out)
    with replacing(out) as part:
        levels = len(parts.figures.levels)
        files = [level_file(k) for k in range(1, levels + 1)] + [CLOUD]
        for folder, names in ((parts.models, files), (parts.gates, [PRE_GATE, POST_GATE])):
            for name in names:
                shutil.copyfile(folder / name, part / name)
        rng = np.random.default_rng(plan.seed)
        chosen = images.test.take(stratified(images.test.labels, plan.pack.samples, rng)[0])
        np.savez_compressed(part / SAMPLES, images=chosen.images, labels=chosen.labels.astype(np.uint8))
        golden = images.certify.take(stratified(images.certify.labels, plan.pack.golden, rng)[0])
        arrays = golden_answers(part, parts.figures, {IMAGE: golden.images}, golden.labels)
        np.savez_compressed(part / GOLDEN, allow_pickle=False, **arrays)
        listed = [*files, PRE_GATE, POST_GATE, GOLDEN, SAMPLES]
        provenance = _provenance(plan, recipe, recipe_sha256, images, parts, seconds)
        bundle.seal(part, _manifest(plan, parts, listed, provenance))
        add_references(part, {"image": images.gate.images}, {"image": images.certify.images})
        Bundle.open(part).verify()
    return out


def golden_answers(
    folder: Path, figures: Figures, inputs: Mapping[str, NDArray[Any]], labels: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Inputs and what every model answered here: the input, ``label``, each variant's probabilities, ``scores``."""
    ((name, rows),) = inputs.items()
    chain = [OnnxModel.read(folder / level_file(item.level)) for item in figures.levels]
    of_levels = answers_of_levels(chain, rows, name)
    answers: dict[str, NDArray[Any]] = {name: rows, "label": labels}
    answers |= {item.name: of_levels[item.level - 1] for item in figures.levels}
    answers[figures.cloud.name] = answers_of(OnnxModel.read(folder / CLOUD), rows)
    scores = answers_of(OnnxModel.read(folder / PRE_GATE), rows)
    top = figures.levels[-1]
    level = one_hot(top.level, len(figures.levels), len(labels))
    feeds: Mapping[str, NDArray[Any]] = {"probabilities": answers[top.name], "level": level, "scores": scores}
    answers["scores"] = scores
    answers["scores_after"] = OnnxModel.read(folder / POST_GATE).run(feeds)[0]
    return answers


def _manifest(plan: Recipe, parts: Parts, listed: list[str], provenance: Provenance) -> Manifest:
    figures, prices = parts.figures, parts.prices
    return Manifest(
        format=bundle.FORMAT,
        name=plan.name,
        version=plan.pack.version,
        inputs=(Tensor("image", "UINT8", (-1, 28, 28)),),
        outputs=(Tensor("probabilities", "FP32", (-1, len(CLASSES))), Tensor("label", "INT64", (-1,))),
        classes=CLASSES,
        # The set's pictures are light on black; the pixels go in as they are.
        preprocessing=Preprocessing(mode="L", height=28, width=28),
        levels=figures.levels,
        cloud=figures.cloud,
        multiplexer=gate_files(figures, prices),
        certificate=prices.certificate,
        golden=GOLDEN,
        samples=SAMPLES,
        files=tuple(File(path=name, bytes=0, sha256="") for name in listed),
        provenance=provenance,
    )


def gate_files(figures: Figures, prices: Prices) -> MultiplexerFiles:
    """The manifest's entry for the gates and their prices."""
    return MultiplexerFiles(
        pre_gate=PRE_GATE,
        post_gate=POST_GATE,
        routes=(*(level.name for level in figures.levels), figures.cloud.name),
        offload_first=prices.offload_first,
        defer=prices.defer,
        median_ms=figures.multiplexer_ms,
    )


def versions() -> dict[str, str]:
    """Of what a build's figures may depend on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def _provenance(
    plan: Recipe, recipe: str, recipe_sha256: str, images: DataSet, parts: Parts, seconds: float
) -> Provenance:
    counts = {
        "for models and gates": images.train,
        "for temperatures and the calibration of the gates": images.gate,
        "for the certificate": images.certify,
        "of the test set for reports": images.test,
    }
    described = ", ".join(f"{len(split.labels)} {use}" for use, split in counts.items())
    return Provenance(
        recipe=recipe,
        recipe_sha256=recipe_sha256,
        seed=plan.seed,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        duration_s=round(seconds, 1),
        hardware=hardware(),
        data=f"Fashion-MNIST (MIT): {described}; samples: {plan.pack.samples} of the test images, stratified",
        versions=versions(),
        verdicts=parts.exported.verdicts,
        measured=parts.exported.measured | parts.figures.measured,
    )
