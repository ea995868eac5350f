"""What a model is compressed with: labelled inputs to learn from and others to judge by, as the net takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemux.compression.augment import Batch
from edgemux.compression.data import Split
from edgemux.compression.observing import evaluating
from edgemux.multiplexer.errors import ConfigError

Change = Callable[[Tensor, torch.Generator], Tensor]
ARRAYS = ("train_x", "train_y", "test_x", "test_y")
# Outputs for as many inputs at a time: enough to keep a core busy, little enough for its cache.
BATCH = 250


@dataclass(frozen=True, eq=False)
class Samples:
    """train_x, test_x: float32 [n, ...] as the net takes them; train_y, test_y: int64 [n], classes from 0.

    ``test`` judges every pass, so what is reported about a recipe chosen by it is a little too good; keep a third set
    for a final figure. unlabelled: float32 [n, ...] from the domain a model is to be adapted to. change: a random
    augmentation of a training batch.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    unlabelled: Tensor | None = None
    change: Change | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError naming the array that is wrong."""
        for name in ("train", "test"):
            x, y = getattr(self, f"{name}_x"), getattr(self, f"{name}_y")
            if not x.is_floating_point() or x.ndim < 2:
                raise ConfigError(f"data: {name}_x must be float32 [n, ...], it is {_about(x)}")
            if y.dtype != torch.int64 or y.shape != x.shape[:1] or not len(y):
                raise ConfigError(f"data: {name}_y must be int64 [{len(x)}] with n > 0, it is {_about(y)}")
            if int(y.min()) < 0:
                raise ConfigError(f"data: {name}_y must count classes from 0")
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise ConfigError(f"data: train_x is {_about(self.train_x)}, test_x {_about(self.test_x)}")

    @classmethod
    def of(cls, data: Any) -> Samples:
        """Samples from themselves, from four arrays or tensors in the order of the fields, or from an .npz file.

        Integer inputs (pixels 0..255) are divided by 255. Raises ConfigError for anything else.
        """
        if isinstance(data, Samples):
            return data
        if isinstance(data, (str, Path)):
            return cls._read(Path(data))
        if isinstance(data, (tuple, list)) and len(data) == 4:
            train_x, train_y, test_x, test_y = (torch.as_tensor(part) for part in data)
            return cls(_as_input(train_x), train_y.long(), _as_input(test_x), test_y.long())
        raise ConfigError(f"data: give Samples, ({', '.join(ARRAYS)}) or an .npz file with these names")

    @classmethod
    def of_splits(cls, train: Split, test: Split) -> Samples:
        """Samples from images uint8 [n, h, w] of one channel, as [n, 1, h, w] in 0..1."""
        return cls.of((train.images[:, None], train.labels, test.images[:, None], test.labels))

    @classmethod
    def _read(cls, path: Path) -> Samples:
        try:
            with np.load(path, allow_pickle=False) as stored:
                missing = [name for name in ARRAYS if name not in stored]
                if missing:
                    raise ConfigError(f"data: {path.name} lacks {', '.join(missing)}; it needs {', '.join(ARRAYS)}")
                return cls.of(tuple(stored[name] for name in ARRAYS))
        except (OSError, ValueError) as error:
            raise ConfigError(f"data: {path} cannot be read as an .npz file of plain arrays") from error

    @property
    def classes(self) -> int:
        """How many classes the labels name."""
        return 1 + max(int(self.train_y.max()), int(self.test_y.max()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_x.shape[1:])

    def limited(self, train: int, test: int) -> Samples:
        """The first so many of each."""
        return replace(
            self,
            train_x=self.train_x[:train],
            train_y=self.train_y[:train],
            test_x=self.test_x[:test],
            test_y=self.test_y[:test],
        )

    def draw(self, index: Tensor, generator: torch.Generator) -> Batch:
        """A training batch, changed at random where ``change`` says how."""
        x = self.train_x[index]
        if self.change is not None:
            x = self.change(x, generator)
        return Batch(x, index, torch.zeros(len(index), dtype=torch.bool))


def _as_input(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x.float() / 255.0


def _about(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


@torch.inference_mode()
def logits_of(net: nn.Module, x: Tensor) -> Tensor:
    """The net's outputs in evaluation mode, float32 [n, classes]; its own mode is put back."""
    with evaluating(net):
        return torch.cat([net(part).float() for part in x.split(BATCH)])


def accuracy_of(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of inputs whose largest output is the label."""
    return float((logits_of(net, x).argmax(1) == y).float().mean())
