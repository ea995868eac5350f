"""Runs exported graphs as the servers do: each delta takes what it needs from what was computed before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.onnx_model import OnnxModel

BATCH = 250
PROBABILITIES = "probabilities"


def run_levels(chain: Sequence[OnnxModel], images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Probabilities float32 [n, classes] of every level of a chain, for images uint8 [n, 28, 28]."""
    pool: dict[str, NDArray[Any]] = {"image": images}
    answers: list[NDArray[np.float32]] = []
    for model in chain:
        results = model.run({name: pool[name] for name in model.inputs})
        outputs = dict(zip(model.outputs, results, strict=True))
        answers.append(outputs.pop(PROBABILITIES).astype(np.float32))
        pool.update(outputs)
    return answers


def run_top(chain: Sequence[OnnxModel], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities of the last level only; the heads below it are not asked for, as in serving."""
    pool: dict[str, NDArray[Any]] = {"image": images}
    for number, model in enumerate(chain, start=1):
        states = [name for name in model.outputs if name != PROBABILITIES]
        wanted = [PROBABILITIES] if number == len(chain) else states
        results = model.run({name: pool[name] for name in model.inputs}, wanted)
        pool.update(zip(wanted, results, strict=True))
    answer: NDArray[np.float32] = pool[PROBABILITIES]
    return answer


def answers_of_levels(chain: Sequence[OnnxModel], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [levels, n, classes], in batches."""
    parts = [np.stack(run_levels(chain, part)) for part in _batches(images)]
    return np.concatenate(parts, axis=1)


def answers_of(model: OnnxModel, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a model with the one input ``image`` answers, float32 [n, ...], in batches."""
    return np.concatenate([model.run({"image": part})[0] for part in _batches(images)])


def _batches(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return np.array_split(images, max(1, len(images) // BATCH))
