"""What the cloud model says about the training images, computed once."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edgemux.compression.data import Split
from edgemux.compression.fit import Tick, outputs_of
from edgemux.compression.nets import CloudNet

OUTPUTS = "teacher.pt"


def write(model: CloudNet, train_set: Split, folder: Path, tick: Tick) -> None:
    """Write the logits, float32 [2, n, 10]: of every training image, and of its mirror image."""
    images = torch.from_numpy(train_set.images)
    plain = outputs_of(model, images)
    tick(0.5)
    torch.save(torch.stack([plain, outputs_of(model, images, flip=True)]), folder / OUTPUTS)


def read(folder: Path) -> Tensor:
    """The logits, float32 [2, n, 10]."""
    logits: Tensor = torch.load(folder / OUTPUTS, weights_only=True)
    return logits
