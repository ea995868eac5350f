"""Trains the cloud model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgemux.compression.augment import Batch
from edgemux.compression.data import Split
from edgemux.compression.fit import Tick, fit
from edgemux.compression.nets import CloudNet
from edgemux.compression.recipe import Cloud

WEIGHTS = "weights.pt"
CHECKPOINT = "checkpoint.pt"


def train(recipe: Cloud, train_set: Split, seed: int, folder: Path, tick: Tick) -> None:
    """Train with label smoothing and write ``weights.pt``; resumes from ``checkpoint.pt``."""
    torch.manual_seed(seed)
    model = CloudNet.of(recipe)
    labels = torch.from_numpy(train_set.labels)

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
        logits = net(pixels).float()
        return nn.functional.cross_entropy(logits, labels[batch.index], label_smoothing=recipe.label_smoothing)

    images = torch.from_numpy(train_set.images)
    fit(model, images, loss, recipe.schedule, recipe.augment, seed, folder / CHECKPOINT, tick)
    torch.save(model.state_dict(), folder / WEIGHTS)


def load(recipe: Cloud, folder: Path) -> CloudNet:
    """The trained model, ready for inference."""
    model = CloudNet.of(recipe)
    model.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    return model.eval()
