"""The multiplexer's part of a build: what the exported files answer, the gates fitted to it, the certificate."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.compression import gates
from edgemux.compression.chain import answers_of, answers_of_levels
from edgemux.compression.data import DataSet
from edgemux.compression.fit import Tick
from edgemux.compression.glance import glance_graph
from edgemux.compression.models import CLOUD, level_file
from edgemux.compression.recipe import Certify, Gates
from edgemux.multiplexer.bundle import Certificate, Certified
from edgemux.multiplexer.certify import certify, grid_of, skip_price
from edgemux.multiplexer.gates import gain_after, gain_before
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.fit import fit_post, fit_pre, targets_of
from edgemux.multiplexer.training.labels import Answers, Floats, one_hot
from edgemux.multiplexer.training.net import How

PRE_GATE = "pre_gate.onnx"
POST_GATE = "post_gate.onnx"
CERTIFICATE = "certificate.json"
METHOD = (
    "fixed-sequence testing with exact binomial tests; bounds of Clopper and Pearson; delta / levels for each level"
)


class Prices(msgspec.Struct, frozen=True):
    """The price of each level, the certificate that they carry, if any, and from what gain the device is skipped."""

    defer: tuple[float, ...]
    certificate: Certificate | None
    offload_first: float


class Scored(msgspec.Struct, frozen=True):
    """A split as the routes answered it, and the pre-gate's scores, float32 [n, routes]."""

    answers: Answers
    before: Floats


def write_answers(models: Path, levels: int, images: DataSet, folder: Path, tick: Tick) -> None:
    """Run the exported files on every split."""
    chain = [OnnxModel.read(models / level_file(k)) for k in range(1, levels + 1)]
    cloud = OnnxModel.read(models / CLOUD)
    splits = {"train": images.train, "gate": images.gate, "certify": images.certify, "test": images.test}
    for number, (name, split) in enumerate(splits.items(), start=1):
        of_levels, of_cloud = answers_of_levels(chain, split.images), answers_of(cloud, split.images)
        np.savez(folder / f"{name}.npz", images=split.images, levels=of_levels, cloud=of_cloud, labels=split.labels)
        tick(number / len(splits))


def read_answers(folder: Path, name: str) -> tuple[NDArray[np.uint8], Answers]:
    """Images and answers of one split."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
        return stored["images"], Answers(stored["levels"], stored["cloud"], stored["labels"])


def write_gates(answers: Path, how: Gates, seed: int, folder: Path, tick: Tick) -> None:
    """Fit both gates on the training images, calibrate them on the gate split, and write their graphs.

    The models are surer of images that they were trained on, but the gates learn from where they err, and of that a
    training set has more than what was held out for the gates. Calibration uses the latter alone.
    """
    images, train = read_answers(answers, "train")
    held_images, held = read_answers(answers, "gate")
    images, right = np.concatenate([images, held_images]), train.followed_by(held)
    back = np.arange(right.count) >= train.count
    targets = targets_of(right)
    pre = fit_pre(glances(images), right, targets, back, pre_gate_fit(how), seed)
    (folder / PRE_GATE).write_bytes(gates.pre_gate_graph(pre).SerializeToString(deterministic=True))
    tick(0.3)
    scores = answers_of(OnnxModel.read(folder / PRE_GATE), images)
    post, _ = fit_post(right, targets, scores, back, post_gate_fit(how), seed)
    graph = gates.post_gate_graph(post, len(right.levels))
    (folder / POST_GATE).write_bytes(graph.SerializeToString(deterministic=True))


def glances(images: NDArray[np.uint8]) -> Floats:
    """What the pre-gate sees of pictures, float32 [n, features], by the nodes of its own graph."""
    return answers_of(OnnxModel(glance_graph(gates.PICTURE).SerializeToString(), "glance"), images)


def pre_gate_fit(how: Gates) -> How:
    """The settings of the pre-gate, which has more to learn by heart: ten times the weight decay."""
    return How(how.pre_hidden, how.rate, 10 * how.weight_decay, members=1, steps=how.steps)


def post_gate_fit(how: Gates) -> How:
    """The settings of the post-gate."""
    return How(how.post_hidden, how.rate, how.weight_decay, members=how.members, steps=how.steps)


def scores_before(folder: Path, images: NDArray[np.uint8]) -> Floats:
    """The pre-gate's scores, float32 [n, routes]."""
    return answers_of(OnnxModel.read(folder / PRE_GATE), images)


