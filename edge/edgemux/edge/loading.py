"""From bundles on disk to models in memory: the one that was asked for, else the one before it, else only the cloud.

A bundle is taken whole or not at all: every file is what its manifest says, every graph loads, and the golden inputs
give the golden answers. A right digest alone does not say that a model was exported well. Only the head of a split that
does not run here, or makes other codes than the golden ones, leaves the rest as it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.edge.events import BundleFallback, BundleUnusable, ModelLoaded
from edgemux.edge.heads import Alone, Head, drop_others, heads_of, loaded_bytes
from edgemux.edge.split_planning import SplitSettings, usable_splits
from edgemux.edge.variants import Family
from edgemux.multiplexer.bundle import Bundle, Manifest, splits_of
from edgemux.multiplexer.chain import Golden
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.gates import Gates, Scores
from edgemux.wire.events import Name, tell, why

_log = logging.getLogger("edgemux.edge")


class Fallback(StrEnum):
    """What is served instead of the bundle that was asked for."""

    PREVIOUS = "previous_bundle"
    CLOUD_ONLY = "no_device_model"


class CloudGates:
    """Stands for the gates where no level can be run: the cloud is right, everything else is not."""

    def __init__(self, manifest: Manifest) -> None:
        self._routes = len(manifest.levels) + 1

    def before(self, tensors: Mapping[str, NDArray[Any]]) -> Scores:
        """Scores FP32 [N, routes]."""
        scores: Scores = np.zeros((len(next(iter(tensors.values()))), self._routes), np.float32)
        scores[:, -1] = 1.0
        return scores

    def after(self, probabilities: NDArray[Any], level: int, scores: Scores) -> Scores:
        """Never asked: no level answers."""
        return scores


class Loaded(msgspec.Struct, frozen=True):
    """A bundle in memory. ``golden``: what its models must answer, None where none of them runs here. ``heads``: of the
    splits that may be used, those that there is room for loaded; ``alone``: why others may not, by name.
    """

    bundle: Bundle
    family: Family
    gates: Gates | CloudGates
    golden: Golden | None
    fallback: Fallback | None = None
    heads: tuple[Head, ...] = ()
    alone: Mapping[str, Alone] = {}

    @property
    def resident_bytes(self) -> int:
        """Bytes of the files of all levels and heads that are loaded."""
        return self.family.resident_bytes + loaded_bytes(self.heads)

    def shrink(self) -> None:
        """Leave the first level alone in memory."""
        self.family.lower_to(1)
        drop_others(self.heads, ())


def load(
    folder: Path,
    previous: Path | None,
    name: str | None,
    has_cloud: bool,
    most_bytes: float = math.inf,
    split: SplitSettings | None = None,
) -> Loaded:
    """The bundle in ``folder``, under ``name`` where one is given, or what can be had instead; see the log for why.

    Levels that do not fit ``most_bytes`` are not loaded. split: how splits may be used, None: not at all.

    Raises ArtifactError naming what is wrong with the bundle in ``folder`` when nothing else can be had either.
    """
    try:
        return _said(_whole(folder, name, most_bytes, split))
    except ArtifactError as error:
        wrong = error
    if previous is not None:
        try:
            loaded = msgspec.structs.replace(_whole(previous, name, most_bytes, split), fallback=Fallback.PREVIOUS)
            return _said(loaded, wrong)
        except ArtifactError as error:
            tell(_log, BundleUnusable(why=why(error)))
    if has_cloud:
        for each in (folder, previous):
            try:
                bundle = _opened(each, name) if each is not None else None
            except ArtifactError:
                continue
            if bundle is not None:
                gates = CloudGates(bundle.manifest)
                return _said(Loaded(bundle, Family.empty(), gates, None, Fallback.CLOUD_ONLY), wrong)
    raise wrong


def _said(loaded: Loaded, wrong: ArtifactError | None = None) -> Loaded:
    """With a line of what is in memory, and of why it is not what was asked for."""
    if loaded.fallback is not None and wrong is not None:
        tell(_log, BundleFallback(serves=Name(loaded.fallback.value), why=why(wrong)))
    manifest, family = loaded.bundle.manifest, loaded.family
    model, version = Name(manifest.name), Name(manifest.version)
    tell(_log, ModelLoaded(model=model, version=version, levels=family.resident, bytes=loaded.resident_bytes))
    return loaded


def _opened(folder: Path, name: str | None) -> Bundle:
    bundle = Bundle.open(folder)
    return bundle if name is None else bundle.named(name)


def _whole(folder: Path, name: str | None, most_bytes: float, split: SplitSettings | None) -> Loaded:
    """Raises ArtifactError naming the first file that is wrong."""
    bundle = _opened(folder, name)
    family, gates, golden = Family(bundle, most_bytes), Gates(bundle), Golden(bundle)
    family.check(golden, bundle.manifest)
    gates.check(golden, bundle.manifest)
    loaded = Loaded(bundle, family, gates, golden)
    return loaded if split is None else _with_heads(loaded, golden, split)


def _with_heads(loaded: Loaded, golden: Golden, split: SplitSettings) -> Loaded:
    """A head that is not what it should be takes nothing from the levels: it is left alone, and the bundle is used."""
    every, splits = splits_of(loaded.bundle.manifest), usable_splits(loaded.bundle.manifest, split)
    heads = heads_of(loaded.bundle, splits, golden, loaded.family, split.never_send_raw)
    unused = Alone.OFF if split.use == "off" else Alone.LOSS
    alone = {each.name: unused for each in every if each not in splits}
    alone |= {head.split.name: head.unfit for head in heads if head.unfit is not None}
    return msgspec.structs.replace(loaded, heads=tuple(head for head in heads if head.unfit is None), alone=alone)
