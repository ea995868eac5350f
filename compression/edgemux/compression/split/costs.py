"""What every cut of a model costs: bytes on the way, work and time on either side."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgemux.compression.places import check_place, replacing
from edgemux.compression.profile import macs
from edgemux.compression.split.cuts import Cut, computes_in_integers, cuts_of, layout_of
from edgemux.compression.split.halves import TOLERANCE, Halves, Pair, compared, halves_of, sent_name
from edgemux.compression.split.shapes import Arrays, Measured, Sizes, example, measure, with_sizes
from edgemux.multiplexer.errors import ConfigError, EdgemuxError, PassError
from edgemux.multiplexer.onnx_model import OnnxModel

# Of one half: so long, or so often.
TIMED_S = 0.1
LEAST_RUNS, MOST_RUNS = 3, 30
# Where a graph computes in integers: the runtime rounds otherwise where it cannot see what is before or behind, and a
# step more or less goes on from there. So halves are tried more often there, and may differ by some steps.
INTEGER_TRIES, INTEGER_TOLERANCE = 4, 0.05
HEAD, TAIL, ABOUT = "head.onnx", "tail.onnx", "split.json"


class Price(msgspec.Struct, frozen=True):
    """A cut with its costs for one input. ``tensors``: by the names that they have in the whole.

    ``raw``: an input of the model is among them. ``rows``: what several devices send can be computed together.
    difference: of the halves' answers to the whole's, at most, as a share of the largest value. Times are medians on
    one thread of this machine, None where they were not taken.
    """

    index: int
    tensors: tuple[str, ...]
    datatypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    raw: bool
    rows: bool
    head_macs: int
    tail_macs: int
    difference: float
    head_ms: float | None = None
    tail_ms: float | None = None


class Whole:
    """A model that may be cut, with the digest of its file."""

    def __init__(self, content: bytes, name: str, sizes: Sizes | None = None) -> None:
        """sizes: by input, the whole shape of one input, where the model leaves sizes open.

        Raises ArtifactError when this is no model that runs on made-up inputs, PassError when it cannot be cut,
        ConfigError for sizes that are missing or wrong.
        """
        self.name = name
        self.digest = hashlib.sha256(content).hexdigest()
        # The runtime's verdict first: it says of which file, and refuses weights in other files.
        self.model = OnnxModel(content, name, quiet=True)
        self._graph = with_sizes(onnx.load_model_from_string(content), sizes or {})
        try:
            cuts = cuts_of(self._graph.graph)
        except PassError as error:
            raise PassError(f"{name}: {error}") from error
        self._layout = layout_of(self._graph.graph)
        self.measured: Mapping[str, Measured] = measure(self._graph, (t for cut in cuts for t in cut.tensors))
        self.cuts = [cut for cut in cuts if all(name in self.measured for name in cut.tensors)]
        if not self.cuts:
            raise PassError(f"{name}: cannot be cut: nothing between its inputs and its outputs can be sent")
        self._feeds = example(self._graph)
        self.input_bytes = sum(array.nbytes for array in self._feeds.values())
        self.integers = computes_in_integers(self._graph.graph)
        self._examples = [(feeds, self._answers(feeds)) for feeds in self._made_up()]
        self._check_repeats()

    def _made_up(self) -> Iterator[Arrays]:
        """What halves are tried with: a step of an integer is lost with few inputs only, so those are more there."""
        yield self._feeds
        for seed in range(1, INTEGER_TRIES if self.integers else 1):
            yield example(self._graph, seed=seed)

    def _answers(self, feeds: Arrays) -> Arrays:
        return dict(zip(self.model.outputs, self.model.run(feeds), strict=True))

    def _check_repeats(self) -> None:
        """Raises PassError for a model that cannot be compared with its halves."""
        feeds, answers = self._examples[0]
        try:
            compared(self._answers(feeds), answers)
        except PassError as error:
            raise PassError(f"{self.name}: cannot be cut: it answers the same input otherwise each time") from error

    @classmethod
    def read(cls, path: Path, sizes: Sizes | None = None) -> Whole:
        """From a file. Raises ConfigError when it cannot be read, and what the class raises."""
        try:
            if path.exists() and not path.is_file():
                raise ConfigError(f"{path}: is no file")
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        return cls(content, path.name, sizes)

    def at(self, index: int) -> Cut:
        """Raises ConfigError when there is no such cut."""
        for cut in self.cuts:
            if cut.index == index:
                return cut
        raise ConfigError(f"--at: {self.name} has the cuts {self.cuts[0].index} to {self.cuts[-1].index}, not {index}")

    def head_operators(self, cut: Cut) -> frozenset[str]:
        """What the head computes with, beside what is computed from weights alone."""
        positions = self._layout.computed[: cut.nodes]
        return frozenset(self._graph.graph.node[position].op_type for position in positions)

    def few(self, most: int | None = None) -> list[Cut]:
        """At most so many cuts: the graph in as many stretches, and of each the cut that sends the fewest bytes.

        most: by default as many as are measured in a minute or two, fewer where the graph is large.
        """
        most = most or max(20, min(100, 200_000 // len(self._layout.computed)))
        stretches: dict[int, list[Cut]] = {}
        for place, cut in enumerate(self.cuts):
            stretches.setdefault(place * most // max(most, len(self.cuts)), []).append(cut)
        return [min(stretch, key=self._bytes) for stretch in stretches.values()]

    def _bytes(self, cut: Cut) -> int:
        return sum(self.measured[name].bytes for name in cut.tensors)

    def halves(self, cut: Cut) -> Halves:
        """Head and tail, found to answer as the whole does on made-up inputs. Raises PassError when they do not."""
        return self._checked(cut)[0]

    def _checked(self, cut: Cut) -> tuple[Halves, Pair, float]:
        """Also both of them loaded, and how much they differ at most."""
        halves = halves_of(self._graph, cut, self.measured, self.digest, self._layout)
        try:
            pair = Pair(halves)
            tolerance = INTEGER_TOLERANCE if self.integers else TOLERANCE
            differences = [compared(pair.answers(feeds), answers, tolerance) for feeds, answers in self._examples]
        except EdgemuxError as error:
            raise PassError(f"{self.name}: cut {cut.index}: {error}") from error
        return halves, pair, max(differences)

    def price(self, cut: Cut, timed: bool = True) -> Price:
        """What a cut costs. Raises as ``halves`` does."""
        halves, pair, difference = self._checked(cut)
        price = self._price(cut, halves, difference)
        if not timed:
            return price
        given = {name: self._feeds[name] for name in pair.head.inputs}
        sent = dict(zip(pair.head.outputs, pair.head.run(given), strict=True))
        return msgspec.structs.replace(price, head_ms=median_ms(pair.head, given), tail_ms=median_ms(pair.tail, sent))

    def _price(self, cut: Cut, halves: Halves, difference: float) -> Price:
        tensors = [self.measured[name] for name in cut.tensors]
        return Price(
            index=cut.index,
            tensors=cut.tensors,
            datatypes=tuple(tensor.datatype for tensor in tensors),
            shapes=tuple(tensor.shape for tensor in tensors),
            bytes=self._bytes(cut),
            raw=any(name in self._layout.inputs for name in cut.tensors),
            rows=all(tensor.rows for tensor in tensors),
            head_macs=macs(halves.head),
            tail_macs=macs(halves.tail),
            difference=difference,
        )

    def save(self, cut: Cut, out: Path) -> Price:
        """Write head.onnx, tail.onnx and split.json, which says what they are, into the folder ``out``.

        Raises ConfigError when ``out`` is a place for something else, and as ``halves`` does.
        """
        check_place(out, ABOUT, "no split of a model")
        halves, _, difference = self._checked(cut)
        price = self._price(cut, halves, difference)
        files = {HEAD: halves.head.SerializeToString(), TAIL: halves.tail.SerializeToString()}
        about = {
            "whole": {"file": self.name, "sha256": self.digest},
            "sent": [sent_name(name, self._layout) for name in cut.tensors],
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            **msgspec.to_builtins(price),
        }
        with replacing(out) as part:
            files[ABOUT] = msgspec.json.format(msgspec.json.encode(about), indent=1)
            try:
                for name, content in files.items():
                    (part / name).write_bytes(content)
            except OSError as error:
                raise ConfigError(f"{out}: cannot be written ({error.strerror})") from error
        return price

    def median_ms(self) -> float:
        """The whole model's time for one input, on one thread of this machine."""
        return median_ms(self.model, self._feeds)


def median_ms(
    model: OnnxModel, feeds: Mapping[str, NDArray[np.generic]], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Of as many runs as TIMED_S allows, between LEAST_RUNS and MOST_RUNS, after one that is not counted.

    clock: ``time.thread_time`` for figures that are kept, which other load on the machine moves less.
    """
    taken: list[float] = []
    model.run(feeds)
    while len(taken) < LEAST_RUNS or (len(taken) < MOST_RUNS and sum(taken) < TIMED_S):
        began = clock()
        model.run(feeds)
        taken.append(clock() - began)
    return 1e3 * statistics.median(taken)
