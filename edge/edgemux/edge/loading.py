"""From bundles on disk to models in memory: the one that was asked for, else the one before it, else only the cloud.

A bundle is taken whole or not at all: every file is what its manifest says, every graph loads, and the golden inputs
give the golden answers. A right digest alone does not say that a model was exported well.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.edge.config import ApplicationSettings
from edgemux.edge.metrics import Fallback
from edgemux.edge.variants import Family
from edgemux.multiplexer.bundle import Bundle, Manifest
from edgemux.multiplexer.chain import Golden
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.gates import Gates, Scores

_log = logging.getLogger("edgemux.edge")


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
    """A bundle in memory. ``golden``: what its models must answer, None where none of them runs here."""

    bundle: Bundle
    family: Family
    gates: Gates | CloudGates
    golden: Golden | None
    fallback: Fallback | None = None


def described(application: ApplicationSettings) -> Bundle:
    """What ``load`` is going to load, by its manifest: the bundle, or the previous one where that one's is damaged.

    Raises ArtifactError naming what is wrong with the former.
    """
    try:
        return _opened(application.bundle, application.name)
    except ArtifactError:
        if application.previous_bundle is None:
            raise
        with contextlib.suppress(ArtifactError):
            return _opened(application.previous_bundle, application.name)
        raise


def load(application: ApplicationSettings, has_cloud: bool, most_bytes: float) -> Loaded:
    """An application's bundle, with levels of ``most_bytes``, or what can be had instead; see the log for why.

    Raises ArtifactError naming what is wrong with the bundle that was asked for, when nothing else can be had either.
    """
    name, previous = application.name, application.previous_bundle
    try:
        return _whole(application.bundle, name, most_bytes)
    except ArtifactError as error:
        wrong = error
    if previous is not None:
        _log.error("%s; the previous bundle is tried", wrong)
        try:
            return msgspec.structs.replace(_whole(previous, name, most_bytes), fallback=Fallback.PREVIOUS)
        except ArtifactError as error:
            _log.error("%s; it cannot be had either", error)
    if has_cloud:
        for folder in (application.bundle, previous):
            with contextlib.suppress(ArtifactError):
                if folder is not None:
                    bundle = _opened(folder, name)
                    _log.error("%s; no model runs on this device, the cloud answers everything", wrong)
                    return Loaded(bundle, Family.empty(), CloudGates(bundle.manifest), None, Fallback.CLOUD_ONLY)
    raise wrong


def _opened(folder: Path, name: str | None) -> Bundle:
    bundle = Bundle.open(folder)
    return bundle if name is None else bundle.named(name)


def _whole(folder: Path, name: str | None, most_bytes: float) -> Loaded:
    """Raises ArtifactError naming the first file that is wrong."""
    bundle = _opened(folder, name)
    family, gates, golden = Family(bundle, most_bytes), Gates(bundle), Golden(bundle)
    family.check(golden, bundle.manifest)
    gates.check(golden, bundle.manifest)
    return Loaded(bundle, family, gates, golden)
