"""Runs exported graphs over whole data sets, in batches, as the servers run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.chain import Activations, Chain
from edgemux.multiplexer.onnx_model import OnnxModel

BATCH = 250
IMAGE = "image"


def run_levels(models: Sequence[OnnxModel], images: NDArray[Any], name: str = IMAGE) -> list[NDArray[np.float32]]:
    """Probabilities float32 [n, classes] of every level of a chain, for inputs [n, ...] of that name."""
    chain, activations = Chain(models, [name]), Activations({name: images})
    return [chain.run(level, activations) for level in range(1, len(chain) + 1)]


def run_top(models: Sequence[OnnxModel], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities of the last level only; the heads below it are not asked for, as in serving."""
    answer: NDArray[np.float32] = Chain(models, [IMAGE]).answer({IMAGE: images})
    return answer


def top_of(models: Sequence[OnnxModel], images: NDArray[Any], name: str = IMAGE) -> Callable[[], object]:
    """``run_top`` as a call to be timed: the chain is put together once, as it is in serving."""
    chain = Chain(models, [name])
    return lambda: chain.answer({name: images})


def answers_of_levels(models: Sequence[OnnxModel], images: NDArray[Any], name: str = IMAGE) -> NDArray[np.float32]:
    """float32 [levels, n, classes], in batches."""
    parts = [np.stack(run_levels(models, part, name)) for part in _batches(images)]
    return np.concatenate(parts, axis=1)


def answers_of(model: OnnxModel, images: NDArray[Any]) -> NDArray[np.float32]:
    """What a model of one input answers, float32 [n, ...], in batches."""
    (name,) = model.inputs
    return np.concatenate([model.run({name: part})[0] for part in _batches(images)])


def _batches(images: NDArray[Any]) -> list[NDArray[Any]]:
    return np.array_split(images, max(1, len(images) // BATCH))
