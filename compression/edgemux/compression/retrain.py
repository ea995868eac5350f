"""Training a compressed net on: after every pass that takes something away, and from labels or from a teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated, ClassVar

from msgspec import Meta
from torch import Tensor, nn

from edgemux.compression.augment import Batch
from edgemux.compression.fit import Loss, fit_drawn
from edgemux.compression.observing import evaluating
from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.recipe import Schedule
from edgemux.compression.samples import Samples

Epochs = Annotated[float, Meta(gt=0.0, le=1000.0)]
Rate = Annotated[float, Meta(gt=0.0, le=10.0)]
BATCH = 128
# A fifth of what a net of this kind is first trained with: enough to move, too little to forget.
EPOCHS, RATE = 3.0, 0.02
# A distilled loss at T = 4 has gradients ten times those of the labels; a net that is good already must not be thrown
# off by its first steps (seen: 99 % -> 25 %).
CLIP = 1.0


def retrain(
    net: nn.Module,
    samples: Samples,
    loss: Loss,
    epochs: int,
    rate: float = RATE,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[int], None] = lambda epoch: None,
    clip: float | None = CLIP,
) -> nn.Module:
    """Train ``net`` in place under a one-cycle schedule and return it in evaluation mode.

    loss: takes the net in training mode and a batch of ``Samples.draw``; ``on_step`` puts back what must not move.
    clip: see ``fit_drawn``.
    """
    schedule = Schedule(epochs=epochs, batch=min(BATCH, len(samples.train_x)), peak_rate=rate, bf16=False)
    count = len(samples.train_x)
    fit_drawn(net, count, samples.draw, loss, schedule, seed, on_epoch=on_epoch, on_step=on_step, clip=clip)
    return net.eval()


def label_loss(samples: Samples) -> Loss:
    """Cross-entropy with the labels of the training inputs."""

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(net(batch.pixels).float(), samples.train_y[batch.index])

    return loss


def recalibrate(net: nn.Module, x: Tensor, batch: int = 250) -> None:
    """Measure batch statistics anew, in place, as their mean over ``x``; needed after weights changed without training.

    Yu & Huang 2019 (US-Nets), section 3.4.
    """
    norms = [part for part in net.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(net):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over all batches
            norm.train()
        for part in x.split(batch):
            if len(part) > 1:
                net(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Finetune(Pass, frozen=True):
    """``finetune(epochs, rate)``: train on from the labels."""

    label: ClassVar[str] = "finetune"
    gives: ClassVar[frozenset[Gain]] = frozenset({"accuracy"})

    epochs: Epochs = EPOCHS
    rate: Rate = RATE

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Train a copy of the net."""
        net = copy.deepcopy(net_of(subject, self.label))
        epochs = setting.epochs(self.epochs)
        retrain(net, setting.samples, label_loss(setting.samples), epochs, self.rate, setting.seed)
        return subject.with_net(net)

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net."""
        net_of(subject, self.label)
