"""What the bottlenecks are made for: the starter bundle's models, the images, what the device would defer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.compression import data
from edgemux.compression.chain import answers_of_levels
from edgemux.compression.split.bottleneck import Source
from edgemux.compression.split.costs import Whole
from edgemux.compression.split.graph_net import exposed
from edgemux.compression.split.teach import Teacher
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import Chain
from edgemux.multiplexer.onnx_model import OnnxModel
from split_bench.halves import gains_after_last

BUNDLE = Path(__file__).parents[2] / "deploy" / "bundles" / "fashion-mnist"
# Of the recipe that made the bundle: the same images are held out.
HELD_OUT, SEED = 5000, 20261123
# The cloud's model is cut before its last convolutions at 7x7, and this many channels of that size are sent.
CUT, CHANNELS, SIZE = (96, 7, 7), 24, (7, 7)
LEVEL = 3
PICTURE = (Source("image", (1, 28, 28), pixels=True),)
# The picture is there as well, and has what the device's first layers drop.
LEFT_BEHIND = (*PICTURE, Source("a3", (20, 14, 14)), Source("b3", (32, 14, 14)), Source("c3", (56, 7, 7)))
Probabilities = NDArray[np.float32]


class Study:
    """The bundle's models, the images, and what the device's last level would defer."""

    def __init__(self, limit: int | None) -> None:
        files = Bundle.open(BUNDLE)
        self.manifest = files.manifest
        held_out = HELD_OUT if limit is None else limit // 5
        self.sets = data.load("fashion-mnist", held_out, SEED, limit=limit)
        self.whole = Whole(files.read("cloud.onnx"), "cloud.onnx")
        cut = next(each for each in self.whole.cuts if self._shape(each.tensors) == CUT)
        halves = self.whole.halves(cut)
        self.first = halves.head
        self.at_cut = (Source(cut.tensors[0], CUT),)
        # What the last layer reads: 192 numbers say more of an image than ten probabilities.
        self.features = next(node.input[0] for node in halves.tail.graph.node if node.op_type == "Gemm")
        self.tail = exposed(halves.tail, self.features)
        self.teacher = Teacher(*(OnnxModel(h.SerializeToString(), "half") for h in (halves.head, self.tail)))
        self.levels = [OnnxModel(files.read(level.files[-1]), level.name) for level in self.manifest.levels]
        names = self.manifest.multiplexer
        self.pre = OnnxModel(files.read(names.pre_gate), names.pre_gate)
        self.post = OnnxModel(files.read(names.post_gate), names.post_gate)

    def _shape(self, tensors: tuple[str, ...]) -> tuple[int, ...]:
        return self.whole.measured[tensors[0]].shape[1:] if len(tensors) == 1 else ()

    def left_behind(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """What levels 1 to LEVEL leave behind of uint8 [n, 28, 28], as far as the encoder reads it."""
        pool = Chain(self.levels, ["image"]).known_at(LEVEL, {"image": pixels})
        return {source.name: pool[source.name] for source in LEFT_BEHIND}

    def cut(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """What the cloud's model has at the cut, of uint8 [n, 28, 28]."""
        return {self.at_cut[0].name: self.teacher.cut(pixels)}

    def often_hard(self) -> NDArray[np.int64]:
        """Indices of training images: the quarter of which the last level is least sure twice, the surest half once
        of two.

        What is deferred looks like the first, and of the last there is little to learn.
        """
        images = self.sets.train.images
        order = np.argsort(answers_of_levels(self.levels, images)[-1].max(axis=1), kind="stable")
        quarter, half = len(order) // 4, len(order) // 2
        return np.concatenate([order[:half], order[:quarter], order[half::2]])

    def gains(self, images: NDArray[np.uint8]) -> tuple[Probabilities, NDArray[np.float64]]:
        """The last level's answers, and what the post-gate then expects of the cloud."""
        answers = answers_of_levels(self.levels, images)[-1]
        return answers, gains_after_last(self.pre, self.post, answers, len(self.levels), images)


def picture(pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What the bottleneck's head reads."""
    return {"image": pixels}
