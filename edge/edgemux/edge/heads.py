"""Heads of splits in memory: what runs on the device before the rest of a model runs in the cloud."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemux.edge.events import SplitLeftAlone
from edgemux.edge.variants import Family
from edgemux.multiplexer.bundle import Bundle, Split
from edgemux.multiplexer.chain import Activations, Chain, Golden
from edgemux.multiplexer.codes import GoldenCodes, same_codes, within
from edgemux.multiplexer.errors import ArtifactError, ExecutionError
from edgemux.multiplexer.onnx_model import OnnxModel, Stop
from edgemux.wire.events import Name, Why, tell, why

_log = logging.getLogger("edgemux.edge")


class Alone(StrEnum):
    """Why a split of the bundle is left alone. What comes first here is told first."""

    OFF = "off"  # split.use says so
    LOSS = "loses_too_much"  # more of the cloud's accuracy than split.max_loss
    HEAD_WRONG = "head_wrong"  # the head cannot be run here, or makes something else than it should
    PASSES_ON = "passes_input_on"  # the head makes the input itself, which must not leave the device
    HEAD_FAILED = "head_failed"  # it failed on an input, in the last half minute
    MEMORY = "memory"  # the levels leave no room for the head
    DEVICE_BUSY = "device_busy"  # the level that it goes on from is not loaded, or the head is not yet
    CLOUD_INCOMPATIBLE = "cloud_incompatible"  # no cloud has the tail that belongs to the head
    CLOUD_DENIED = "cloud_denied"  # no cloud answers us about it
    TAIL_FAILING = "tail_failing"  # the cloud is well, but calls to the tail have failed; it is tried now and then


class Head:
    """One head, loaded or not. ``bytes``: of its file, which count as those of levels do.

    ``unfit``: why it is never used again, ``wrong``: whether it has made something else of a golden input than it must
    when it was looked at last. ``wanted``: whether it is to be loaded, see ``fitting``.
    """

    def __init__(self, bundle: Bundle, split: Split, golden: Golden, never_send_raw: bool = False) -> None:
        """Looks at the files' digests. Raises ArtifactError naming the file; ``load`` looks into it."""
        self.split = split
        self.bytes = bundle.size((split.head,))
        self.unfit: Alone | None = None
        self.wrong = self.passes_on = False
        self.wanted = True
        self._bundle = bundle
        self._golden = golden
        self._never_send_raw = never_send_raw
        self._codes = GoldenCodes.read(bundle, split)
        self._model: OnnxModel | None = None
        bundle.read(split.head)

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""
        return self._model is not None

    def load(self, chain: Chain) -> bool:
        """Load it, if it is not, and run it on the golden inputs; whether it was. Blocks for milliseconds, like levels.

        One that makes what cannot be sent, or other codes than the bundle has, is unfit from then on, which is said.
        ``chain``: the levels that there are; its own is among them.
        """
        if self.loaded or self.unfit is not None:
            return False
        try:
            self._model = self._opened(chain)
        except ArtifactError as error:
            self._leave(Alone.HEAD_WRONG, why(error))
        else:
            if self.passes_on and self._never_send_raw:
                self._model = None
                self._leave(Alone.PASSES_ON)
        return self.loaded

    def leave_for_good(self) -> None:
        """There will never be room for it."""
        self._leave(Alone.MEMORY)

    def _leave(self, reason: Alone, why: Why | None = None) -> None:
        self.unfit = reason
        model, split = Name(self._bundle.manifest.name), Name(self.split.name)
        tell(_log, SplitLeftAlone(model=model, split=split, reason=Name(reason.value), why=why))

    def drop(self) -> list[weakref.ref[OnnxModel]]:
        """Out of memory with it; it is gone when no input in flight is answered with it."""
        dropped = [] if self._model is None else [weakref.ref(self._model)]
        self._model = None
        return dropped

    def held(self) -> OnnxModel:
        """What is loaded, for an input that goes on with it. Raises ExecutionError when it was dropped meanwhile."""
        if self._model is None:
            raise ExecutionError("the head is not in memory any more")
        return self._model

    def run(self, model: OnnxModel, activations: Activations, stop: Stop | None = None) -> NDArray[np.uint8]:
        """What is sent, UINT8 [N, ...]. ``model``: what is ``held``. What the levels below leave must be there."""
        return self._sent(model, activations.pool, stop)

    def _sent(self, model: OnnxModel, known: Mapping[str, Any], stop: Stop | None = None) -> NDArray[np.uint8]:
        feeds = {name: known[name] for name in model.inputs}
        sent: NDArray[np.uint8] = model.run(feeds, [self.split.sent.name], stop)[0]
        return sent

    def look(self, first: Mapping[str, Any], chain: Chain) -> None:
        """See whether it still makes the first golden code of the ``first`` golden input: ``wrong``."""
        if self._codes is None or self._model is None:
            return
        try:
            self.wrong = not same_codes(self._made(self._model, first, chain), self._codes.sent[:1])
        except Exception:  # whatever the library raises
            self.wrong = True

    def _opened(self, chain: Chain) -> OnnxModel:
        file, golden = self.split.head, self._golden
        model = OnnxModel(self._bundle.read(file), file)
        if self.split.sent.name not in model.outputs:
            raise ArtifactError(f"{file}: does not make {self.split.sent.name}")
        sent = self._checked(model, golden.inputs, chain)
        self._checked(model, {name: array[:1] for name, array in golden.inputs.items()}, chain)
        if self._codes is not None:
            self._codes.check_head(file, sent)
        self.passes_on = any(np.array_equal(sent.ravel(), array.ravel()) for array in golden.inputs.values())
        return model

    def _made(self, model: OnnxModel, tensors: Mapping[str, Any], chain: Chain) -> NDArray[np.uint8]:
        return self._sent(model, chain.known_at(self.split.level, tensors))

    def _checked(self, model: OnnxModel, tensors: Mapping[str, Any], chain: Chain) -> NDArray[np.uint8]:
        rows = len(next(iter(tensors.values())))
        try:
            sent = self._made(model, tensors, chain)
        except Exception as error:  # a graph that loads may still fail to run, with any of the library's types
            raise ArtifactError(f"{self.split.head}: fails on the bundle's golden inputs") from error
        shape = (rows, *self.split.sent.shape[1:])
        if not isinstance(sent, np.ndarray) or sent.dtype != np.uint8 or sent.shape != shape:
            raise ArtifactError(f"{self.split.head}: does not make UINT8 {list(shape)} of the bundle's golden inputs")
        if not within(self.split.bits, sent):
            raise ArtifactError(f"{self.split.head}: makes values of more than {self.split.bits} bits")
        return sent


