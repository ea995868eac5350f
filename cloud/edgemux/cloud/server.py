"""The cloud server's process."""

from __future__ import annotations

import numpy as np

from edgemux.cloud.backends import OnnxBackend, check, measure
from edgemux.cloud.config import CloudConfig
from edgemux.cloud.engine import Engine
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.service import CloudService
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.chain import GOLDEN_TOLERANCE, Golden
from edgemux.wire.process import Serving, run


def serve(config: CloudConfig) -> None:
    """Serve the bundle's cloud model until SIGTERM or SIGINT; prints one ready line. Blocks.

    Raises ConfigError (a port in use, naming it) and ArtifactError (naming the file) before anything is served.
    """
    run(config.listen, lambda: prepare(config))


async def prepare(config: CloudConfig) -> Serving:
    """Open and verify the whole bundle, load, check and measure its cloud model. Raises ArtifactError."""
    bundle = Bundle.open(config.bundle)
    bundle.verify()
    backend = OnnxBackend(bundle, config.threads)
    check(backend, bundle)
    manifest = bundle.manifest
    golden = Golden(bundle)
    image = golden.inputs[manifest.inputs[0].name][:1]
    timing = measure(backend, image, config.batching.max_batch)
    metrics = Metrics(manifest.name)
    engine = Engine(backend, timing, config.batching, config.admission, metrics)
    digest = bundle.sha256(manifest.cloud.files[0])
    service = CloudService(manifest, digest, engine, metrics, config.admission.max_queue)

    def drain() -> None:
        service.draining = True

    expected = golden.recorded(manifest.cloud.name, len(manifest.classes))[:1]

    async def well() -> bool:
        given = await engine.answer(image)
        return np.allclose(given, expected, rtol=0.0, atol=GOLDEN_TOLERANCE)

    async def closed() -> None:
        service.close()
        await engine.close()

    return Serving(
        name="cloud",
        models=(manifest.name,),
        servicer=service,
        registry=metrics.registry,
        pages=service.pages(),
        drain=drain,
        closed=closed,
        well=well,
    )
