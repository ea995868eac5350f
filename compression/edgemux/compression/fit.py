"""The training loop, for the cloud model and the family alike; it can be stopped and resumed at every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from edgemux.compression.augment import Batch, draw
from edgemux.compression.hardware import hardware
from edgemux.compression.nets import PIXEL_SCALE
from edgemux.compression.recipe import Augment, Schedule

Draw = Callable[[Tensor, torch.Generator], Batch]
Loss = Callable[[nn.Module, Batch], Tensor]
Tick = Callable[[float], None]


def fit(
    model: nn.Module,
    images: Tensor,
    loss: Loss,
    schedule: Schedule,
    augment: Augment,
    seed: int,
    checkpoint: Path,
    tick: Tick,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train ``model`` in place on augmented ``images`` (uint8 [n, 28, 28]); see ``fit_drawn``."""

    def drawn(index: Tensor, generator: torch.Generator) -> Batch:
        return draw(images, index, augment, generator)

    fit_drawn(model, len(images), drawn, loss, schedule, seed, checkpoint, tick, on_epoch)


def fit_drawn(
    model: nn.Module,
    count: int,
    drawn: Draw,
    loss: Loss,
    schedule: Schedule,
    seed: int,
    checkpoint: Path | None = None,
    tick: Tick = lambda done: None,
    on_epoch: Callable[[int], None] = lambda epoch: None,
    on_step: Callable[[], None] = lambda: None,
    clip: float | None = None,
    optimiser_of: Callable[[nn.Module, Schedule], torch.optim.Optimizer] | None = None,
) -> None:
    """Train ``model`` in place on ``count`` inputs, which ``drawn(index, generator)`` makes into batches.

    After every epoch weights, optimiser and random state go to ``checkpoint``; a run that finds one continues
    from it and ends with the same weights as an uninterrupted one. ``on_epoch`` is told each epoch before it
    starts, ``on_step`` is called after every change of the weights, ``tick`` is told the share that is done. clip: the
    largest norm of a step's gradient; none: as it comes. optimiser_of: by default SGD; of its groups each may say what
    ``share`` of the schedule's rate it takes.
    """
    # Without the instructions for it, bfloat16 is ten times slower than float32.
    bf16 = schedule.bf16 and "avx512_bf16" in hardware()
    generator = torch.Generator().manual_seed(seed)
    optimiser = (optimiser_of or _optimiser)(model, schedule)
    first = _resume(checkpoint, model, optimiser, generator) if checkpoint is not None else 0
    model.to(memory_format=torch.channels_last)
    for epoch in range(first, schedule.epochs):
        on_epoch(epoch)
        model.train()
        steps = math.ceil(count / schedule.batch)
        for step, index in enumerate(_batches(count, schedule.batch, generator)):
            done = (epoch + step / steps) / schedule.epochs
            for group in optimiser.param_groups:
                group["lr"] = schedule.peak_rate * group.get("share", 1.0) * one_cycle(done, schedule.warm_up)
            batch = drawn(index, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                value = loss(model, batch)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
            on_step()
            tick(done)
        if checkpoint is not None:
            _save(checkpoint, epoch + 1, model, optimiser, generator)
    tick(1.0)


def one_cycle(done: float, warm_up: float) -> float:
    """Learning rate as a share of its peak: a line up until ``warm_up`` of the training, half a cosine down to 0."""
    if done < warm_up:
        return 0.05 + 0.95 * done / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (done - warm_up) / (1.0 - warm_up)))


@torch.inference_mode()
def outputs_of(model: nn.Module, images: Tensor, flip: bool = False, batch: int = 500) -> Tensor:
    """The model's outputs, float32, for images uint8 [n, 28, 28]; with ``flip``, for their mirror images."""
    model.eval()
    parts = []
    for chunk in images.split(batch):
        pixels = (chunk.flip(2) if flip else chunk).float()[:, None] * PIXEL_SCALE
        parts.append(model(pixels.contiguous(memory_format=torch.channels_last)).float())
    return torch.cat(parts, dim=-2)


def _optimiser(model: nn.Module, schedule: Schedule) -> torch.optim.SGD:
    """Weights decay; biases and batch norms do not (Goyal et al. 2017)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=schedule.peak_rate, momentum=schedule.momentum, nesterov=True)


def _batches(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled indices of one epoch. A last batch too small for batch statistics is left out."""
    for index in torch.randperm(count, generator=generator).split(batch):
        if len(index) >= min(batch, 16):
            yield index


def _save(
    path: Path, epoch: int, model: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    """Write beside the old checkpoint, then swap: a kill in between leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    state = {
        "epoch": epoch,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "generator": generator.get_state(),
    }
    torch.save(state, part)
    part.replace(path)


def _resume(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> int:
    """Load a checkpoint if there is one; returns the epoch to start with."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    generator.set_state(state["generator"])
    return int(state["epoch"])
