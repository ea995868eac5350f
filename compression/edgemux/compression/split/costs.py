"""What every cut of a model costs: bytes on the way, work and time on either side."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgemux.compression.places import check_place, replacing
from edgemux.compression.profile import macs
from edgemux.compression.split.cuts import Cut, cuts_of, layout_of
from edgemux.compression.split.halves import Halves, check, halves_of, sent_name
from edgemux.compression.split.shapes import Measured, Sizes, example, measure, with_sizes
from edgemux.multiplexer.errors import ConfigError, PassError
from edgemux.multiplexer.onnx_model import OnnxModel

# Of one half: so long, or so often.
TIMED_S = 0.1
LEAST_RUNS, MOST_RUNS = 3, 30
HEAD, TAIL, ABOUT = "head.onnx", "tail.onnx", "split.json"


class Price(msgspec.Struct, frozen=True):
    """A cut with its costs for one input. ``tensors``: by the names that they have in the whole.

    ``raw``: an input of the model is among them. ``rows``: what several devices send can be computed together.
    Times are medians on one thread of this machine, None where they were not taken.
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
        self.measured: Mapping[str, Measured] = measure(self._graph, (t for cut in cuts for t in cut.tensors))
        self.cuts = [cut for cut in cuts if all(name in self.measured for name in cut.tensors)]
        if not self.cuts:
            raise PassError(f"{name}: cannot be cut: nothing between its inputs and its outputs can be sent")
        self.input_bytes = sum(array.nbytes for array in example(self._graph).values())

    @classmethod
    def read(cls, path: Path, sizes: Sizes | None = None) -> Whole:
        """From a file. Raises ConfigError when it cannot be read, and what the class raises."""
        try:
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
        positions = layout_of(self._graph.graph).computed[: cut.nodes]
        return frozenset(self._graph.graph.node[position].op_type for position in positions)

    def halves(self, cut: Cut) -> Halves:
        """Head and tail, found to answer as the whole does on made-up inputs. Raises PassError when they do not."""
        halves = halves_of(self._graph, cut, self.measured, self.digest)
        check(halves, self.model, example(self._graph))
        return halves

    def price(self, cut: Cut, timed: bool = True) -> Price:
        """What a cut costs. Raises as ``halves`` does."""
        halves = self.halves(cut)
        tensors = [self.measured[name] for name in cut.tensors]
        inputs = layout_of(self._graph.graph).inputs
        price = Price(
            index=cut.index,
            tensors=cut.tensors,
            datatypes=tuple(tensor.datatype for tensor in tensors),
            shapes=tuple(tensor.shape for tensor in tensors),
            bytes=sum(tensor.bytes for tensor in tensors),
            raw=any(name in inputs for name in cut.tensors),
            rows=all(tensor.rows for tensor in tensors),
            head_macs=macs(halves.head),
            tail_macs=macs(halves.tail),
        )
        if not timed:
            return price
        head_ms, tail_ms = self._times_ms(halves)
        return msgspec.structs.replace(price, head_ms=head_ms, tail_ms=tail_ms)

    def save(self, cut: Cut, out: Path) -> Price:
        """Write head.onnx, tail.onnx and split.json, which says what they are, into the folder ``out``.

        Raises ConfigError when ``out`` is a place for something else, and as ``halves`` does.
        """
        check_place(out, ABOUT, "no split of a model")
        halves, price = self.halves(cut), self.price(cut, timed=False)
        files = {HEAD: halves.head.SerializeToString(), TAIL: halves.tail.SerializeToString()}
        layout = layout_of(self._graph.graph)
        about = {
            "whole": {"file": self.name, "sha256": self.digest},
            "sent": [sent_name(name, layout) for name in cut.tensors],
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            **msgspec.to_builtins(price),
        }
        with replacing(out) as part:
            for name, content in files.items():
                (part / name).write_bytes(content)
            (part / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(about), indent=1))
        return price

    def median_ms(self) -> float:
        """The whole model's time for one input, on one thread of this machine."""
        return median_ms(self.model, example(self._graph))

    def _times_ms(self, halves: Halves) -> tuple[float, float]:
        head = OnnxModel(halves.head.SerializeToString(), HEAD)
        tail = OnnxModel(halves.tail.SerializeToString(), TAIL)
        feeds = example(self._graph)
        given = {name: feeds[name] for name in head.inputs}
        sent = dict(zip(head.outputs, head.run(given), strict=True))
        return median_ms(head, given), median_ms(tail, sent)


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
