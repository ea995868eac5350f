"""A head and a tail, run over inputs as device and cloud would run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.compression.chain import answers_of
from edgemux.multiplexer.gates import gain_after
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.multiplexer.training.labels import one_hot
from edgemux.wire.bits import packed

BLOCK = 250
# Inputs -> what a head can read of them, by name.
Sources = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]


def sent_of(head: OnnxModel, given: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """What is sent, before it is packed."""
    sent: NDArray[np.uint8] = head.run({name: given[name] for name in head.inputs}, [head.outputs[0]])[0]
    return sent


def through(
    head: OnnxModel, tail: OnnxModel, bits: int, sources: Sources, images: NDArray[Any]
) -> tuple[NDArray[np.int64], list[int]]:
    """The labels that come back, and the bytes of each input, packed, without its length in the message."""
    labels, sizes = [], []
    for part in np.array_split(images, max(1, len(images) // BLOCK)):
        sent = sent_of(head, sources(part))
        sizes += [len(element) for element in packed(sent, bits)]
        labels.append(tail.run({tail.inputs[0]: sent}, ["probabilities"])[0].argmax(axis=1))
    return np.concatenate(labels).astype(np.int64), sizes


def gains_after_last(
    pre: OnnxModel, post: OnnxModel, answers: NDArray[np.float32], levels: int, images: NDArray[Any]
) -> NDArray[np.float64]:
    """What the post-gate expects of the cloud for each of the images, after the last level's answers."""
    feeds = {
        "probabilities": answers,
        "level": one_hot(levels, levels, len(answers)),
        "scores": answers_of(pre, images),
    }
    return gain_after(post.run({name: feeds[name] for name in post.inputs})[0], levels)


def level_of(head: Sequence[str], levels: Sequence[OnnxModel], inputs: Sequence[str]) -> int:
    """The lowest level after which there is all that a head reads, 0 for the input alone. ValueError: there is none."""
    known = set(inputs)
    for number, states in enumerate([(), *(level.outputs for level in levels)]):
        known.update(states)
        if set(head) <= known:
            return number
    raise ValueError(f"no level leaves {sorted(set(head) - known)}")
