"""``sparsify``, ``cluster`` and ``deep``: passes on torch nets. They save storage: zeros are computed with as well.

Each leaves a container ``model.dcz`` beside the graph, the smallest form of the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
import onnx
from msgspec import Meta
from onnx import numpy_helper
from torch import nn

from edgemux.compression.deep import container
from edgemux.compression.deep.clusters import Start, clustered
from edgemux.compression.deep.layers import arrays, check_connections, connections
from edgemux.compression.deep.scaling import Weight, same_bits
from edgemux.compression.deep.sparsity import sparsified, zeros_in
from edgemux.compression.deep.storage import shared_weights
from edgemux.compression.passes import Gain, Pass, Setting, Subject, net_of
from edgemux.compression.recipe import Share
from edgemux.compression.retrain import Epochs, Rate
from edgemux.compression.to_onnx import shipped
from edgemux.multiplexer.errors import PassError

Bits = Annotated[int, Meta(ge=1, le=8)]
RATIO, BITS = 0.9, 4
# Chosen on training images held out, 90 % of a LeNet's connections removed in 6 epochs: rate 0.05 keeps 0.3 to 0.9
# points more than 0.02. A centroid's gradient is the sum over thousands of weights, so its rate is far smaller.
PRUNE_EPOCHS, PRUNE_RATE = 6.0, 0.05
SHARE_EPOCHS, SHARE_RATE = 2.0, 1e-4
STORAGE: frozenset[Gain] = frozenset({"storage"})


class Sparsify(Pass, frozen=True):
    """``sparsify(ratio, epochs, rate)``: remove connections by magnitude, gradually, while training.

    ratio: share of the weights of convolutions, linear and recurrent layers that become zero. ``cluster`` keeps the
    zeros; passes that train all weights, like ``finetune``, fill them again.
    """

    label: ClassVar[str] = "sparsify"
    gives: ClassVar[frozenset[Gain]] = STORAGE

    ratio: Share = RATIO
    epochs: Epochs = PRUNE_EPOCHS
    rate: Rate = PRUNE_RATE

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net with weights."""
        check_connections(subject, self.label)

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Train a copy of the net with fewer and fewer connections."""
        net = net_of(subject, self.label)
        net = sparsified(net, self.ratio, setting.epochs(self.epochs), self.rate, setting)
        return contained(subject.with_net(net), setting, arrays(connections(net).values()))

    def ensures(self, before: Subject, after: Subject, setting: Setting) -> None:
        """As many zeros as were asked for."""
        check_sparse(after, self.ratio, self.label)


class Cluster(Pass, frozen=True):
    """``cluster(bits, epochs, rate, start)``: at most 2**bits values in each weight, trained as such; zeros stay zero.

    start: where k-means begins, ``linear`` or ``density``. The ONNX file stores codes and a codebook for each weight,
    which ONNX Runtime folds when it loads.
    """

    label: ClassVar[str] = "cluster"
    gives: ClassVar[frozenset[Gain]] = STORAGE

    bits: Bits = BITS
    epochs: Epochs = SHARE_EPOCHS
    rate: Rate = SHARE_RATE
    start: Start = "linear"

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net with weights."""
        check_connections(subject, self.label)

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Train a copy of the net whose weights share values."""
        net = net_of(subject, self.label)
        net = clustered(net, self.bits, setting.epochs(self.epochs), self.rate, self.start, setting)
        return with_shared(subject, net, setting)

    def ensures(self, before: Subject, after: Subject, setting: Setting) -> None:
        """As few values as were asked for."""
        check_shared(after, self.bits, self.label)


class Deep(Pass, frozen=True):
    """``deep(ratio, bits, epochs, share_epochs, rate, share_rate, start)``: Deep Compression (Han et al. 2016).

    Connections removed, as ``sparsify`` does, then weights shared, as ``cluster`` does, then Huffman-coded.
    """

    label: ClassVar[str] = "deep"
    gives: ClassVar[frozenset[Gain]] = STORAGE

    ratio: Share = RATIO
    bits: Bits = BITS
    epochs: Epochs = PRUNE_EPOCHS
    share_epochs: Epochs = SHARE_EPOCHS
    rate: Rate = PRUNE_RATE
    share_rate: Rate = SHARE_RATE
    start: Start = "linear"

    def requires(self, subject: Subject, setting: Setting) -> None:
        """A torch net with weights."""
        check_connections(subject, self.label)

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """Both trainings, on copies of the net."""
        net = net_of(subject, self.label)
        net = sparsified(net, self.ratio, setting.epochs(self.epochs), self.rate, setting)
        net = clustered(net, self.bits, setting.epochs(self.share_epochs), self.share_rate, self.start, setting)
        return with_shared(subject, net, setting)

    def ensures(self, before: Subject, after: Subject, setting: Setting) -> None:
        """As many zeros and as few values as were asked for."""
        check_sparse(after, self.ratio, self.label)
        check_shared(after, self.bits, self.label)


def contained(subject: Subject, setting: Setting, weights: list[Weight]) -> Subject:
    """The same with the container of its graph, which has been read back bit for bit."""
    graph = shipped(subject, setting.samples)
    content = container.encode(graph, weights)
    if not same_model(container.decode(content), graph):
        raise PassError("container: does not give back the graph that was encoded")
    return replace(subject, files={container.FILE: content})


def with_shared(subject: Subject, net: nn.Module, setting: Setting) -> Subject:
    """The subject with a clustered net: the container, and the hook for the codebooks of the ONNX file."""
    weights = arrays(connections(net).values())
    # The container is made before the hook applies: it shares, and codes, the plain weights better than their codes.
    plain = contained(subject.with_net(net), setting, weights)
    return replace(subject.with_net(net, shared_weights(weights)), files=plain.files)


def same_model(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """The same operators, and initializers equal in every bit."""
    mine, theirs = one.graph.initializer, other.graph.initializer
    return list(one.graph.node) == list(other.graph.node) and len(mine) == len(theirs) and all(
        a.name == b.name and same_bits(numpy_helper.to_array(a), numpy_helper.to_array(b))
        for a, b in zip(mine, theirs, strict=True)
    )  # fmt: skip


def check_sparse(after: Subject, ratio: float, label: str) -> None:
    """Raises PassError when fewer connections went."""
    net = net_of(after, label)
    count = sum(weight.numel() for weight in connections(net).values())
    if round(zeros_in(net) * count) < round(ratio * count):
        raise PassError(f"{label}: only {zeros_in(net):.1%} of the connections went, not {ratio:.1%}")


def check_shared(after: Subject, bits: int, label: str) -> None:
    """Raises PassError when a weight has more values."""
    for name, weight in connections(net_of(after, label)).items():
        values = len(np.unique(weight.detach().numpy()))
        if values > 1 << bits:
            raise PassError(f"{label}: {name} has {values} values, not at most {1 << bits}")
