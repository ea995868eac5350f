"""Several tasks on one frozen net: a branch a task reads features from the middle of the backbone.

The backbone is trained for its own task first and never changes again, batch statistics included; adding a branch
therefore leaves all answers that were there before as they are, to the bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import onnx
import torch
from torch import Tensor, nn

from edgemux.compression.augment import Batch
from edgemux.compression.retrain import retrain
from edgemux.compression.samples import BATCH, Samples
from edgemux.compression.to_onnx import OUTPUT, exported
from edgemux.multiplexer.errors import ConfigError

FEATURES = "features"


class MultiBranch(nn.Module):
    """A backbone with its own answers, and branches that read what its module ``at`` answers."""

    def __init__(self, backbone: nn.Module, at: str) -> None:
        """Freezes ``backbone``, in place. Raises ConfigError when it has no module ``at``."""
        super().__init__()
        if at not in dict(backbone.named_modules()) or not at:
            raise ConfigError(f"branches: the backbone has no module {at!r}")
        self.backbone = backbone.requires_grad_(False).eval()
        self.at = at
        self.branches = nn.ModuleDict()

    def add(self, name: str, branch: nn.Module) -> MultiBranch:
        """A further task: ``branch`` takes the features and answers logits [n, classes]. Returns this net.

        Raises ConfigError for a name that is taken or cannot name an output.
        """
        if not name.isidentifier() or name in (OUTPUT, FEATURES) or hasattr(self.branches, name):
            raise ConfigError(f"branches: {name!r} is taken, or cannot name an output")
        self.branches[name] = branch.eval()
        return self

    def train(self, mode: bool = True) -> MultiBranch:
        """Branches may train; the backbone stays in evaluation mode, so that its batch statistics stay."""
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the answers, in order: the backbone's own, then the branches' as they were added."""
        return (OUTPUT, *self.branches)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """float [n, ...] -> logits of every task, in the order of ``outputs``."""
        answer, features = self.answer(x)
        return (answer, *(branch(features) for branch in self.branches.values()))

    def answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's own logits and the features that branches read."""
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.append(output)

        handle = self.backbone.get_submodule(self.at).register_forward_hook(keep)
        try:
            answer = self.backbone(x)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise ConfigError(f"branches: the backbone calls {self.at!r} {len(seen)} times, features are of one call")
        return answer, seen[0]

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """What branches read; the rest of the backbone is not run."""

        def stop(_module: nn.Module, _inputs: Any, output: Tensor) -> NoReturn:
            raise _Reached(output)

        handle = self.backbone.get_submodule(self.at).register_forward_hook(stop)
        try:
            self.backbone(x)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise ConfigError(f"branches: the backbone never calls {self.at!r}")


class _Reached(Exception):
    """Carries the features out of a forward pass."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def train_branch(net: MultiBranch, name: str, samples: Samples, epochs: int, rate: float = 0.05, seed: int = 0) -> None:
    """Train one branch in place from the labels of its task; nothing else is touched.

    samples: inputs as the backbone takes them. Features are computed once where inputs are not changed at random.
    Raises ConfigError for a branch that is not there.
    """
    if name not in net.branches:
        raise ConfigError(f"branches: no branch {name!r}; there are {', '.join(net.branches) or 'none'}")
    fixed = samples.change is None
    if fixed:
        x, test_x = (
            torch.cat([net.features(part) for part in all_x.split(BATCH)])
            for all_x in (samples.train_x, samples.test_x)
        )
        samples = replace(samples, train_x=x, test_x=test_x)

    def loss(branch: nn.Module, batch: Batch) -> Tensor:
        features = batch.pixels if fixed else net.features(batch.pixels)
        return nn.functional.cross_entropy(branch(features).float(), samples.train_y[batch.index])

    retrain(net.branches[name], samples, loss, epochs, rate, seed)


def whole(net: MultiBranch, example: Tensor) -> onnx.ModelProto:
    """One graph with an output a task, named as in ``outputs``. example: float32 [1, ...]."""
    return exported(net, example, net.outputs)


def in_parts(net: MultiBranch, example: Tensor) -> dict[str, onnx.ModelProto]:
    """The backbone, which answers logits and features, and a graph a branch, which takes these features.

    Adding a task later adds a file and leaves the others as they are.
    """
    # Names in a graph depend on all that is traced: without the branches the backbone's file is the same for ever.
    trunk = _Trunk(MultiBranch(net.backbone, net.at))
    parts = {"backbone": exported(trunk, example, (OUTPUT, FEATURES))}
    features = net.features(example[:1])
    return parts | {name: exported(branch, features, (name,)) for name, branch in net.branches.items()}


class _Trunk(nn.Module):
    def __init__(self, net: MultiBranch) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.answer(x)
