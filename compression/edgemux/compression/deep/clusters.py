"""Weight sharing: the weights of a layer take few values, which are trained on (Han et al. 2016, section 3)."""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemux.compression.deep.layers import connections
from edgemux.compression.passes import Setting
from edgemux.compression.retrain import label_loss, retrain

Start = Literal["linear", "density"]
# Lloyd's iterations in one dimension settle within some tens.
ITERATIONS = 50

Values = NDArray[np.float32]


def centroids_of(values: Values, count: int, start: Start = "linear") -> Values:
    """At most ``count`` centroids of k-means over float32 [n], rising, float32.

    start: evenly spaced between the extremes (kept best in the paper, as it leaves centroids to the few large weights),
    or at evenly spaced quantiles. Clusters that no value is in are dropped.
    """
    ordered = np.sort(values.astype(np.float64))
    if len(ordered) == 0:
        return np.zeros(0, np.float32)
    if start == "linear":
        centroids = np.linspace(ordered[0], ordered[-1], count)
    else:
        centroids = np.quantile(ordered, (np.arange(count) + 0.5) / count)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(ITERATIONS):
        centroids = np.unique(centroids)
        # In one dimension a cluster is a run of the ordered values.
        borders = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(ordered)]])
        sizes = np.diff(edges)
        means = (np.diff(sums[edges]) / np.maximum(sizes, 1))[sizes > 0]
        if np.array_equal(means, centroids):
            break
        centroids = means
    return np.unique(centroids.astype(np.float32))


def nearest(values: Values, centroids: Values) -> NDArray[np.int64]:
    """Index of the nearest of rising centroids for each value."""
    return np.searchsorted((centroids[1:].astype(np.float64) + centroids[:-1]) / 2, values)


def shared(weight: Values, bits: int, start: Start = "linear") -> tuple[Values, NDArray[np.int64]]:
    """(codebook, codes of the weight's shape): at most 2**bits values; zeros stay zero, as code 0 if there are any."""
    flat = weight.reshape(-1)
    zero = flat == 0
    reserved = int(zero.any())
    centroids = centroids_of(flat[~zero], (1 << bits) - reserved, start)
    # No centroid may become a zero: what is not removed stays a connection.
    codes = nearest(flat, centroids) + reserved if len(centroids) else np.zeros(len(flat), np.int64)
    codes[zero] = 0
    codebook = np.concatenate([np.zeros(reserved, np.float32), centroids])
    return codebook, codes.reshape(weight.shape)


class _Sharing:
    """One parameter whose elements of a code are one: what is added to one's gradient is added to all."""

    def __init__(self, weight: nn.Parameter, bits: int, start: Start) -> None:
        codebook, codes = shared(weight.detach().numpy(), bits, start)
        self.weight = weight
        self.codes = torch.from_numpy(codes.reshape(-1))
        self.zero = torch.from_numpy(codebook[codes.reshape(-1)] == 0)
        self.size = len(codebook)
        # One element of each cluster; the last that was written.
        self.first = torch.zeros(self.size, dtype=torch.int64)
        self.first[self.codes.flip(0)] = torch.arange(len(self.codes)).flip(0)
        self.handle = weight.register_hook(self.summed)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(codebook)[self.codes].reshape(weight.shape))

    def summed(self, gradient: Tensor) -> Tensor:
        """Each element's gradient becomes the sum over its cluster (section 3.3, equation 3); zeros get none."""
        flat = gradient.reshape(-1)
        sums = torch.zeros(self.size, dtype=flat.dtype).index_add_(0, self.codes, flat)
        return sums[self.codes].masked_fill(self.zero, 0.0).reshape(gradient.shape)

    @torch.no_grad()
    def tie(self) -> None:
        """Elements of a cluster take the same steps, but a vector unit may round the last of them differently."""
        flat = self.weight.reshape(-1)
        self.weight.copy_(flat[self.first][self.codes].masked_fill(self.zero, 0.0).reshape(self.weight.shape))


def clustered(net: nn.Module, bits: int, epochs: int, rate: float, start: Start, setting: Setting) -> nn.Module:
    """A copy of the net with at most 2**bits values in each weight, after training these values."""
    net = copy.deepcopy(net)
    sharings = [_Sharing(weight, bits, start) for weight in connections(net).values()]

    def tie() -> None:
        for sharing in sharings:
            sharing.tie()

    # Not clipped: an element's gradient is its cluster's, so their norm counts each centroid as often as it is used.
    loss = label_loss(setting.samples)
    retrain(net, setting.samples, loss, epochs, rate, setting.seed, on_step=tie, clip=None)
    for sharing in sharings:
        sharing.handle.remove()
    return net
