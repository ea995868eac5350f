"""The shape of a net as a value, so that a pruned net is rebuilt from its architecture without a pickle.

Channel and unit removal change the sizes of tensors and the attributes that go with them, never the code of
``forward``; a removed layer becomes an identity. Both can be written down, and done again to a fresh net of the class.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor, nn

from edgemux.multiplexer.errors import ArtifactError

# Attributes of modules that removal changes; the tensors' shapes follow.
SIZES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
         "num_groups", "input_size", "hidden_size", "normalized_shape")  # fmt: skip


class Structure(msgspec.Struct, frozen=True):
    """sizes: by module and attribute; identities: modules that were taken out.

    ties: names of parameters that are one and the same tensor.
    """

    sizes: dict[str, dict[str, int | list[int]]]
    identities: list[str]
    ties: list[list[str]] = msgspec.field(default_factory=list)


def structure_of(net: nn.Module) -> Structure:
    """What ``rebuilt`` needs to give another net of the same class this shape."""
    sizes: dict[str, dict[str, int | list[int]]] = {}
    for name, module in net.named_modules():
        found = {key: getattr(module, key) for key in SIZES if isinstance(getattr(module, key, None), (int, tuple))}
        plain = {key: list(value) if isinstance(value, tuple) else int(value) for key, value in found.items()}
        if plain:
            sizes[name] = plain
    identities = [name for name, module in net.named_modules() if isinstance(module, nn.Identity)]
    return Structure(sizes, identities, ties_of(net))


def ties_of(net: nn.Module) -> list[list[str]]:
    """Names of the parameters that are one tensor, in the order of the modules; only where there are several."""
    names: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def tie(net: nn.Module, names: Sequence[str]) -> None:
    """Make the first of these parameters take the place of the others, in place."""
    first = net.get_parameter(names[0])
    for name in names[1:]:
        path, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(path), leaf, first)


def rebuilt(fresh: nn.Module, structure: Structure, state: dict[str, Tensor]) -> nn.Module:
    """A copy of ``fresh`` with the shape and the weights of the compressed net, in evaluation mode.

    Raises ArtifactError when ``fresh`` is not of the architecture that was compressed, or the net has layers that no
    net of the architecture has (low-bit and binarised ones: they live on as ONNX).
    """
    net = copy.deepcopy(fresh)
    for name in structure.identities:
        _replace(net, name, nn.Identity())
    modules = dict(net.named_modules())
    unknown = sorted(set(structure.sizes) - set(modules))
    if unknown:
        raise ArtifactError(f"the net has no module {unknown[0]!r}: it is not the architecture that was compressed")
    for name, sizes in structure.sizes.items():
        for key, value in sizes.items():
            setattr(modules[name], key, tuple(value) if isinstance(value, list) else value)
    own = net.state_dict()
    if set(own) != set(state):
        odd = sorted(set(own) ^ set(state))[0]
        raise ArtifactError(f"{odd!r} is in one of the nets only: it is not the architecture that was compressed")
    for name, tensor in state.items():
        _put(net, name, tensor)
    for names in structure.ties:
        tie(net, names)
    return net.eval()


def _put(net: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter or buffer whatever its shape was."""
    path, _, leaf = name.rpartition(".")
    module = net.get_submodule(path)
    if leaf in module._parameters:
        old = module._parameters[leaf]
        assert old is not None
        setattr(module, leaf, nn.Parameter(value.clone().to(old.dtype), requires_grad=old.requires_grad))
    else:
        module._buffers[leaf] = value.clone()
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, key) for key in module._flat_weights_names]


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of one. Raises ArtifactError when there is no such place."""
    path, _, leaf = name.rpartition(".")
    try:
        parent = net.get_submodule(path)
        parent.get_submodule(leaf)
    except AttributeError as error:
        raise ArtifactError(
            f"the net has no module {name!r}: it is not the architecture that was compressed"
        ) from error
    parent._modules[leaf] = module


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Do two nets hold the same bits?"""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