def loaded_bytes(heads: Iterable[Head]) -> int:
    """Of the files of those that are in memory."""
    return sum(head.bytes for head in heads if head.loaded)


def fitting(heads: Sequence[Head], level: int, room: float) -> list[Head]:
    """Of the heads, in order, those that there is room for beside the levels up to ``level``. room: bytes.

    Levels come first: they answer whatever the link is like, and a head only makes its use cheaper.
    """
    found = []
    for head in heads:
        if head.unfit is None and head.split.level <= level and head.bytes <= room:
            found.append(head)
            room -= head.bytes
    return found


def drop_others(heads: Sequence[Head], wanted: Sequence[Head]) -> list[weakref.ref[OnnxModel]]:
    """Of the heads only ``wanted`` are from now on; the others' memory is free when nobody uses it any more."""
    dropped: list[weakref.ref[OnnxModel]] = []
    for head in heads:
        head.wanted = head in wanted
        dropped += [] if head.wanted else head.drop()
    return dropped


def load_fitting(heads: Sequence[Head], family: Family) -> None:
    """Load those that fit beside the levels that are loaded, and drop the others. Blocks."""
    wanted = fitting(heads, family.resident, family.most_bytes - family.resident_bytes)
    drop_others(heads, wanted)
    for head in wanted:
        head.load(family.chain)


def heads_of(
    bundle: Bundle, splits: Sequence[Split], golden: Golden, family: Family, never_send_raw: bool = False
) -> tuple[Head, ...]:
    """Heads of all the splits; those that fit beside the loaded levels loaded, and looked at.

    Raises ArtifactError naming the first file that is not what the manifest says.
    """
    heads = tuple(Head(bundle, split, golden, never_send_raw) for split in splits)
    for head in heads:
        least = family.bytes_of[max(1, head.split.level)] + head.bytes
        if head.split.level > family.highest or least > family.most_bytes:
            head.leave_for_good()
    load_fitting(heads, family)
    return heads
