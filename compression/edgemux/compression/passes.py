"""What a compression pass is: it requires, it applies, it ensures; and it declares what it gives.

A pass is a frozen value whose fields are its parameters, in the order in which a recipe may give them by position.
Passes are found as entry points of the group ``edgemux.passes``; another package can add its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import msgspec
import onnx
from torch import nn

from edgemux.compression.samples import Samples
from edgemux.multiplexer import written
from edgemux.multiplexer.errors import ConfigError, PassError
from edgemux.multiplexer.plugins import load, names
from edgemux.multiplexer.written import Written

GROUP = "edgemux.passes"
Gain = Literal["speed", "storage", "accuracy"]
Stage = Literal["torch", "onnx"]
Store = Callable[[onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True, eq=False)
class Subject:
    """The model on its way through a recipe: a torch net until the first ONNX pass, a graph from then on.

    stores: what to do to the exported graph so that its weights are stored the way a torch pass trained them to be.
    files: further files a pass made, by name; the smallest form of the model may be one of them.
    """

    net: nn.Module | None = None
    graph: onnx.ModelProto | None = None
    stores: tuple[Store, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    def with_net(self, net: nn.Module, *stores: Store) -> Subject:
        """The same with another net; ``stores`` come after those already there, files of the old net are dropped."""
        return replace(self, net=net, stores=(*self.stores, *stores), files={})

    def with_graph(self, graph: onnx.ModelProto) -> Subject:
        """The same, past export; files of the form before are dropped."""
        return replace(self, graph=graph, files={})


@dataclass(frozen=True, eq=False)
class Setting:
    """What a pass may look at beside the model.

    original: the net as it was given, the teacher; never changed. None when an ONNX file is compressed.
    target: one of ``quantize.targets.TARGETS``, or ``auto``: measure on this device. effort: factor on epochs.
    """

    samples: Samples
    original: nn.Module | None
    target: str = "auto"
    seed: int = 0
    effort: float = 1.0

    def epochs(self, wanted: float) -> int:
        """Epochs to train for, at least one."""
        return max(1, round(wanted * self.effort))


class Pass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of a recipe. A subclass sets the class variables and ``apply``; fields are its parameters.

    gives: what it promises; the report verifies it by measurement.
    """

    label: ClassVar[str]
    stage: ClassVar[Stage] = "torch"
    gives: ClassVar[frozenset[Gain]] = frozenset()

    def requires(self, subject: Subject, setting: Setting) -> None:
        """Raises PassError when the pass cannot be applied to this model; changes nothing."""

    def apply(self, subject: Subject, setting: Setting) -> Subject:
        """The compressed model; ``subject`` and what it holds stay as they are. Raises PassError."""
        raise NotImplementedError

    def ensures(self, before: Subject, after: Subject, setting: Setting) -> None:
        """Raises PassError when the result is not what the pass stands for."""


def known() -> list[str]:
    """Names of all passes that are installed."""
    return names(GROUP)


def parameters_of(kind: type[Pass]) -> list[str]:
    """The names of a pass's parameters, in order."""
    return [item.encode_name for item in msgspec.structs.fields(kind)]


def kind_of(name: str) -> type[Pass]:
    """The class of a pass. Raises ConfigError that lists what there is."""
    if name not in known():
        raise ConfigError(f"recipe: no pass {name!r}; there are {', '.join(known())}")
    kind: type[Pass] = load(GROUP, name)
    return kind


def make(name: str, positional: tuple[Any, ...], named: Mapping[str, Any]) -> Pass:
    """The pass ``name`` with these parameters.

    Raises ConfigError that says which name or parameter is unknown or out of range, and what is allowed.
    """
    kind = kind_of(name)
    return written.make(kind, Written(name, positional, named), "recipe", parameters_of(kind), [])


def net_of(subject: Subject, label: str) -> nn.Module:
    """The torch net of a subject. Raises PassError past export, or when an ONNX file was given."""
    if subject.net is None or subject.graph is not None:
        where = "an ONNX file has none" if subject.net is None else "put it before the first ONNX pass"
        raise PassError(f"{label}: works on a torch net, and {where}")
    return subject.net
