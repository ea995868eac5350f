"""Replaces the net by a fresh one that was designed to be small; what the old one knows is left to distillation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from msgspec import Meta
from torch import nn

from edgemux.compression.cells import mobilenet, shufflenet, vargnet
from edgemux.compression.cells.sizes import Shape, resized
from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.samples import logits_of
from edgemux.multiplexer.errors import PassError

CellName = Literal["mobilenet", "shufflenet", "vargnet"]
Make = Callable[[Shape, int, float, float], nn.Module]
CELLS: dict[CellName, Make] = {
    "mobilenet": mobilenet.student,
    "shufflenet": shufflenet.student,
    "vargnet": vargnet.student,
}
# Below, a 3x3 window sees more padding than picture.
SMALLEST_SIDE = 4


class Student(Pass, frozen=True):
    """``student(cell, width, resolution)``: a fresh small net with the model's input shape and classes.

    Its weights are random: let ``distill``, ``angular`` or ``finetune`` follow. width: factor on the channels.
    resolution: factor on the sides of the image, as a resize inside the net.
    """

    label: ClassVar[str] = "student"
    gives: ClassVar[frozenset[Gain]] = frozenset({"speed", "storage"})

    cell: CellName = "mobilenet"
    width: Annotated[float, Meta(gt=0.0, le=4.0)] = 0.5
    resolution: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net for images [c, h, w] whose sides are 4 px or more after the resize."""
        net_of(subject, self.label)
        if len(setting.samples.shape) != 3:
            raise PassError(f"{self.label}: needs images [c, h, w], the inputs are {list(setting.samples.shape)}")
        size = resized(_image(setting), self.resolution)
        if min(size) < SMALLEST_SIDE:
            raise PassError(f"{self.label}: needs images of {SMALLEST_SIDE} px or more, they are {list(size)}")

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """The fresh net, and no stores: those before were for weights that are gone."""
        classes = logits_of(net_of(subject, self.label), setting.samples.test_x[:2]).shape[1]
        return Subject(net=fresh(self.cell, _image(setting), classes, self.width, self.resolution, setting.seed))


def fresh(cell: CellName, shape: Shape, classes: int, width: float, resolution: float, seed: int) -> nn.Module:
    """A net of this cell with weights drawn from ``seed``, in evaluation mode; torch's own generator is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CELLS[cell](shape, classes, width, resolution).eval()


def _image(setting: Setting) -> Shape:
    channels, height, width = setting.samples.shape
    return channels, height, width
