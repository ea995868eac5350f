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
from edgemux.compression.gates import PICTURE
from edgemux.compression.hardware import hardware
from edgemux.compression.measure import Figures
from edgemux.compression.models import CLOUD, Exported, level_file
from edgemux.compression.multiplex import POST_GATE, PRE_GATE, Prices
from edgemux.compression.payloads import add_payloads
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
# The set's pictures are light on black; the pixels go in as they are.
PREPROCESSING = Preprocessing(mode="L", height=28, width=28)


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
        measured = parts.exported.measured | parts.figures.measured
        about = _data(plan, images), parts.exported.verdicts, measured
        made = provenance_of(recipe, recipe_sha256, plan.seed, seconds, *about)
        what = plan.name, plan.pack.version, PICTURE, CLASSES, PREPROCESSING
        bundle.seal(part, manifest_of(*what, parts.figures, parts.prices, listed, made))
        add_references(part, {"image": images.gate.images}, {"image": images.certify.images})
        test = images.test
        add_payloads(part, lambda index: test.images[index], np.arange(len(test.labels)), test.labels)
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


def manifest_of(
    name: str,
    version: str,
    tensor: Tensor,
    classes: tuple[str, ...],
    preprocessing: Preprocessing | None,
    figures: Figures,
    prices: Prices,
    listed: list[str],
    provenance: Provenance,
) -> Manifest:
    """A manifest to be sealed, of a bundle that holds the files ``listed``, the samples among them if it has any."""
    return Manifest(
        format=bundle.FORMAT,
        name=name,
        version=version,
        inputs=(tensor,),
        outputs=(Tensor("probabilities", "FP32", (-1, len(classes))), Tensor("label", "INT64", (-1,))),
        classes=classes,
        preprocessing=preprocessing,
        levels=figures.levels,
        cloud=figures.cloud,
        multiplexer=_gates(figures, prices),
        certificate=prices.certificate,
        golden=GOLDEN,
        samples=SAMPLES if SAMPLES in listed else None,
        files=tuple(File(path=name, bytes=0, sha256="") for name in listed),
        provenance=provenance,
    )


def _gates(figures: Figures, prices: Prices) -> MultiplexerFiles:
    return MultiplexerFiles(
        pre_gate=PRE_GATE,
        post_gate=POST_GATE,
        routes=(*(level.name for level in figures.levels), figures.cloud.name),
        offload_first=prices.offload_first,
        defer=prices.defer,
        median_ms=figures.multiplexer_ms,
    )


def provenance_of(
    recipe: str,
    recipe_sha256: str,
    seed: int,
    seconds: float,
    data: str,
    verdicts: dict[str, str],
    measured: dict[str, float],
) -> Provenance:
    """Where a bundle that is made now and here comes from; versions are of what its figures may depend on."""
    return Provenance(
        recipe=recipe,
        recipe_sha256=recipe_sha256,
        seed=seed,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        duration_s=round(seconds, 1),
        hardware=hardware(),
        data=data,
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
        },
        verdicts=verdicts,
        measured=measured,
    )


def _data(plan: Recipe, images: DataSet) -> str:
    counts = {
        "for models and gates": images.train,
        "for temperatures and the calibration of the gates": images.gate,
        "for the certificate": images.certify,
        "of the test set for reports": images.test,
    }
    described = ", ".join(f"{len(split.labels)} {use}" for use, split in counts.items())
    return f"Fashion-MNIST (MIT): {described}; samples: {plan.pack.samples} of the test images, stratified"
