"""What both models answer to the inputs, in batches; and the splits that gates, certificate and report are made on."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.compression.chain import run_levels
from edgemux.compression.fit import Tick
from edgemux.compression.glance import glance_graph
from edgemux.compression.models import CLOUD, level_file
from edgemux.compression.own.feed import Feed
from edgemux.compression.recipe import Certify
from edgemux.multiplexer.certify import rows_needed
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.labels import Answers, Floats

GATE_SHARE, CERTIFY_SHARE = 0.4, 0.3
# Below this the gates would be fitted to a handful of inputs.
FEWEST = 50
FEATURES_KEY = "features"
DIGESTS = "digests.json"
UNKNOWN = -1
Files = tuple[str, str]


class Splits(msgspec.Struct, frozen=True):
    """Rows of the inputs, each in one split: for gates and temperatures, the certificate, reports."""

    gate: NDArray[np.int64]
    certify: NDArray[np.int64]
    test: NDArray[np.int64]


def splits(count: int, how: Certify, seed: int) -> Splits:
    """All rows, shuffled and dealt out.

    Raises ConfigError when they are too few for the certificate: even if device and cloud agreed on all of them.
    """
    needed = rows_needed(how.alpha[0], how.delta)
    least = max(FEWEST, math.ceil(needed / CERTIFY_SHARE))
    if count < least:
        raise ConfigError(
            f"inputs: {count} are too few: alpha {how.alpha[0]:g} and delta {how.delta:g} need at least {least}, "
            f"of which {needed} back the certificate"
        )
    order = np.random.default_rng(seed).permutation(count)
    certified = max(needed, int(CERTIFY_SHARE * count))
    first = int(GATE_SHARE * count)
    return Splits(order[:first], order[first : first + certified], order[first + certified :])


def write(
    models: Path, feed: Feed, dealt: Splits, labels: NDArray[np.int64] | None, files: Files, folder: Path, tick: Tick
) -> None:
    """Run the wrapped files on every split, and note what was asked.

    Without labels the cloud's answer is taken for the truth. files: the users' names of device and cloud model. Raises
    ConfigError naming one that answers NaN.
    """
    chain, cloud = [OnnxModel.read(models / level_file(1))], OnnxModel.read(models / CLOUD)
    sees = OnnxModel(glance_graph(feed.tensor).SerializeToString(), "glance")
    total = sum(len(index) for index in msgspec.structs.astuple(dealt))
    done, digests = 0, dict[str, str]()
    for name, index in msgspec.structs.asdict(dealt).items():
        parts: dict[str, list[NDArray[Any]]] = {"levels": [], "cloud": [], FEATURES_KEY: []}
        sha256 = hashlib.sha256()
        for rows in feed.batches(index):
            sha256.update(rows.tobytes())
            parts["levels"].append(np.stack(run_levels(chain, rows, feed.tensor.name)))
            parts["cloud"].append(cloud.run({feed.tensor.name: rows})[0])
            parts[FEATURES_KEY].append(sees.run({feed.tensor.name: rows})[0])
            done += len(rows)
            tick(done / total)
        of_levels, of_cloud = np.concatenate(parts["levels"], axis=1), np.concatenate(parts["cloud"])
        check_finite(files[0], of_levels[0])
        check_finite(files[1], of_cloud)
        known = np.full(len(index), UNKNOWN, np.int64) if labels is None else labels[index]
        digests[name] = _finished(sha256, known)
        truth = of_cloud.argmax(axis=1) if labels is None else known
        features = np.concatenate(parts[FEATURES_KEY])
        np.savez(folder / f"{name}.npz", levels=of_levels, cloud=of_cloud, labels=truth, features=features)
    (folder / DIGESTS).write_bytes(msgspec.json.encode(digests))


def _finished(sha256: Any, labels: NDArray[np.int64]) -> str:
    """As of a built-in data set: the digest of the inputs followed by the labels, -1 where there are none."""
    sha256.update(labels.astype("<i8").tobytes())
    return str(sha256.hexdigest())


def check_finite(file: str, answers: NDArray[np.float32]) -> None:
    """Raises ConfigError naming the file when one of the answers [n, ...] is not a number."""
    bad = int((~np.isfinite(answers).reshape(len(answers), -1).all(axis=1)).sum())
    if bad:
        raise ConfigError(f"{file}: answers NaN or infinity to {bad} of {len(answers)} inputs")


def read(folder: Path, name: str) -> tuple[Floats, Answers]:
    """What the pre-gate sees of one split, [n, features], and its answers."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
        return stored[FEATURES_KEY], Answers(stored["levels"], stored["cloud"], stored["labels"].astype(np.int64))


def digests(folder: Path) -> dict[str, str]:
    """By split, the sha256 of what was asked."""
    return msgspec.json.decode((folder / DIGESTS).read_bytes(), type=dict[str, str])
