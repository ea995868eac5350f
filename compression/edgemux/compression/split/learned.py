"""A bottleneck for a bundle's own cloud model: an encoder on the device and a decoder before the tail, taught by the
whole model what crosses the cut and what it answers. Labels are not needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemux.compression.augment import Batch
from edgemux.compression.fit import Tick, fit_drawn
from edgemux.compression.glance import KINDS
from edgemux.compression.recipe import Schedule
from edgemux.compression.split.bottleneck import BITS, Decoder, Encoder, Pair, Source
from edgemux.compression.split.cuts import Cut
from edgemux.compression.split.graph_net import trainable
from edgemux.compression.split.halves import Halves
from edgemux.compression.split.layouts import Scaled, chosen, entered, left
from edgemux.compression.split.material import Material, single
from edgemux.compression.split.pair_files import SENT, pair_files
from edgemux.compression.split.shapes import example
from edgemux.compression.split.teach import Lesson, Taught, cross_entropy, drawn_bits, logarithms
from edgemux.compression.split.trial import Made, Plan, Pool, left_by, pool_of, tried
from edgemux.compression.workshop import Workshop
from edgemux.multiplexer.bundle import DATATYPES
from edgemux.multiplexer.chain import PROBABILITIES
from edgemux.multiplexer.errors import ConfigError, PassError
from edgemux.multiplexer.onnx_model import OnnxModel

# Rows by which scales are chosen.
SOME_ROWS = 256
# What the whole says of all inputs is kept in memory up to this.
MOST_BYTES = 2**30
BATCH, SEED = 64, 0
# The first part of the training is for what crosses, the rest also for the answers.
FIRST_SHARE = 2 / 3
FIRST_RATE, SECOND_RATE = 0.05, 0.03
# Unless it is said how many epochs there are: as many as make so many batches, within reason.
BATCHES = 1500
FEWEST_EPOCHS, MOST_EPOCHS = 10, 200
TARGET_WEIGHT = 0.3
WEIGHTS = "pair.pt"
_INNER = "crossing"


class How(msgspec.Struct, frozen=True):
    """channels: that are sent; None for an eighth of those that cross. epochs: None for as many as make BATCHES."""

    channels: int | None = None
    epochs: int | None = None

    def epochs_of(self, count: int) -> int:
        """How often ``count`` inputs are passed over."""
        made = math.ceil(BATCHES / math.ceil(count / BATCH))
        return min(MOST_EPOCHS, max(FEWEST_EPOCHS, made)) if self.epochs is None else self.epochs


@dataclass(frozen=True)
class Task:
    """What a pair is trained for. sources: by name, the tensors that the encoder reads; crossing: the cut's tensor.

    halves: of the whole; the tail takes the tensor laid out and scaled and answers nothing but probabilities. means: of
    its channels, so scaled.
    """

    material: Material
    halves: Halves
    pool: Pool
    sources: dict[str, Scaled]
    kinds: dict[str, str]
    crossing: Scaled
    means: NDArray[np.float32]


def learned(material: Material, plan: Plan, how: How, workshop: Workshop) -> Made:
    """Train a pair where the plan says, unless ``workshop`` has it from before; whatever the bits, it is the same one.

    Raises ConfigError for a cut that cannot be learned, PassError for a tail with an operator that torch has not here.
    """
    task = _task(material, plan)
    pair, epochs = _pair(task, how), how.epochs_of(len(material.fit))
    levels = [material.bundle.sha256(file) for level in material.bundle.manifest.levels for file in level.files]
    seen = material.whole.digest, material.sha256, len(material.fit)
    folder = workshop.stage(
        f"split-{plan.at}",
        lambda place, tick: _train(task, pair, epochs, place, tick),
        seen,
        levels if plan.level else (),
        (plan.at, plan.level),
        (_shape_of(pair), epochs),
    )
    pair.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    return tried(material, plan, _written(task, pair, plan), SENT)


def _shape_of(pair: Pair) -> list[tuple[str, list[int]]]:
    """Of all that is learned: what was kept of nets of another shape is not gone on from."""
    parts = [*pair.encoder.state_dict().items(), *pair.decoder.state_dict().items()]
    return [(name, list(value.shape)) for name, value in parts]


def _task(material: Material, plan: Plan) -> Task:
    cut, tensor = single(material.whole, plan.at, trained=True)
    halves = material.whole.halves(cut)
    (between,) = (value.name for value in halves.head.graph.output)
    head = OnnxModel(halves.head.SerializeToString(), "head.onnx")
    pool, name = pool_of(material, plan.level), material.feed.tensor.name
    rows = material.feed.rows(material.fit[:SOME_ROWS])
    given = pool(rows)
    if plan.level:
        given = {key: given[key] for key in left_by(material, plan.level)}
    given = {key: array for key, array in given.items() if _can_be_read(array, len(rows))}
    if not given:
        raise ConfigError(_nothing_to_read(material, plan))
    crossing = head.run({name: rows}, [between])[0]
    found = chosen({key: array.shape[1:] for key, array in given.items()}, crossing.shape[1:])
    if found is None:
        raise ConfigError(_does_not_narrow(material, tensor, given, crossing))
    sources, target = found
    scaled = {key: Scaled.of(layout, given[key].astype(np.float32), True) for key, layout in sources.items()}
    to = Scaled.of(target, crossing.astype(np.float32), False)
    kinds = {key: next(k for k, v in DATATYPES.items() if v == given[key].dtype.name) for key in scaled}
    means = to.scaled(crossing).mean(axis=(0, 2, 3))
    return Task(material, Halves(halves.head, _taught(halves.tail, between, to)), pool, scaled, kinds, to, means)


def _can_be_read(array: NDArray[Any], rows: int) -> bool:
    return array.ndim > 1 and len(array) == rows and (array.dtype.kind == "f" or array.dtype == np.uint8)


def _nothing_to_read(material: Material, plan: Plan) -> str:
    if plan.level:
        levels = range(1, len(material.bundle.manifest.levels) + 1)
        able = [str(level) for level in levels if left_by(material, level)] or ["0: no level does"]
        return f"--level: level {plan.level} leaves nothing that an encoder could read; give {', '.join(able)}"
    tensor = material.feed.tensor
    return (
        f"--learn: {tensor.name} is {tensor.datatype}; an encoder reads pictures, series and vectors, as UINT8 or "
        "floats. A plain cut takes any input"
    )


def _does_not_narrow(material: Material, tensor: str, given: dict[str, Any], crossing: NDArray[Any]) -> str:
    whole = material.whole
    sizes = {key: array.shape[1:] for key, array in given.items()}
    able = [cut.index for cut in whole.cuts if _narrows(material, cut, sizes)]
    told = f"cuts that can be learned: {', '.join(map(str, able))}" if able else "no cut of this model can be learned"
    shown = ", ".join(f"{key} {list(shape)}" for key, shape in sizes.items())
    return f"--at: halving {shown} never gives {tensor} {list(crossing.shape[1:])}; {told}"


def _narrows(material: Material, cut: Cut, sizes: dict[str, Sequence[int]]) -> bool:
    try:
        _, tensor = single(material.whole, cut.index, trained=True)
    except ConfigError:
        return False
    return chosen(sizes, material.whole.measured[tensor].shape[1:]) is not None


def _taught(tail: onnx.ModelProto, between: str, how: Scaled) -> onnx.ModelProto:
    """The tail as the decoder feeds it."""
    made = onnx.ModelProto()
    made.CopyFrom(tail)
    kept = [value for value in made.graph.output if value.name == PROBABILITIES]
    del made.graph.output[:]
    made.graph.output.extend(kept)
    left(made, between, _INNER, how)
    return made


def _pair(task: Task, how: How) -> Pair:
    torch.manual_seed(SEED)
    wide, height, width = task.crossing.layout.shape
    channels = how.channels if how.channels is not None else max(1, wide // 8)
    sources = [Source(name, scaled.layout.shape) for name, scaled in task.sources.items()]
    try:
        tail = trainable(task.halves.tail, example(task.halves.tail))
    except PassError as error:
        raise PassError(f"--learn: the tail: {error}; a plain cut needs no training") from error
    tail.requires_grad_(False)
    decoder = Decoder(channels, wide)
    # What is far from 0 would first drive all that is sent to one end, where the clip has no gradient.
    last: Any = decoder.units[-1]
    with torch.no_grad():
        last.norm.bias.copy_(torch.from_numpy(task.means))
    encoder = Encoder(sources, channels, (height, width))
    if (height, width) == (1, 1):
        _made_pointwise(encoder)
        _made_pointwise(decoder)
    return Pair(encoder, decoder, tail)


def _made_pointwise(net: nn.Module) -> None:
    """Convolutions of what is one by one: around it there is nothing but padding."""
    for part in list(net.modules()):
        for name, conv in list(part.named_children()):
            if isinstance(conv, nn.Conv2d) and conv.stride == (1, 1) and conv.kernel_size == (3, 3):
                setattr(part, name, nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False))


class Lessons:
    """What the encoder reads of inputs, and what the whole says of them; kept where that is not too much."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._head = OnnxModel(task.halves.head.SerializeToString(), "head.onnx")
        one = self._of(task.material.fit[:1])
        size = sum(array.nbytes for array in (*one[0].values(), *one[1:])) * len(task.material.fit)
        self._kept = self._all() if size <= MOST_BYTES else None

    def of(self, index: NDArray[np.int64]) -> tuple[dict[str, Any], NDArray[Any], NDArray[Any]]:
        """Of inputs by their place among those to train on: sources, what crosses, answers."""
        if self._kept is None:
            return self._of(self._task.material.fit[index])
        given, crossing, answers = self._kept
        return {name: array[index] for name, array in given.items()}, crossing[index], answers[index]

    def _all(self) -> tuple[dict[str, Any], NDArray[Any], NDArray[Any]]:
        fit = self._task.material.fit
        parts = [self._of(fit[at : at + SOME_ROWS]) for at in range(0, len(fit), SOME_ROWS)]
        given = {name: np.concatenate([part[0][name] for part in parts]) for name in self._task.sources}
        return given, np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])

    def _of(self, rows: NDArray[np.int64]) -> tuple[dict[str, Any], NDArray[Any], NDArray[Any]]:
        task, feed = self._task, self._task.material.feed
        inputs = feed.rows(rows)
        pool = task.pool(inputs)
        given = {name: scaled.scaled(pool[name]) for name, scaled in task.sources.items()}
        crossing = self._head.run({feed.tensor.name: inputs})[0]
        answers = task.material.whole.model.run({feed.tensor.name: inputs}, [PROBABILITIES])[0]
        return given, task.crossing.scaled(crossing), answers