def scores_after(folder: Path, answers: Answers, level: int, before: Floats) -> Floats:
    """The post-gate's scores after a level's answer, float32 [n, routes]."""
    gate = OnnxModel.read(folder / POST_GATE)
    feeds: dict[str, NDArray[Any]] = {
        "probabilities": answers.levels[level - 1],
        "level": one_hot(level, len(answers.levels), answers.count),
        "scores": before,
    }
    after: Floats = gate.run({name: feeds[name] for name in gate.inputs})[0].astype(np.float32)
    return after


def gains(folder: Path, answers: Answers, level: int, before: Floats) -> NDArray[np.float64]:
    """P(cloud right) - P(level right) after that level answered, [n]; float64 differences of float32 scores."""
    return gain_after(scores_after(folder, answers, level, before), level)


def write_prices(answers: Path, gate_files: Path, data_sha256: str, how: Certify, skip: Gates, folder: Path) -> None:
    """Certify a price per level on the certificate split, and choose the skip price on the gate split."""
    fit, split = (_scored(answers, gate_files, name) for name in ("gate", "certify"))
    save_prices(priced(gate_files, fit, split, data_sha256, how, skip.skip_agreement), folder)


def _scored(answers: Path, gate_files: Path, name: str) -> Scored:
    images, right = read_answers(answers, name)
    return Scored(right, scores_before(gate_files, images))


def priced(gate_files: Path, fit: Scored, split: Scored, data_sha256: str, how: Certify, agreement: float) -> Prices:
    """A price per level, certified on ``split``; the order of prices and the skip price are chosen on ``fit``.

    The gates were fitted to neither: elsewhere they are surer than they are right. agreement: the share of skipped
    inputs that would go to the cloud anyway. data_sha256: of the inputs of ``split``.
    """
    levels = len(split.answers.levels)
    alphas = how.alpha if len(how.alpha) == levels else how.alpha * levels
    certified: list[Certified] = []
    for level, alpha in enumerate(alphas, start=1):
        fit_gain = gains(gate_files, fit.answers, level, fit.before)
        grid = grid_of(fit_gain, how.grid)
        # The test uses the cloud's answers alone: a user can repeat it on unlabelled inputs.
        gain = gains(gate_files, split.answers, level, split.before)
        price = certify(gain, split.answers.differs(level), grid, alpha, how.delta / levels)
        certified.append(Certified(level, price.price, price.kept, price.disagreement, price.upper_bound))
    # The last is the highest level, which is what a device runs when it can.
    first = skip_price(gain_before(fit.before), fit_gain > certified[-1].price, agreement)
    certificate = stated(how, alphas, split.answers.count, data_sha256, certified)
    return Prices(tuple(item.price for item in certified), certificate, first)


def stated(
    how: Certify, alphas: tuple[float, ...], count: int, data_sha256: str, certified: list[Certified]
) -> Certificate:
    """The certificate over ``count`` inputs, dated today."""
    return Certificate(
        alpha=alphas,
        delta=how.delta,
        n=count,
        method=METHOD,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        data_sha256=data_sha256,
        levels=tuple(certified),
    )


def save_prices(prices: Prices, folder: Path) -> None:
    """For ``read_prices``."""
    (folder / CERTIFICATE).write_bytes(msgspec.json.encode(prices))


def read_prices(folder: Path) -> Prices:
    """What ``save_prices`` saved."""
    return msgspec.json.decode((folder / CERTIFICATE).read_bytes(), type=Prices)
