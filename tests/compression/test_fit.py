"""The training loop: interrupted and resumed, it ends where an uninterrupted one ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.compression.recipe import Augment, Schedule

SCHEDULE = Schedule(epochs=3, batch=32, peak_rate=0.05, bf16=False)
AUGMENT = Augment(flip=True, shift_px=2, erase=0.5, erase_px=8)


class Killed(Exception):
    """Stands for a power cut."""


def train(torch: Any, checkpoint: Path, die_at: int | None = None) -> list[Any]:
    from edgemux.compression.fit import fit
    from edgemux.compression.nets import CloudNet

    torch.manual_seed(1)
    net = CloudNet((4, 6, 8), (1, 1))
    images = torch.randint(0, 256, (96, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(96) % 10

    def loss(model: Any, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(batch.pixels), labels[batch.index])

    def on_epoch(epoch: int) -> None:
        if epoch == die_at:
            raise Killed

    fit(net, images, loss, SCHEDULE, AUGMENT, 7, checkpoint, lambda done: None, on_epoch)
    return list(net.state_dict().values())


def test_a_resumed_training_ends_with_the_same_weights(torch: Any, tmp_path: Path) -> None:
    whole = train(torch, tmp_path / "whole.pt")
    with pytest.raises(Killed):
        train(torch, tmp_path / "cut.pt", die_at=2)
    resumed = train(torch, tmp_path / "cut.pt")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_the_learning_rate_rises_once_and_ends_at_zero() -> None:
    from edgemux.compression.fit import one_cycle

    rates = [one_cycle(done, 0.2) for done in np.linspace(0.0, 1.0, 101)]
    top = int(np.argmax(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_augmentation_keeps_range_shape_and_says_what_it_flipped(torch: Any) -> None:
    from edgemux.compression.augment import draw

    images = torch.zeros(64, 28, 28, dtype=torch.uint8)
    images[:, :, :14] = 255
    batch = draw(images, torch.arange(64), Augment(flip=True, shift_px=0), torch.Generator().manual_seed(0))
    assert batch.pixels.shape == (64, 1, 28, 28)
    assert torch.equal(batch.pixels[:, 0, 0, 0] == 0.0, batch.flipped)
    noisy = draw(images, torch.arange(64), AUGMENT, torch.Generator().manual_seed(0)).pixels
    assert float(noisy.min()) >= 0.0 and float(noisy.max()) <= 1.0


def test_distillation_without_a_share_is_cross_entropy_and_never_negative_with_one(torch: Any) -> None:
    from edgemux.compression.distill.family import distilled

    generator = torch.Generator().manual_seed(3)
    logits, teacher = torch.randn(4, 16, 10, generator=generator), torch.randn(16, 10, generator=generator)
    labels = torch.arange(16) % 10
    plain = distilled(logits, teacher, labels, 0.0, 2.0)
    for level in range(4):
        expected = torch.nn.functional.cross_entropy(logits[level], labels)
        assert float(plain[level]) == pytest.approx(float(expected), rel=1e-5)
    same = distilled(teacher.expand(4, -1, -1), teacher, labels, 1.0, 2.0)
    assert float(same.abs().max()) < 1e-5


def test_a_stage_is_done_once_and_its_time_adds_up(tmp_path: Path) -> None:
    from edgemux.compression.workshop import Workshop

    runs: list[Path] = []

    def make(folder: Path, tick: Any) -> None:
        tick(0.5)
        runs.append(folder)
        if len(runs) == 1:
            raise Killed

    with pytest.raises(Killed):
        Workshop(tmp_path).stage("one", make, {"alpha": 1})
    first = Workshop(tmp_path)
    folder = first.stage("one", make, {"alpha": 1})
    assert Workshop(tmp_path).stage("one", make, {"alpha": 1}) == folder
    assert len(runs) == 2
    assert Workshop(tmp_path).stage("one", make, {"alpha": 2}) != folder
    assert first.seconds["one"] >= 0.0
