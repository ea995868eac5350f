"""Runs exported graphs over whole data sets, in batches, as the servers run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.chain import Activations, Chain
from edgemux.multiplexer.onnx_model import OnnxModel

BATCH = 250


def run_levels(models: Sequence[OnnxModel], images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Probabilities float32 [n, classes] of every level of a chain, for images uint8 [n, 28, 28]."""
    chain, activations = Chain(models, ["image"]), Activations({"image": images})
    return [chain.run(level, activations) for level in range(1, len(chain) + 1)]


def run_top(models: Sequence[OnnxModel], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities of the last level only; the heads below it are not asked for, as in serving."""
    answer: NDArray[np.float32] = Chain(models, ["image"]).answer({"image": images})
    return answer


def top_of(models: Sequence[OnnxModel], images: NDArray[np.uint8]) -> Callable[[], object]:
    """``run_top`` as a call to be timed: the chain is put together once, as it is in serving."""
    chain = Chain(models, ["image"])
    return lambda: chain.answer({"image": images})


def answers_of_levels(models: Sequence[OnnxModel], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [levels, n, classes], in batches."""
    parts = [np.stack(run_levels(models, part)) for part in _batches(images)]
    return np.concatenate(parts, axis=1)


def answers_of(model: OnnxModel, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a model with the one input ``image`` answers, float32 [n, ...], in batches."""
    return np.concatenate([model.run({"image": part})[0] for part in _batches(images)])


def _batches(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return np.array_split(images, max(1, len(images) // BATCH))
