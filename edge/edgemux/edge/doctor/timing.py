"""Looking at what is served: bundles opened and checked as an agent does, their levels timed on this device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from edgemux.edge.config import ApplicationSettings
from edgemux.edge.doctor.models import BundleSeen, LevelTiming, RuntimeSeen
from edgemux.edge.heads import Alone
from edgemux.edge.loading import Fallback, Loaded, load
from edgemux.edge.split_planning import SplitSettings
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import ArtifactError
from edgemux.multiplexer.onnx_model import runtime

# Enough for a median, and no longer than somebody likes to wait.
RUNS = 200
LEAST_RUNS = 5
ENOUGH_S = 0.5
WARM_UP_RUNS = 3
INSTEAD = {
    Fallback.PREVIOUS: "the previous bundle is served",
    Fallback.CLOUD_ONLY: "no model runs here, the cloud answers everything",
}


def look_at_runtime() -> RuntimeSeen:
    """The library as it is in this process, which has loaded it in the way that an agent does."""
    return RuntimeSeen(*runtime())


def look_at_bundle(
    setting: str,
    application: ApplicationSettings,
    has_cloud: bool,
    most_bytes: float = math.inf,
    split: SplitSettings | None = None,
) -> tuple[BundleSeen, Loaded | None, str | None]:
    """A bundle, what is served of it or instead of it, and what that is (None: what was asked for, or nothing)."""
    folder = application.bundle
    try:
        loaded = load(folder, None, application.name, False, most_bytes, split)
    except ArtifactError as error:
        seen = BundleSeen(setting, trouble=str(error))
        instead = _instead(application, has_cloud, most_bytes, split)
        return seen, instead, None if instead is None or instead.fallback is None else INSTEAD[instead.fallback]
    manifest = loaded.bundle.manifest
    certificate = manifest.certificate
    bound = None if certificate is None else max(level.upper_bound for level in certificate.levels)
    seen = BundleSeen(
        setting, manifest.name, manifest.version, "", _others(loaded.bundle), bound, len(loaded.family.routes)
    )
    return seen, loaded, None


def _instead(
    application: ApplicationSettings, has_cloud: bool, most_bytes: float, split: SplitSettings | None
) -> Loaded | None:
    try:
        return load(application.bundle, application.previous_bundle, application.name, has_cloud, most_bytes, split)
    except ArtifactError:
        return None


def _others(bundle: Bundle) -> str:
    """What is wrong with files that only the cloud's server reads; empty where nothing is."""
    try:
        bundle.verify()
    except ArtifactError as error:
        return str(error)
    return ""


def look_at_splits(loaded: Loaded) -> tuple[list[str], dict[str, Alone]]:
    """The splits that may be used, and why the others are left alone, by name."""
    usable = [head.split.name for head in loaded.heads if head.loaded]
    left_out = {head.split.name: Alone.MEMORY for head in loaded.heads if not head.loaded}
    return usable, {**loaded.alone, **left_out}


def time_levels(
    loaded: Loaded,
    runs: int = RUNS,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.thread_time,
) -> list[LevelTiming]:
    """Each loaded level with one golden input: ``runs`` times, or as often as ENOUGH_S allows."""
    if loaded.golden is None:
        return []
    inputs = {name: array[:1] for name, array in loaded.golden.inputs.items()}
    timings = []
    for level in loaded.bundle.manifest.levels[: loaded.family.resident]:
        taken: list[float] = []
        for _ in range(WARM_UP_RUNS):
            loaded.family.chain.answer(inputs, level.level)
        began_s, began_cpu_s = clock(), cpu_clock()
        while len(taken) < runs and (len(taken) < LEAST_RUNS or clock() - began_s < ENOUGH_S):
            at_s = clock()
            loaded.family.chain.answer(inputs, level.level)
            taken.append(clock() - at_s)
        cpu_s = (cpu_clock() - began_cpu_s) / len(taken)
        taken.sort()
        timings.append(
            LevelTiming(
                level.name, level.level, len(taken), taken[len(taken) // 2], taken[-1], cpu_s, level.median_ms / 1e3
            )
        )
    return timings
