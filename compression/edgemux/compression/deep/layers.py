"""Which parameters of a net are weights of connections: those that Deep Compression prunes and shares."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import nn

from edgemux.compression.deep.scaling import Weight
from edgemux.compression.passes import Subject, net_of
from edgemux.multiplexer.errors import PassError

LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)


def connections(net: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of convolutions, linear and recurrent layers by name; one that several layers share comes once."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in net.named_modules():
        if isinstance(module, LAYERS):
            for name, parameter in module.named_parameters(path, recurse=False):
                if parameter.ndim > 1:
                    found.setdefault(id(parameter), (name, parameter))
    return dict(found.values())


def check_connections(subject: Subject, label: str) -> None:
    """Raises PassError for a subject without a net, or a net without weights to work on."""
    if not connections(net_of(subject, label)):
        raise PassError(f"{label}: the net has no convolution, linear or recurrent layer with weights of its own")


def arrays(parameters: Iterable[nn.Parameter]) -> list[Weight]:
    """Copies, float32."""
    return [np.array(parameter.detach().cpu().numpy(), np.float32, order="C") for parameter in parameters]
