"""``layers(ratio, probe)``: whole blocks that do the least become identities, and the rest learns from the original."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar

from msgspec import Meta
from torch import Tensor, nn

from edgemux.compression.distill.lesson import Lesson, taught, teacher_of
from edgemux.compression.distill.logits import SHARE, TEMPERATURE
from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.prune.blocks import Probe, identity_blocks, importances
from edgemux.compression.retrain import EPOCHS, RATE, Epochs, Rate, label_loss, recalibrate, retrain
from edgemux.multiplexer.errors import PassError

# Inputs that blocks are judged by: the linear probe is fitted on half of them, CKA compares them pair by pair; and
# those that batch statistics are measured on.
PROBED: dict[Probe, int] = {"linear": 3000, "cka": 500}
RECALIBRATED = 1000


def without_blocks(net: nn.Module, count: int, x: Tensor, y: Tensor, probe: Probe) -> tuple[nn.Module, list[str]]:
    """A copy with the ``count`` blocks that do the least as identities, and their names in the order they went.

    x: float32 [n, ...], y: int64 [n]. Blocks go one at a time, and those left are judged anew: of two that do the same
    one stays. Batch statistics are measured anew, nothing is trained. Raises PassError when there are too few blocks.
    """
    thin, gone = copy.deepcopy(net), list[str]()
    blocks = identity_blocks(thin, x)
    if len(blocks) < count:
        raise PassError(f"layers: {count} blocks are to go, {len(blocks)} can")
    for _ in range(count):
        does = importances(
            thin, [name for name in blocks if name not in gone], x[: PROBED[probe]], y[: PROBED[probe]], probe
        )
        gone.append(min(does, key=lambda name: does[name]))
        thin.set_submodule(gone[-1], nn.Identity())
        recalibrate(thin, x[:RECALIBRATED])
    return thin, gone


class Layers(Pass, frozen=True):
    """``layers(ratio, probe, distill, epochs, rate)``: the share ``ratio`` of all blocks is taken out.

    Blocks are modules whose input and output have the same shape, foremost residual ones. probe: linear (linear
    classifiers before and after each block, Alain & Bengio 2016, Chen & Zhao 2018) or cka (how alike its input and
    output are, Kornblith et al. 2019). distill: train on with the original as teacher; otherwise from labels alone.
    A shortcut outside the block's module, ``x + self.f(x)`` in the net's own forward, turns into ``x + x``.
    """

    label: ClassVar[str] = "layers"
    gives: ClassVar[frozenset[Gain]] = frozenset({"speed", "storage"})

    ratio: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.33
    probe: Probe = "linear"
    distill: bool = True
    epochs: Epochs = EPOCHS
    rate: Rate = RATE

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net with enough blocks for the ratio to be one or more, and a teacher if it is to distil."""
        blocks = identity_blocks(net_of(subject, self.label), setting.samples.train_x)
        if round(self.ratio * len(blocks)) < 1:
            raise PassError(f"{self.label}: a share of {self.ratio} of {len(blocks)} blocks of equal shapes is none")
        if self.distill:
            teacher_of(subject, setting, self.label)

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Rank, take out, train a copy."""
        net, samples = net_of(subject, self.label), setting.samples
        count = round(self.ratio * len(identity_blocks(net, samples.train_x)))
        thin, _ = without_blocks(net, count, samples.train_x, samples.train_y, self.probe)
        epochs = setting.epochs(self.epochs)
        if self.distill:
            lesson = Lesson(TEMPERATURE, SHARE, epochs, self.rate, setting.seed)
            taught(thin, teacher_of(subject, setting, self.label), samples, lesson)
        else:
            retrain(thin, samples, label_loss(samples), epochs, self.rate, setting.seed)
        return subject.with_net(thin)
