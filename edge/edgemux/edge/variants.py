"""The nested family in memory: level k is its lower levels' activations plus its own delta."""

from __future__ import annotations

import time
from functools import partial

from edgemux.multiplexer.bundle import Bundle, Manifest
from edgemux.multiplexer.chain import Activations, Chain, Golden
from edgemux.multiplexer.domain import Placement, Route
from edgemux.multiplexer.onnx_model import Array, OnnxModel, Stop


class Family:
    """Every level of a bundle, loaded.

    ``routes`` by rising level; ``bytes_of[k]``: bytes of level k and below; ``load_s`` is what loading each level's
    delta took, by rising level: what raising the level to it costs.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Load all deltas. Raises ArtifactError naming the file."""
        manifest = bundle.manifest
        self.routes = tuple(Route(level.name, Placement.EDGE, level.level) for level in manifest.levels)
        self.bytes_of = {level.level: bundle.size(level.files) for level in manifest.levels}
        self.load_s: list[float] = []
        deltas: list[OnnxModel] = []
        for level in manifest.levels:
            began = time.perf_counter()
            deltas.append(OnnxModel(bundle.read(level.files[-1]), level.files[-1]))
            self.load_s.append(time.perf_counter() - began)
        self._chain = Chain(deltas, (tensor.name for tensor in manifest.inputs))

    def run(self, level: int, activations: Activations, stop: Stop | None = None) -> Array:
        """Probabilities FP32 [N, classes] of a level; only the deltas above ``activations.reached`` are run."""
        return self._chain.run(level, activations, stop)

    def check(self, golden: Golden, manifest: Manifest) -> None:
        """Run the golden inputs through every level. Raises ArtifactError naming the one that answers otherwise."""
        classes = len(manifest.classes)
        for level in manifest.levels:
            golden.check(level.name, level.files[-1], classes, partial(self._chain.answer, level=level.level))