def _train(task: Task, pair: Pair, epochs: int, folder: Path, tick: Tick) -> None:
    """In two parts, each of which goes on from its last epoch."""
    lessons, count = Lessons(task), len(task.material.fit)
    first = max(1, round(FIRST_SHARE * epochs))
    parts = (first, FIRST_RATE, _crossing_missed), (epochs - first, SECOND_RATE, _both_missed)
    done = 0
    for number, (some, rate, missed) in enumerate(parts, start=1):
        fit_drawn(
            pair,
            count,
            partial(_drawn, lessons),
            partial(_loss, missed),
            Schedule(epochs=some, batch=min(BATCH, count), peak_rate=rate, weight_decay=1e-4, bf16=False),
            SEED,
            folder / f"{number}.checkpoint.pt",
            partial(_tell, tick, done / epochs, some / epochs),
            clip=5.0,
        )
        done += some
    torch.save(pair.state_dict(), folder / WEIGHTS)


def _tell(tick: Tick, begun: float, part: float, share: float) -> None:
    tick(begun + part * share)


def _drawn(lessons: Lessons, index: Tensor, generator: torch.Generator) -> Lesson:
    given, crossing, answers = lessons.of(index.numpy())
    sources = {name: torch.from_numpy(array) for name, array in given.items()}
    target, none = torch.from_numpy(crossing), torch.zeros(len(index), dtype=torch.bool)
    taught = Taught(target, torch.from_numpy(answers), torch.empty(len(index), 0))
    return Lesson(target, index, none, sources, taught, drawn_bits(BITS, generator))


