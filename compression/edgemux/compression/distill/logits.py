"""``distill(T, share)``: the compressed net learns from the original's outputs, directly or through an assistant."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar

from msgspec import Meta

from edgemux.compression.distill.assistant import between, parameters, through_assistants
from edgemux.compression.distill.lesson import Lesson, teacher_of
from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.retrain import Epochs, Rate
from edgemux.multiplexer.errors import PassError

Temperature = Annotated[float, Meta(gt=0.0, le=100.0)]
SoftShare = Annotated[float, Meta(ge=0.0, le=1.0)]
# Enough for a net made from the teacher's own weights; a fresh student needs 10 epochs and more.
TEMPERATURE, SHARE, EPOCHS, RATE = 4.0, 0.7, 5.0, 0.02


class Distill(Pass, frozen=True):
    """``distill(T, share, epochs, rate, assistant)``: train on with the original as the teacher.

    T: temperature; share: of the loss that follows the teacher. assistant: first make and teach a net of a size in
    between, for students so small that the teacher is over their heads; it costs a second training.
    """

    label: ClassVar[str] = "distill"
    gives: ClassVar[frozenset[Gain]] = frozenset({"accuracy"})

    T: Temperature = TEMPERATURE
    share: SoftShare = SHARE
    epochs: Epochs = EPOCHS
    rate: Rate = RATE
    assistant: bool = False

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net and a torch teacher of the same classes; for an assistant, a teacher with more parameters."""
        teacher = teacher_of(subject, setting, self.label)
        if self.assistant and parameters(teacher) <= parameters(net_of(subject, self.label)):
            raise PassError(f"{self.label}: an assistant needs a net that is smaller than the original")

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Train a copy of the net. Raises PassError when no assistant can be made of the original."""
        teacher, net = teacher_of(subject, setting, self.label), copy.deepcopy(net_of(subject, self.label))
        assistants = [between(teacher, net, setting.samples.train_x)] if self.assistant else []
        lesson = Lesson(self.T, self.share, setting.epochs(self.epochs), self.rate, setting.seed)
        return subject.with_net(through_assistants(teacher, assistants, net, setting.samples, lesson))
