"""A model as a chain of graphs: each takes the input and what the graphs before it left behind, by tensor name.

The nested family is such a chain, one delta a level; a plain model is a chain of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from edgemux.multiplexer.bundle import DATATYPES, Bundle
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import Array, OnnxModel, Stop

# The output that every model has, FP32 [N, classes]; every other output is an activation for the graphs above.
PROBABILITIES = "probabilities"
# int8 storage and other instruction sets move a probability in the third decimal; a damaged model moves it more.
GOLDEN_TOLERANCE = 5e-3
# A sum of probabilities may miss 1 by its roundings.
ROUNDING = 1e-5


class Activations:
    """What the levels run so far on one input have left behind: tensors by name, and the highest level run.

    chain: the levels that the input is to be answered with, where others may come and go meanwhile.
    kept: a level's probabilities that nobody was answered with yet, since it was run for what it leaves behind.
    """

    __slots__ = ("chain", "kept", "pool", "reached")

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.pool: dict[str, Array] = dict(tensors)
        self.reached = 0
        self.chain: Chain | None = None
        self.kept: tuple[int, Array] | None = None


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

    def run(self, level: int, activations: Activations, stop: Stop | None = None) -> Array:
        """Probabilities FP32 [N, classes] of a level; only what is new is run, and the level's own graph."""
        pool = activations.pool
        if activations.kept is not None and activations.kept[0] == level:
            return activations.kept[1]
        for index in range(min(activations.reached, level - 1), level - 1):
            pool.update(self._left_by(index, pool, stop))
        left = self._left_by(level - 1, pool, stop, [PROBABILITIES])
        # Never in the pool: a run that was given up may still end in its thread while another level answers here.
        answer = left.pop(PROBABILITIES)
        pool.update(left)
        activations.reached = max(activations.reached, level)
        return answer

    def _left_by(
        self, index: int, pool: Mapping[str, Array], stop: Stop | None, more: Sequence[str] = ()
    ) -> dict[str, Array]:
        delta, wanted = self._deltas[index], [*more, *self._states[index]]
        return dict(zip(wanted, delta.run({name: pool[name] for name in delta.inputs}, wanted, stop), strict=True))

    def reach(self, level: int, activations: Activations, stop: Stop | None = None) -> None:
        """See that what the levels up to ``level`` leave behind is there; its answer is kept for whoever asks."""
        if activations.reached < level:
            activations.kept = level, self.run(level, activations, stop)

    def known_at(self, level: int, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs, and what the levels up to ``level`` leave of them, by name: what the head of a split can read."""
        activations = Activations(tensors)
        if level:
            self.reach(level, activations)
        return activations.pool

    def answer(self, tensors: Mapping[str, Array], level: int | None = None) -> Array:
        """Probabilities FP32 [N, classes] of one level, by default the last, from nothing but the input."""
        return self.run(len(self) if level is None else level, Activations(tensors))


class Golden:
    """A bundle's golden inputs, and the answers that its models and gates must give to them.

    ``inputs``: tensors by name, all of the manifest's, each with the same N rows.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Raises ArtifactError when the file is not what it should be or holds no inputs."""
        self._file = bundle.manifest.golden
        self._arrays = bundle.arrays(self._file)
        self.inputs: dict[str, Array] = {}
        for tensor in bundle.manifest.inputs:
            array = self._array(tensor.name)
            row = zip(array.shape[1:], tensor.shape[1:], strict=False)
            fits = array.ndim == len(tensor.shape) and all(size == wanted or wanted == -1 for size, wanted in row)
            if not fits or array.dtype.name != DATATYPES[tensor.datatype]:
                raise ArtifactError(f"{self._file}: its {tensor.name} is not what the manifest's is")
            self.inputs[tensor.name] = array
        rows = {len(array) for array in self.inputs.values()}
        if len(rows) != 1:
            raise ArtifactError(f"{self._file}: its inputs have different numbers of rows")
        (self._rows,) = rows

    def check(self, name: str, file: str, width: int, answer: Callable[[Mapping[str, Array]], Array]) -> Array:
        """What ``answer`` gives for all inputs, FP32 [N, width]: it must be what was recorded under ``name``.

        It must also be able to answer one input, which is how most come; that answer need not be the same to the last
        decimal. Raises ArtifactError naming ``file``, or the golden file where that is at fault.
        """
        expected = self.recorded(name, width)
        given = probabilities(file, (self._rows, width), lambda: answer(self.inputs))
        if not np.allclose(given, expected, rtol=0.0, atol=GOLDEN_TOLERANCE):
            raise ArtifactError(f"{file}: does not give the bundle's golden answers")
        probabilities(file, (1, width), lambda: answer({key: array[:1] for key, array in self.inputs.items()}))
        return given

    def recorded(self, name: str, width: int) -> Array:
        """What was recorded under ``name``, FP32 [N, width]. Raises ArtifactError when that is not there."""
        array = self._array(name)
        if array.shape != (self._rows, width) or array.dtype != np.float32:
            raise ArtifactError(f"{self._file}: its {name} is not FP32 [{self._rows}, {width}]")
        return array

    def _array(self, name: str) -> Array:
        array = self._arrays.get(name)
        if array is None or array.ndim == 0 or not len(array):
            raise ArtifactError(f"{self._file}: has no golden {name}")
        return array


def probabilities(
    file: str, shape: tuple[int, int], answer: Callable[[], Array], given_to: str = "the bundle's golden inputs"
) -> Array:
    """``answer()``, which must be FP32 of ``shape``, finite and in [0, 1]. Raises ArtifactError naming ``file``."""
    try:
        given = answer()
    except Exception as error:  # a graph that loads may still fail to run, with any of the library's types
        raise ArtifactError(f"{file}: fails on {given_to}") from error
    if not isinstance(given, np.ndarray) or given.shape != shape or given.dtype != np.float32:
        raise ArtifactError(f"{file}: does not answer {given_to} with FP32 {list(shape)}")
    if not ((given >= -ROUNDING) & (given <= 1 + ROUNDING)).all():  # false for what is not a number, too
        raise ArtifactError(f"{file}: answers {given_to} with what are not probabilities")
    return given
