"""Heads of splits in memory: what runs on the device before the rest of a model runs in the cloud."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.edge.events import SplitLeftAlone
from edgemux.multiplexer.bundle import Bundle, Split
from edgemux.multiplexer.chain import Activations, Chain, Golden
from edgemux.multiplexer.codes import GoldenCodes, same_codes
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import OnnxModel, Stop
from edgemux.wire.events import Name, tell, why

_log = logging.getLogger("edgemux.edge")


class Alone(StrEnum):
    """Why a split of the bundle is left alone. What comes first here is told first."""

    LOSS = "loses_too_much"  # more of the cloud's accuracy than split.max_loss
    HEAD_WRONG = "head_wrong"  # the head cannot be run here, or makes something else than it should
    PASSES_ON = "passes_input_on"  # the head makes the input itself, which must not leave the device
    HEAD_FAILED = "head_failed"  # it failed on an input, in the last half minute
    DEVICE_BUSY = "device_busy"  # the level that it goes on from is not loaded
    CLOUD_INCOMPATIBLE = "cloud_incompatible"  # no cloud has the tail that belongs to the head
    CLOUD_DENIED = "cloud_denied"  # no cloud answers us about it


class Head:
    """One head. ``passes_on``: whether what it makes of the golden inputs are these inputs themselves.

    ``wrong``: whether it has made something else of a golden input than it must, when it was looked at last.
    """

    def __init__(self, bundle: Bundle, split: Split) -> None:
        """Raises ArtifactError naming a file that is not what the manifest says; ``load`` looks into it."""
        self.split = split
        self.codes = GoldenCodes.read(bundle, split)
        self._content: bytes | None = bundle.read(split.head)
        self._model: OnnxModel | None = None
        self.passes_on = self.wrong = False

    def load(self, golden: Golden, chain: Chain) -> None:
        """Load it and run it on the golden inputs. Raises ArtifactError where it makes what cannot be sent, or other
        codes than the bundle has.
        """
        content, self._content = self._content, None
        assert content is not None
        model = OnnxModel(content, self.split.head)
        if self.split.sent.name not in model.outputs:
            raise ArtifactError(f"{self.split.head}: does not make {self.split.sent.name}")
        sent = self._checked(model, golden.inputs, chain)
        self._checked(model, {name: array[:1] for name, array in golden.inputs.items()}, chain)
        if self.codes is not None:
            self.codes.check_head(self.split.head, sent)
        self.passes_on = any(np.array_equal(sent.ravel(), array.ravel()) for array in golden.inputs.values())
        self._model = model

    def run(self, activations: Activations, stop: Stop | None = None) -> NDArray[np.uint8]:
        """What is sent, UINT8 [N, ...]. It must be loaded, and what the levels below leave must be there."""
        assert self._model is not None
        return self._made(self._model, activations, stop)

    def look(self, first: Mapping[str, Any], chain: Chain) -> bool:
        """Whether it still makes the first golden code of the ``first`` golden input; ``wrong`` is that it does not."""
        if self.codes is None:
            return True
        try:
            activations = Activations(first)
            if self.split.level:
                chain.reach(self.split.level, activations)
            sent = self.run(activations)
        except Exception:  # whatever the library raises
            self.wrong = True
        else:
            self.wrong = not same_codes(sent, self.codes.sent[:1])
        return not self.wrong

    def _made(self, model: OnnxModel, activations: Activations, stop: Stop | None = None) -> NDArray[np.uint8]:
        pool = activations.pool
        feeds = {name: pool[name] for name in model.inputs}
        sent: NDArray[np.uint8] = model.run(feeds, [self.split.sent.name], stop)[0]
        return sent

    def _checked(self, model: OnnxModel, tensors: Mapping[str, Any], chain: Chain) -> NDArray[np.uint8]:
        rows = len(next(iter(tensors.values())))
        try:
            activations = Activations(tensors)
            if self.split.level:
                chain.reach(self.split.level, activations)
            sent = self._made(model, activations)
        except Exception as error:  # a graph that loads may still fail to run, with any of the library's types
            raise ArtifactError(f"{self.split.head}: fails on the bundle's golden inputs") from error
        shape = (rows, *self.split.sent.shape[1:])
        if not isinstance(sent, np.ndarray) or sent.dtype != np.uint8 or sent.shape != shape:
            raise ArtifactError(f"{self.split.head}: does not make UINT8 {list(shape)} of the bundle's golden inputs")
        if sent.size and int(sent.max()) >= 2**self.split.bits:
            raise ArtifactError(f"{self.split.head}: makes values of more than {self.split.bits} bits")
        return sent


def load_heads(
    bundle: Bundle, splits: Sequence[Split], golden: Golden, chain: Chain, never_send_raw: bool = False
) -> tuple[tuple[Head, ...], dict[str, Alone]]:
    """The heads of splits that can be used, and by name why others are left alone, which is said.

    Raises ArtifactError naming the first file that is not what the manifest says.
    """
    heads, alone = [], {}
    for head in [Head(bundle, split) for split in splits]:
        name = head.split.name
        if head.split.level > len(chain):
            alone[name] = Alone.DEVICE_BUSY
            continue
        try:
            head.load(golden, chain)
        except ArtifactError as error:
            alone[name] = Alone.HEAD_WRONG
            model = Name(bundle.manifest.name)
            tell(_log, SplitLeftAlone(model=model, split=Name(name), reason=Name(alone[name].value), why=why(error)))
            continue
        if never_send_raw and head.passes_on:
            alone[name] = Alone.PASSES_ON
        else:
            heads.append(head)
    return tuple(heads), alone
