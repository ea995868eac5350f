"""Trains the nested family: all levels at once, from labels and from the cloud model's outputs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemux.compression.augment import Batch
from edgemux.compression.data import Split
from edgemux.compression.fit import Loss, Tick, fit
from edgemux.compression.nested import NestedNet
from edgemux.compression.recipe import Family

WEIGHTS = "weights.pt"
CHECKPOINT = "checkpoint.pt"


def train(recipe: Family, train_set: Split, teacher: Tensor, seed: int, folder: Path, tick: Tick) -> None:
    """Write ``weights.pt``; resumes from ``checkpoint.pt``.

    teacher: logits float32 [2, n, 10] of the images and of their mirror images.
    """
    torch.manual_seed(seed)
    model = NestedNet(recipe)
    loss = learning(recipe, torch.from_numpy(train_set.labels), teacher)
    first_quantised = round(recipe.schedule.epochs * (1.0 - recipe.quantise_last))

    def on_epoch(epoch: int) -> None:
        model.quantise(epoch >= first_quantised)

    images = torch.from_numpy(train_set.images)
    fit(model, images, loss, recipe.schedule, recipe.augment, seed, folder / CHECKPOINT, tick, on_epoch)
    torch.save(model.state_dict(), folder / WEIGHTS)


def learning(recipe: Family, labels: Tensor, teacher: Tensor) -> Loss:
    """The family's loss: the mean of the levels', by the recipe's weights.

    labels: int64 [n]; teacher: logits float32 [2, n, classes] of the inputs and of their mirror images.
    """
    weights = torch.tensor(recipe.loss_weights)

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        logits = net(batch.pixels.contiguous(memory_format=torch.channels_last)).float()
        targets = teacher[batch.flipped.long(), batch.index]
        per_level = distilled(logits, targets, labels[batch.index], recipe.distill, recipe.temperature_t)
        return (per_level * weights).sum() / weights.sum()

    return loss


def distilled(logits: Tensor, teacher: Tensor, labels: Tensor, share: float, temperature: float) -> Tensor:
    """Loss of each level, float [levels]: (1 - share) cross-entropy + share T^2 KL(teacher || level) at T.

    logits: [levels, n, 10], teacher: [n, 10]. Hinton, Vinyals, Dean 2015, equation 4 and the T^2 of section 2.
    """
    levels, n, classes = logits.shape
    hard = functional.cross_entropy(logits.reshape(-1, classes), labels.repeat(levels), reduction="none").reshape(
        levels, n
    )
    soft = functional.kl_div(
        functional.log_softmax(logits / temperature, dim=-1),
        functional.softmax(teacher / temperature, dim=-1).expand_as(logits),
        reduction="none",
    ).sum(dim=-1)
    return ((1.0 - share) * hard + share * temperature**2 * soft).mean(dim=1)


def load(recipe: Family, folder: Path) -> NestedNet:
    """The trained family with int8-rounded weights if it was trained with them, ready for inference."""
    model = NestedNet(recipe)
    model.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    model.quantise(recipe.quantise_last > 0)
    return model.eval()
