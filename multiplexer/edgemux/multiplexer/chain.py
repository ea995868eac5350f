"""A model as a chain of graphs: each takes the input and what the graphs before it left behind, by tensor name.

The nested family is such a chain, one delta a level; a plain model is a chain of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import Array, OnnxModel

# The output that every model has, FP32 [N, classes]; every other output is an activation for the graphs above.
PROBABILITIES = "probabilities"
# int8 storage and other instruction sets move a probability in the third decimal; a damaged model moves it more.
GOLDEN_TOLERANCE = 5e-3


class Activations:
    """What the levels run so far on one input have left behind: tensors by name, and the highest level run."""

    __slots__ = ("pool", "reached")

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.pool: dict[str, Array] = dict(tensors)
        self.reached = 0


class Chain:
    """Loaded graphs by rising level, level 1 first."""

    def __init__(self, deltas: Sequence[OnnxModel], inputs: Iterable[str]) -> None:
        """``inputs``: the model's input tensors. Raises ArtifactError naming a graph whose tensors do not fit."""
        self._deltas = tuple(deltas)
        self._states: list[list[str]] = []
        known = set(inputs)
        for delta in self._deltas:
            if not set(delta.inputs) <= known or PROBABILITIES not in delta.outputs:
                raise ArtifactError(f"{delta.name}: its tensors do not fit the graphs before it")
            self._states.append([name for name in delta.outputs if name != PROBABILITIES])
            known.update(self._states[-1])

    def __len__(self) -> int:
        return len(self._deltas)

    def run(self, level: int, activations: Activations) -> Array:
        """Probabilities FP32 [N, classes] of a level above ``activations.reached``; only what is new is run."""
        pool = activations.pool
        for index in range(activations.reached, level):
            delta, wanted = self._deltas[index], self._states[index]
            if index == level - 1:
                wanted = [PROBABILITIES, *wanted]
            results = delta.run({name: pool[name] for name in delta.inputs}, wanted)
            pool.update(zip(wanted, results, strict=True))
        activations.reached = level
        return pool.pop(PROBABILITIES)

    def answer(self, tensors: Mapping[str, Array], level: int | None = None) -> Array:
        """Probabilities FP32 [N, classes] of one level, by default the last, from nothing but the input."""
        return self.run(len(self) if level is None else level, Activations(tensors))


class Golden:
    """A bundle's golden inputs, and the answers that its models must give to them."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises ArtifactError when the file is not what it should be or holds no inputs."""
        self._file = bundle.manifest.golden
        self._arrays = bundle.arrays(self._file)
        self.inputs = {tensor.name: self._array(tensor.name) for tensor in bundle.manifest.inputs}

    def check(self, name: str, file: str, answer: Callable[[], Array]) -> None:
        """Raises ArtifactError naming ``file`` unless ``answer()`` gives what was recorded under ``name``."""
        expected = self._array(name)
        try:
            given = answer()
        except Exception as error:  # a graph that loads may still fail to run, with any of the library's types
            raise ArtifactError(f"{file}: fails on the bundle's golden inputs") from error
        if given.shape != expected.shape or not np.allclose(given, expected, rtol=0.0, atol=GOLDEN_TOLERANCE):
            raise ArtifactError(f"{file}: does not give the bundle's golden answers")

    def _array(self, name: str) -> Array:
        array = self._arrays.get(name)
        if array is None or not len(array):
            raise ArtifactError(f"{self._file}: has no golden {name}")
        return array
