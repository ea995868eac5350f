"""How likely an answer is to be right once both models have answered: what the gates learn to foretell.

A router sees the device's answer alone, but its targets may use all that is known at training: the label and both
models' probabilities. Targets of 0 and 1 are noisy, since one draw of a label says little about a hard input. So
the label's posterior given both answers is fitted first, and the router learns the chances that follow from it:
distillation with privileged information (Lopez-Paz et al. 2016). Where the cloud has blind spots the posterior learns
to doubt it, which the cloud's own probabilities never would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgemux.multiplexer.features import FEW_CLASSES, LOG_FLOOR
from edgemux.multiplexer.training.minimise import minimise

Floats = NDArray[np.float32]

# Of many classes only each model's likeliest are looked at one by one; the others count as one.
LIKELIEST = 8
# Ridge towards "believe the cloud", in nats per squared weight; a tenth moves a posterior of 1,000 rows by < 1 %.
RIDGE = 1e-3
# exp() of it is nothing: stands for a class that is already among the others.
ABSENT = -60.0
# In place of a class: one that is there already, and all that are not.
TWICE, REST = -2, -1


@dataclass(frozen=True, slots=True)
class Evidence:
    """Both models' log-probabilities on the same k classes of each of n rows, and where the answers are among them.

    cloud, device: float32 [n, k]; device_at, cloud_at, label_at: int64 [n]. With few classes k is all of them in
    order and ``ids`` is empty, [n, 0]; with many, each model's likeliest, int32 [n, k], and last all the rest as one.
    """

    cloud: Floats
    device: Floats
    ids: NDArray[np.int32]
    device_at: NDArray[np.int64]
    cloud_at: NDArray[np.int64]
    label_at: NDArray[np.int64]

    def answering(self, device: NDArray[np.int64]) -> Evidence:
        """The same evidence about other device answers, [n]: those of a lower level."""
        return replace(self, device_at=_place(self.ids, device))


def evidence(device: NDArray[Any], cloud: NDArray[Any], labels: NDArray[np.int64]) -> Evidence:
    """The evidence in probabilities [n, classes] of both models and labels [n]."""
    n, classes = device.shape
    device_label, cloud_label = device.argmax(axis=1), cloud.argmax(axis=1)
    if classes <= FEW_CLASSES:
        nothing = np.zeros((n, 0), np.int32)
        return Evidence(_log(cloud), _log(device), nothing, device_label, cloud_label, labels)
    ids = np.concatenate([_likeliest(cloud), _likeliest(device)], axis=1)
    again = (ids[:, LIKELIEST:, None] == ids[:, None, :LIKELIEST]).any(axis=2)
    seen = np.concatenate([np.zeros((n, LIKELIEST), bool), again], axis=1)
    named = np.append(np.where(seen, TWICE, ids), np.full((n, 1), REST), axis=1).astype(np.int32)

    def logs(p: NDArray[Any]) -> Floats:
        mass = np.where(seen, 0.0, np.take_along_axis(p, ids, axis=1))
        rest = np.clip(1.0 - mass.sum(axis=1, keepdims=True), 0.0, 1.0)
        return np.concatenate([np.where(seen, ABSENT, _log(mass)), _log(rest)], axis=1).astype(np.float32)

    places = (_place(named, label) for label in (device_label, cloud_label, labels))
    return Evidence(logs(cloud), logs(device), named, *places)


def _place(ids: NDArray[np.int32], label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where labels [n] are among the classes; last where they are not among those named."""
    if not ids.shape[1]:
        return label
    hit = ids == label[:, None]
    place: NDArray[np.int64] = np.where(hit.any(axis=1), hit.argmax(axis=1), ids.shape[1] - 1)
    return place


def _likeliest(p: NDArray[Any]) -> NDArray[np.int64]:
    return np.argpartition(-p, LIKELIEST - 1, axis=1)[:, :LIKELIEST]


def _log(p: NDArray[Any]) -> Floats:
    logs: Floats = np.log(p.astype(np.float32) + np.float32(LOG_FLOOR))
    return logs


@dataclass(frozen=True, slots=True)
class Posterior:
    """P(label | both answers) = softmax(of_cloud * cloud + of_device * device + offset), float64 [k] each."""

    of_cloud: NDArray[np.float64]
    of_device: NDArray[np.float64]
    offset: NDArray[np.float64]

    @classmethod
    def trusting(cls, k: int) -> Posterior:
        """The cloud's own probabilities: all there is to go by without labels."""
        return cls(np.ones(k), np.zeros(k), np.zeros(k))

    def right(self, seen: Evidence) -> tuple[Floats, Floats]:
        """P(the device's answer is right) and P(the cloud's is), float32 [n] each."""
        logits = self.of_cloud * seen.cloud + self.of_device * seen.device + self.offset
        logits -= logits.max(axis=1, keepdims=True)
        q = np.exp(logits)
        q /= q.sum(axis=1, keepdims=True)
        rows = np.arange(len(q))
        return q[rows, seen.device_at].astype(np.float32), q[rows, seen.cloud_at].astype(np.float32)


def fit_posterior(seen: Evidence) -> Posterior:
    """Maximum likelihood with a ridge, by L-BFGS; a weight per class where classes are few, else one for all."""
    cloud, device = torch.from_numpy(seen.cloud).double(), torch.from_numpy(seen.device).double()
    labels = torch.from_numpy(seen.label_at)
    k = cloud.shape[1]
    few = not seen.ids.shape[1]
    width = k if few else 1
    # Of many classes, the rest alone has an offset of its own.
    place = torch.ones(k, dtype=torch.float64) if few else functional.one_hot(torch.tensor(k - 1), k).double()
    start = torch.zeros(3, width, dtype=torch.float64)
    start[0] = 1.0
    weights = start.clone().requires_grad_(True)

    def loss() -> torch.Tensor:
        logits = weights[0] * cloud + weights[1] * device + weights[2] * place
        return functional.cross_entropy(logits, labels) + RIDGE * ((weights - start) ** 2).sum()

    minimise(loss, [weights])
    fitted = weights.detach()
    of_cloud, of_device, offset = (fitted[0].expand(k), fitted[1].expand(k), fitted[2] * place)
    return Posterior(of_cloud.numpy().copy(), of_device.numpy().copy(), offset.numpy().copy())
