"""Heads of splits in memory: what runs on the device before the rest of a model runs in the cloud."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Bundle, Split
from edgemux.multiplexer.chain import Activations, Chain, Golden
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import OnnxModel, Stop


class Head:
    """One head. ``passes_on``: whether what it makes of the golden inputs are these inputs themselves."""

    def __init__(self, bundle: Bundle, split: Split) -> None:
        """Raises ArtifactError naming the file."""
        self.split = split
        self._model = OnnxModel(bundle.read(split.head), split.head)
        if split.sent.name not in self._model.outputs:
            raise ArtifactError(f"{split.head}: does not make {split.sent.name}")
        self.passes_on = False

    def run(self, activations: Activations, stop: Stop | None = None) -> NDArray[np.uint8]:
        """What is sent, UINT8 [N, ...]. What the levels below leave must be there."""
        pool = activations.pool
        feeds = {name: pool[name] for name in self._model.inputs}
        sent: NDArray[np.uint8] = self._model.run(feeds, [self.split.sent.name], stop)[0]
        return sent

    def check(self, golden: Golden, chain: Chain) -> None:
        """Run it on the golden inputs, all and one. Raises ArtifactError where it makes what cannot be sent."""
        sent = self._checked(golden.inputs, chain)
        self._checked({name: array[:1] for name, array in golden.inputs.items()}, chain)
        self.passes_on = any(np.array_equal(sent.ravel(), array.ravel()) for array in golden.inputs.values())

    def _checked(self, tensors: dict[str, Any], chain: Chain) -> NDArray[np.uint8]:
        rows = len(next(iter(tensors.values())))
        try:
            activations = Activations(tensors)
            if self.split.level:
                chain.reach(self.split.level, activations)
            sent = self.run(activations)
        except Exception as error:  # a graph that loads may still fail to run, with any of the library's types
            raise ArtifactError(f"{self.split.head}: fails on the bundle's golden inputs") from error
        shape = (rows, *self.split.sent.shape[1:])
        if not isinstance(sent, np.ndarray) or sent.dtype != np.uint8 or sent.shape != shape:
            raise ArtifactError(f"{self.split.head}: does not make UINT8 {list(shape)} of the bundle's golden inputs")
        if sent.size and int(sent.max()) >= 2**self.split.bits:
            raise ArtifactError(f"{self.split.head}: makes values of more than {self.split.bits} bits")
        return sent


def load_heads(bundle: Bundle, splits: tuple[Split, ...], golden: Golden, chain: Chain) -> tuple[Head, ...]:
    """The heads of splits whose levels are loaded. Raises ArtifactError naming the first file that is wrong."""
    heads = tuple(Head(bundle, split) for split in splits if split.level <= len(chain))
    for head in heads:
        head.check(golden, chain)
    return heads
