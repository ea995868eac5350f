"""The nested family in memory: level k is its lower levels' activations plus its own delta.

Raising a level pages in its delta and nothing else; lowering drops deltas and costs nothing.
"""

from __future__ import annotations

import ctypes
import math
import time
import weakref
from functools import partial

import msgspec

from edgemux.multiplexer.bundle import Bundle, Manifest
from edgemux.multiplexer.chain import Activations, Chain, Golden
from edgemux.multiplexer.domain import Placement, Route
from edgemux.multiplexer.onnx_model import Array, OnnxModel, Stop


def give_back() -> None:
    """Have the C library return what was freed to the system; it keeps it otherwise. Only glibc can; some ms."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Load(msgspec.Struct, frozen=True):
    """A delta was paged in: of which level, how long it took, bytes read."""

    level: int
    seconds: float
    bytes: int


class Family:
    """The levels of a bundle, those up to ``resident`` loaded.

    ``routes`` by rising level, of all of them; ``bytes_of[k]``: bytes of level k and below; ``load_s`` is what loading
    each level's delta took, by rising level: what raising the level to it costs. ``highest`` is the highest level that
    could ever be loaded within ``most_bytes``; ``loads`` are those of the start. ``chain`` is what is loaded now: a
    value, so that whoever holds it can go on with levels that are dropped meanwhile.
    """

    def __init__(self, bundle: Bundle, most_bytes: float = math.inf) -> None:
        """Load all levels that fit ``most_bytes``, and the first in any case. Raises ArtifactError naming the file."""
        manifest = bundle.manifest
        self.routes: tuple[Route, ...] = tuple(
            Route(level.name, Placement.EDGE, level.level) for level in manifest.levels
        )
        self.bytes_of = {level.level: bundle.size(level.files) for level in manifest.levels}
        self.highest = 1
        self.most_bytes = most_bytes
        self.cap(most_bytes)
        self.load_s = [0.0] * len(manifest.levels)
        self._bundle = bundle
        self._files = tuple(level.files[-1] for level in manifest.levels)
        self._inputs = tuple(tensor.name for tensor in manifest.inputs)
        self._deltas: tuple[OnnxModel, ...] = ()
        self.chain = Chain((), self._inputs)
        self.loads = self.raise_to(self.highest)

    @property
    def resident(self) -> int:
        """The highest level that is loaded; all below it are, too."""
        return len(self._deltas)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the files of what is loaded."""
        return self.bytes_of.get(self.resident, 0)

    def raise_to(self, level: int) -> list[Load]:
        """Page in the deltas up to ``level``; blocks for milliseconds each, so beside the event loop, one at a time.

        Every delta is digested again, and what was digested is what is loaded. Raises ArtifactError naming the file;
        what was loaded until then stays.
        """
        loads = []
        for number in range(self.resident + 1, level + 1):
            began, file = time.perf_counter(), self._files[number - 1]
            content = self._bundle.read(file)
            self._keep((*self._deltas, OnnxModel(content, file)))
            loads.append(Load(number, time.perf_counter() - began, len(content)))
            self.load_s[number - 1] = loads[-1].seconds
        return loads

    def lower_to(self, level: int) -> list[weakref.ref[OnnxModel]]:
        """Drop the deltas above ``level``, at least 1; they are gone when no input in flight is answered with them."""
        dropped = [weakref.ref(delta) for delta in self._deltas[max(1, level) :]]
        if dropped:
            self._keep(self._deltas[: max(1, level)])
        return dropped

    def _keep(self, deltas: tuple[OnnxModel, ...]) -> None:
        self.chain = Chain(deltas, self._inputs)
        self._deltas = deltas

    @classmethod
    def empty(cls) -> Family:
        """A family without a level: nothing runs on this device."""
        family = cls.__new__(cls)
        family.routes, family.bytes_of, family.load_s, family.loads = (), {}, [], []
        family.highest, family._deltas, family.chain = 0, (), Chain((), ())
        family.most_bytes = math.inf
        return family

    def cap(self, most_bytes: float) -> None:
        """From now on no level that takes more than ``most_bytes`` can be raised to; drops nothing."""
        self.most_bytes = most_bytes
        if not self.routes:
            return
        self.highest = max([1, *(level for level, size in self.bytes_of.items() if size <= most_bytes)])

    def run(self, level: int, activations: Activations, stop: Stop | None = None) -> Array:
        """Probabilities FP32 [N, classes] of a level; only the deltas above ``activations.reached`` are run."""
        return (activations.chain or self.chain).run(level, activations, stop)

    def check(self, golden: Golden, manifest: Manifest) -> None:
        """Run the golden inputs through every loaded level. Raises ArtifactError naming one that answers otherwise."""
        classes = len(manifest.classes)
        for level in manifest.levels[: self.resident]:
            golden.check(level.name, level.files[-1], classes, partial(self.chain.answer, level=level.level))