def _loss(of: Callable[[Pair, Lesson], Tensor], model: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(model, Pair) and isinstance(batch, Lesson)
    return of(model, batch)


def _crossing_missed(pair: Pair, lesson: Lesson) -> Tensor:
    return nn.functional.mse_loss(pair.decoded(lesson.sources, lesson.bits), lesson.taught.target)


def _both_missed(pair: Pair, lesson: Lesson) -> Tensor:
    decoded = pair.decoded(lesson.sources, lesson.bits)
    missed = nn.functional.mse_loss(decoded, lesson.taught.target)
    return TARGET_WEIGHT * missed + cross_entropy(logarithms(pair.answers(decoded)), lesson.taught.answers)


def _written(task: Task, pair: Pair, plan: Plan) -> Halves:
    """The files; weights of the tail are stored as the whole stores them."""
    int8 = any(tensor.data_type == onnx.TensorProto.INT8 for tensor in task.halves.tail.graph.initializer)
    files = pair_files(pair, plan.bits, task.material.whole.digest, int8)
    head = onnx.ModelProto()
    head.CopyFrom(files.head)
    for name, scaled in task.sources.items():
        _rename(head.graph, name, f"{name}.scaled")
        entered(head, f"{name}.scaled", name, KINDS[task.kinds[name]], scaled)
    return Halves(head, files.tail)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for value in graph.input:
        value.name = new if value.name == old else value.name
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
