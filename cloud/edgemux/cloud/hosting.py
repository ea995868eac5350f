"""From a configured model to one that is served: loaded, checked, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.cloud.admission import BatchTime
from edgemux.cloud.backend import Arrays, Backend, batched, measure, sample
from edgemux.cloud.config import CloudConfig, ModelSettings
from edgemux.cloud.engine import Engine
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.onnx_backend import BundleBackend, OnnxBackend, check_golden, check_tail
from edgemux.cloud.service import Hosted
from edgemux.cloud.versions import Source
from edgemux.multiplexer.bundle import Bundle, Split, splits_of, tail_model
from edgemux.multiplexer.chain import GOLDEN_TOLERANCE, PROBABILITIES, Golden
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.wire.model_service import Served

FIRST = "1"
PLATFORMS = {"bundle": "onnxruntime_onnx", "onnx": "onnxruntime_onnx", "torch": "pytorch_libtorch"}


class Loaded(msgspec.Struct, frozen=True):
    """A model that was loaded, checked and measured, and an input of one row with what it must give for it."""

    served: Served
    backend: Backend
    timing: BatchTime
    digest: str
    row: Arrays
    expected: NDArray[Any] | None = None


def load(settings: ModelSettings, source: Source, config: CloudConfig) -> tuple[Loaded, ...]:
    """Load, check and measure one version; may take long. The model first, then the tails of a bundle's splits.

    Raises ArtifactError naming the file.
    """
    max_batch = config.batching_of(settings).max_batch
    if settings.kind == "bundle":
        return _load_bundle(settings, source, config.threads, max_batch)
    backend = _open(settings, source.path, config.threads)
    try:
        row = sample(backend)
    except ArtifactError as error:
        raise ArtifactError(f"{source.path.name}: {error}") from error
    together = batched(backend.inputs, backend.outputs)
    served = Served(
        settings.name or source.path.stem,
        source.version or FIRST,
        backend.inputs,
        backend.outputs,
        platform=PLATFORMS[settings.kind],
        max_batch=max_batch if together else 0,
    )
    timing = measure(backend, row, max_batch if together else 1)
    return (Loaded(served, backend, timing, getattr(backend, "digest", ""), row),)


def _open(settings: ModelSettings, path: Path, threads: int) -> Backend:
    if settings.kind == "onnx":
        return OnnxBackend.read(path, threads)
    try:
        from edgemux.cloud.torch_backend import TorchBackend
    except ImportError as error:
        raise ConfigError("models: torch: the torch package is not installed") from error
    return TorchBackend(path, settings.device, settings.dtype, settings.compile, threads, settings.graphs)


def _load_bundle(settings: ModelSettings, source: Source, threads: int, max_batch: int) -> tuple[Loaded, ...]:
    bundle = Bundle.open(source.path)
    bundle.verify()
    backend = BundleBackend(bundle, threads)
    check_golden(backend, bundle)
    manifest, golden = bundle.manifest, Golden(bundle)
    row = {name: array[:1] for name, array in golden.inputs.items()}
    timing = measure(backend, row, max_batch)
    served = Served.of(manifest, PLATFORMS["bundle"], max_batch)
    served = msgspec.structs.replace(
        served, name=settings.name or manifest.name, version=source.version or manifest.version
    )
    expected = golden.recorded(manifest.cloud.name, len(manifest.classes))[:1]
    whole = Loaded(served, backend, timing, backend.digest, row, expected)
    return (whole, *(_load_tail(bundle, split, served, threads) for split in splits_of(manifest)))


def _load_tail(bundle: Bundle, split: Split, whole: Served, threads: int) -> Loaded:
    """A model of its own beside the bundle's, of the same version."""
    backend = BundleBackend(bundle, threads, split)
    sent, expected = check_tail(backend, bundle, split)
    row = {split.sent.name: sent}
    served = msgspec.structs.replace(
        whole,
        name=tail_model(whole.name, split.name),
        inputs=backend.inputs,
        preprocessing=None,
        properties={**whole.properties, "split": split.name, "bits": str(split.bits)},
        bits=split.bits,
    )
    return Loaded(served, backend, measure(backend, row, whole.max_batch), backend.digest, row, expected)


def host(loaded: Loaded, settings: ModelSettings, config: CloudConfig, metrics: Metrics) -> Hosted:
    """Put an engine around a loaded model, in the event loop that this is called in."""
    served = loaded.served
    tally = metrics.of(served.name, served.version)
    engine = Engine(loaded.backend, loaded.timing, config.batching_of(settings), config.admission, tally)
    names = [tensor.name for tensor in served.outputs]

    async def well() -> bool:
        if loaded.expected is None:
            return set(await engine.answer(loaded.row, names)) == set(names)
        given = await engine.answer(loaded.row, [PROBABILITIES])
        return np.allclose(given[PROBABILITIES], loaded.expected, rtol=0.0, atol=GOLDEN_TOLERANCE)

    return Hosted(served, engine, tally, loaded.digest, well)


async def open_far(settings: ModelSettings, config: CloudConfig, metrics: Metrics) -> list[Hosted]:
    """A model that another server answers for. Raises ExecutionError when that is away, ConfigError."""
    from edgemux.cloud.proxy import open_proxy

    return await open_proxy(settings, config, metrics)
