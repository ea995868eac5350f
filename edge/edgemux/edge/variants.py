"""The nested family in memory: level k is its lower levels' activations plus its own delta."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.domain import Placement, Route
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import OnnxModel

Array = NDArray[Any]

PROBABILITIES = "probabilities"
# int8 storage and other instruction sets move a probability in the third decimal; a damaged model moves it more.
GOLDEN_TOLERANCE = 5e-3


class Activations:
    """What the levels run so far on one input have left behind: tensors by name, and the highest level run."""

    __slots__ = ("pool", "reached")

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.pool: dict[str, Array] = dict(tensors)
        self.reached = 0


class Family:
    """Every level of a bundle, loaded. ``routes`` by rising level; ``bytes_of[k]``: bytes of level k and below.

    ``load_s`` is what loading each level's delta took, by rising level: what raising the level to it costs.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Load all deltas. Raises ArtifactError naming the file."""
        manifest = bundle.manifest
        loaded: dict[str, OnnxModel] = {}
        self.routes: tuple[Route, ...] = ()
        self._deltas: list[tuple[OnnxModel, ...]] = []
        self._states: dict[str, list[str]] = {}
        self.bytes_of: dict[int, int] = {}
        self.load_s: list[float] = []
        done: tuple[str, ...] = ()
        for level in manifest.levels:
            if level.files[: len(done)] != done:
                raise ArtifactError(f"{level.name}: its files do not begin with the lower level's")
            began = time.perf_counter()
            for path in level.files[len(done) :]:
                loaded[path] = OnnxModel(bundle.read(path), path)
            self.load_s.append(time.perf_counter() - began)
            self._deltas.append(tuple(loaded[path] for path in level.files[len(done) :]))
            self.bytes_of[level.level] = bundle.size(level.files)
            self.routes += (Route(level.name, Placement.EDGE, level.level),)
            done = level.files
        self._check_names({tensor.name for tensor in manifest.inputs})

    def run(self, level: int, activations: Activations) -> Array:
        """Probabilities FP32 [N, classes] of a level; only the deltas above ``activations.reached`` are run."""
        pool = activations.pool
        for number in range(activations.reached + 1, level + 1):
            for model in self._deltas[number - 1]:
                states = self._states[model.name]
                wanted = [PROBABILITIES, *states] if number == level else states
                results = model.run({name: pool[name] for name in model.inputs}, wanted)
                pool.update(zip(wanted, results, strict=True))
        probabilities: Array | None = pool.pop(PROBABILITIES, None)
        if probabilities is None:
            raise ArtifactError(f"level {level} gives no {PROBABILITIES}")
        activations.reached = level
        return probabilities

    def check(self, golden: Mapping[str, Array], input_names: tuple[str, ...]) -> None:
        """Run the golden inputs through every level. Raises ArtifactError naming the level that answers otherwise."""
        for route in self.routes:
            answer = self.run(route.level, Activations({name: golden[name] for name in input_names}))
            expected = golden.get(route.variant)
            if expected is None or not np.allclose(answer, expected, rtol=0, atol=GOLDEN_TOLERANCE):
                raise ArtifactError(f"{route.variant}: does not give the bundle's golden answers on this device")

    def _check_names(self, inputs: set[str]) -> None:
        """Every tensor that a delta reads must be an input or come from a lower level."""
        known = set(inputs)
        for route, models in zip(self.routes, self._deltas, strict=True):
            for model in models:
                unknown = set(model.inputs) - known
                if unknown or PROBABILITIES not in model.outputs:
                    raise ArtifactError(f"{model.name}: not a delta of {route.variant}, its tensors do not fit")
                self._states[model.name] = [name for name in model.outputs if name != PROBABILITIES]
                known.update(self._states[model.name])
