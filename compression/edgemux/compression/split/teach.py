"""Training a pair against the whole model: first what the decoder gives is to be the cut's tensor, then the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemux.compression.augment import Batch, draw
from edgemux.compression.fit import Tick, fit_drawn
from edgemux.compression.recipe import Augment, Schedule
from edgemux.compression.split.bottleneck import BITS, Pair
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.onnx_model import OnnxModel

Arrays = Mapping[str, NDArray[Any]]
# uint8 [n, h, w] -> what the encoder reads, float [n, c, h, w], by name.
Sources = Callable[[NDArray[np.uint8]], Arrays]
# Below this a probability says nothing, and its logarithm too much.
LEAST = 1e-7


@dataclass(frozen=True)
class Taught:
    """What the whole says. target: the cut's tensor; answers: probabilities; features: of the tail's last output.

    Answers and features are [n, 0] where they are not asked for.
    """

    target: Tensor
    answers: Tensor
    features: Tensor


@dataclass(frozen=True)
class Lesson(Batch):
    """A batch with what is taught of it, and the bits it is sent in."""

    sources: Mapping[str, Tensor]
    taught: Taught
    bits: int


@dataclass(frozen=True)
class Weights:
    """Of the parts of the loss: the cut's tensor, the whole's answers, the labels, what the answers are made of."""

    target: float = 0.0
    answers: float = 0.0
    labels: float = 0.0
    features: float = 0.0

    @property
    def tail(self) -> bool:
        """Whether the tail has to run."""
        return self.answers > 0.0 or self.labels > 0.0 or self.features > 0.0


@dataclass(frozen=True)
class Course:
    """How a pair is trained.

    bits: each batch draws one of these. mixed: this share of a batch's images is mixed with another image in any
    proportion: the whole knows its training images by heart, of a mixture it says what it sees (Zhang et al. 2018;
    Beyer et al. 2022). tail_share: of the rate, for the tail, which is trained already, and Adam takes the steps
    instead of SGD: a tail without batch norms has gradients of another size than the rest.
    """

    weights: Weights
    schedule: Schedule
    augment: Augment
    seed: int
    bits: tuple[int, ...] = BITS
    mixed: float = 0.0
    tail_share: float | None = None


class Teacher:
    """The whole model in its two halves, as a cut makes them. The head takes uint8 [n, h, w]."""

    def __init__(self, head: OnnxModel, tail: OnnxModel) -> None:
        self._head, self._tail = head, tail
        self._latest: tuple[NDArray[np.uint8], NDArray[Any]] | None = None

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """The cut's tensor; asked for again of the same array, it is there already."""
        if self._latest is None or self._latest[0] is not pixels:
            self._latest = pixels, self._head.run({self._head.inputs[0]: pixels})[0]
        return self._latest[1]

    def of(self, pixels: NDArray[np.uint8], answers: bool = True) -> Taught:
        """Of pixels uint8 [n, h, w]."""
        target = self.cut(pixels)
        if not answers:
            none = torch.empty(len(target), 0)
            return Taught(torch.from_numpy(target), none, none)
        found = self._tail.run({self._tail.inputs[0]: target})
        return Taught(*(torch.from_numpy(each) for each in (target, found[0], found[-1])))


def teach(
    pair: Pair,
    images: Tensor,
    labels: Tensor | None,
    teacher: Teacher,
    sources: Sources,
    course: Course,
    checkpoint: Path | None,
    tick: Tick = lambda done: None,
) -> None:
    """Train ``pair`` in place on augmented ``images`` (uint8 [n, h, w]); it goes on from ``checkpoint``.

    labels: int64 [n], or None where there are none. Raises ConfigError for labels of mixed images.
    """
    if course.mixed and course.weights.labels:
        raise ConfigError("mixed: a mixture of images has no label; the labels' weight must be 0")

    def drawn(index: Tensor, generator: torch.Generator) -> Lesson:
        batch = draw(images, index, course.augment, generator)
        pixels = mixed_pixels(batch.pixels[:, 0], course.mixed, generator).numpy()
        taught = teacher.of(pixels, course.weights.tail)
        given = {name: torch.from_numpy(value) for name, value in sources(pixels).items()}
        return Lesson(batch.pixels, index, batch.flipped, given, taught, drawn_bits(course.bits, generator))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Pair) and isinstance(batch, Lesson)
        truth = None if labels is None else labels[batch.index]
        return loss_of(model, batch, course.weights, truth)

    steps = None if course.tail_share is None else _adam(course.tail_share)
    schedule, seed = course.schedule, course.seed
    fit_drawn(pair, len(images), drawn, loss, schedule, seed, checkpoint, tick, clip=5.0, optimiser_of=steps)


def drawn_bits(bits: Sequence[int], generator: torch.Generator) -> int:
    """Those in which a batch is sent."""
    return bits[int(torch.randint(len(bits), (1,), generator=generator))]


def mixed_pixels(pixels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Float [n, h, w] in 0..1 -> uint8 [n, h, w]; about ``share`` of them mixed with another of the same batch."""
    if share > 0.0:
        count = len(pixels)
        other = pixels[torch.randperm(count, generator=generator)]
        part = torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) < share)
        pixels = torch.lerp(pixels, other, part[:, None, None])
    return (pixels * 255.0).round().to(torch.uint8)


def _adam(tail_share: float) -> Callable[[nn.Module, Schedule], torch.optim.Optimizer]:
    """Adam for a pair, with that share of the rate for its tail; biases and batch norms do not decay."""

    def made(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
        assert isinstance(model, Pair)
        groups = []
        for part, share in ((model.encoder, 1.0), (model.decoder, 1.0), (model.tail, tail_share)):
            trained = [p for p in part.parameters() if p.requires_grad]
            for flat, decay in ((False, schedule.weight_decay), (True, 0.0)):
                some = [p for p in trained if (p.ndim <= 1) == flat]
                if some:
                    groups.append({"params": some, "weight_decay": decay, "share": share})
        return torch.optim.AdamW(groups, lr=schedule.peak_rate)

    return made


def logarithms(probabilities: Tensor) -> Tensor:
    """Of probabilities [n, classes], as far as they say something."""
    return probabilities.clamp_min(LEAST).log()


def cross_entropy(logs: Tensor, answers: Tensor) -> Tensor:
    """Of the whole's answers, probabilities [n, classes], and the pair's logarithms. The whole's own entropy is left
    out of the divergence: it has no gradient.
    """
    return -(answers * logs).sum(dim=1).mean()


def loss_of(pair: Pair, lesson: Lesson, weights: Weights, truth: Tensor | None) -> Tensor:
    """Squared errors of tensors as shares of their variance, plus cross-entropies to whole and labels."""
    taught = lesson.taught
    decoded = pair.decoded(lesson.sources, lesson.bits)
    value = decoded.new_zeros(())
    if weights.target:
        value = value + weights.target * nn.functional.mse_loss(decoded, taught.target) / taught.target.var()
    if not weights.tail:
        return value
    found = pair.tail(decoded)
    logs = logarithms(found[pair.tail.outputs[0]])
    if weights.features and pair.features is not None:
        apart = nn.functional.mse_loss(found[pair.features], taught.features)
        value = value + weights.features * apart / taught.features.var()
    if weights.answers:
        value = value + weights.answers * cross_entropy(logs, taught.answers)
    if weights.labels and truth is not None:
        value = value + weights.labels * nn.functional.nll_loss(logs, truth)
    return value
