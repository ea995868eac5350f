"""From a configured model to one that is served: loaded, checked, measured."""

from __future__ import annotations

import numpy as np

from edgemux.cloud.backend import measure
from edgemux.cloud.config import CloudConfig
from edgemux.cloud.engine import Engine
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.onnx_backend import BundleBackend, check_golden
from edgemux.cloud.service import Hosted
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import GOLDEN_TOLERANCE, PROBABILITIES, Golden
from edgemux.wire.model_service import Served


def host_bundle(bundle: Bundle, config: CloudConfig, metrics: Metrics) -> Hosted:
    """Open and verify the whole bundle, load, check and measure its cloud model. Raises ArtifactError."""
    bundle.verify()
    backend = BundleBackend(bundle, config.threads)
    check_golden(backend, bundle)
    manifest = bundle.manifest
    golden = Golden(bundle)
    row = {name: array[:1] for name, array in golden.inputs.items()}
    timing = measure(backend, row, config.batching.max_batch)
    tally = metrics.of(manifest.name, manifest.version)
    engine = Engine(backend, timing, config.batching, config.admission, tally)
    expected = golden.recorded(manifest.cloud.name, len(manifest.classes))[:1]

    async def well() -> bool:
        given = await engine.answer(row, [PROBABILITIES])
        return np.allclose(given[PROBABILITIES], expected, rtol=0.0, atol=GOLDEN_TOLERANCE)

    served = Served.of(manifest, "onnxruntime_onnx", config.batching.max_batch)
    return Hosted(served, engine, tally, backend.digest, well)
