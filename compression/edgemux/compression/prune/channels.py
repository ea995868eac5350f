"""``prune(criterion, ratio)``: channel selection and least-squares reconstruction, layer by layer, then removal."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.prune import criteria
from edgemux.compression.prune.remove import Consumer, Group, channel_groups, remove_channels
from edgemux.compression.prune.sampler import Moments, contributions, feature_channels, matrix_of, moments, refitted
from edgemux.compression.retrain import recalibrate
from edgemux.multiplexer.errors import PassError

Criterion = Literal["lasso", "thinet", "l1", "random"]
Index = NDArray[np.int64]
# Inputs that selection looks at, and those that batch statistics are measured on.
SAMPLED, RECALIBRATED = 1200, 2000


def pruned(
    net: nn.Module,
    x: Tensor,
    criterion: Criterion,
    ratio: float,
    round_to: int = 0,
    refit: bool = True,
    seed: int = 0,
) -> nn.Module:
    """A copy of the net without the share ``ratio`` of the channels of every group.

    x: float32 [n, ...], unlabelled inputs. Groups are taken in the order of the data: each is chosen and refitted on
    what the already thinned layers before it answer, against what the whole net answered (He et al. 2017, 3.2). With
    ``refit`` the consumers' weights are solved anew by least squares; otherwise ThiNet's are scaled and the others'
    left. Raises PassError when nothing can be removed.
    """
    thin = copy.deepcopy(net).eval()
    example, sampled = x[:1], x[:SAMPLED]
    plan: dict[str, list[int]] = {}
    for group in channel_groups(thin, example):
        width = criteria.kept_width(group.width, ratio, round_to)
        if width >= group.width:
            continue
        keep = _thinned(thin, net, group, width, criterion, refit, sampled, seed)
        plan[group.root] = keep.tolist()
    if not plan:
        raise PassError("prune: no layer has channels that can be removed at this ratio")
    result = remove_channels(thin, example, plan)
    if not refit:  # a refit aims at the old outputs, to which the old statistics belong
        recalibrate(result, x[:RECALIBRATED])
    return result


def _thinned(
    thin: nn.Module, net: nn.Module, group: Group, width: int, criterion: Criterion, refit: bool, x: Tensor, seed: int
) -> Index:
    """Choose a group's channels and take the others out of its consumers' weights, in place."""
    names = list(dict.fromkeys(consumer.name for consumer in group.consumers))
    stats = moments(thin, net, names, x, seed) if refit or criterion in ("lasso", "thinet") else {}
    gram, target = _statistics(thin, group, stats)
    keep = _chosen(thin, group, width, criterion, gram, target, seed)
    factors = np.ones(group.width)
    if criterion == "thinet" and not refit:
        factors[keep] = criteria.rescaled(gram, target, keep)
    for consumer in group.consumers:
        layer = thin.get_submodule(consumer.name)
        _rewrite(layer, consumer, keep, factors, stats.get(consumer.name) if refit else None)
    return keep


def _statistics(thin: nn.Module, group: Group, stats: dict[str, Moments]) -> tuple[criteria.Floats, criteria.Floats]:
    gram, target = np.zeros((group.width, group.width)), np.zeros(group.width)
    for consumer in group.consumers if stats else ():
        layer = thin.get_submodule(consumer.name)
        channel = feature_channels(layer, consumer)
        more, wanted = contributions(stats[consumer.name], matrix_of(layer), channel, group.width)
        gram += more
        target += wanted
    return gram, target


def _chosen(
    thin: nn.Module,
    group: Group,
    width: int,
    criterion: Criterion,
    gram: criteria.Floats,
    target: criteria.Floats,
    seed: int,
) -> Index:
    if criterion == "lasso":
        return criteria.lasso(gram, target, width)
    if criterion == "thinet":
        return criteria.thinet(gram, width)
    if criterion == "random":
        return np.sort(np.random.default_rng(seed).permutation(group.width)[:width])
    layers = [thin.get_submodule(name) for name in group.layers]
    norms = [np.abs(matrix_of(layer)).sum(axis=1) for layer in layers if len(matrix_of(layer)) == group.width]
    return criteria.largest(np.sum(norms, axis=0), width)


@torch.no_grad()
def _rewrite(layer: nn.Module, consumer: Consumer, keep: Index, factors: criteria.Floats, m: Moments | None) -> None:
    """Weights that read only the kept channels: refitted where moments are given, scaled otherwise."""
    channel = feature_channels(layer, consumer)
    kept = (channel < 0) | np.isin(channel, keep)
    old = matrix_of(layer)
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    if m is not None:
        new, shift = refitted(m, old, kept, with_bias=bias is not None)
        if bias is not None:
            bias += torch.from_numpy(shift).to(bias.dtype)
    else:
        new = np.where(kept, old * np.where(channel < 0, 1.0, factors[channel]), 0.0)
    weight.copy_(torch.from_numpy(new).reshape(weight.shape).to(weight.dtype))


class Prune(Pass, frozen=True):
    """``prune(criterion, ratio, round_to, refit)``: the share ``ratio`` of all channels goes, with what reads them.

    criterion: lasso (He et al. 2017), thinet (Luo et al. 2017), l1 (Li et al. 2017) or random, the yardstick. refit:
    least-squares reconstruction. round_to: widths become multiples of it, 0 chooses. Halving the channels of a
    convolution quarters its work, so ``ratio`` is not the share of parameters that goes.
    """

    label: ClassVar[str] = "prune"
    gives: ClassVar[frozenset[Gain]] = frozenset({"speed", "storage"})

    criterion: Criterion = "lasso"
    ratio: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.5
    round_to: Annotated[int, Meta(ge=0, le=1024)] = 0
    refit: bool = True

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net whose layers can be followed."""
        if not channel_groups(net_of(subject, self.label), setting.samples.train_x[:1]):
            raise PassError("prune: no layer has channels that can be removed")

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Select, reconstruct, remove."""
        net = net_of(subject, self.label)
        x = setting.samples.train_x
        return subject.with_net(pruned(net, x, self.criterion, self.ratio, self.round_to, self.refit, setting.seed))
